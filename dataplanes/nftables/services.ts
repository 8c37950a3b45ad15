/** `ServiceState` as elements of maps, following what changed. Pure: equal states give equal sets and chains, whatever came before. */
import { type Cidr, cidrAddress, cidrFamily, cidrLast, type Family } from "../../src/model/address.ts";
import { type MapEditor, type PersistentMap, persistentMap } from "../../src/model/persistent_map.ts";
import type { BackendList, ServiceBackendTarget, ServiceFrontend, ServiceState } from "../../src/model/services.ts";
import { maximalNets } from "../../src/model/prefixes.ts";
import { hostWord } from "./packet_tests.ts";
import { portBytes } from "../../src/model/port_ranges.ts";
import {
  anyAddress,
  askChains,
  type AskKind,
  askWord,
  backendIndex,
  BACKENDS_MAX,
  type KindChains,
  pickChains,
  type PickKind,
  pickWord,
  serviceBaseChains,
  type ServiceSet,
  serviceSets,
} from "./services_chains.ts";
import { type ElementKey, elementsOf, type ElementValue, type NftSet, TrieElements } from "./ruleset.ts";
import type { Chains } from "./shared_entries.ts";

const FAMILIES = [4, 6] as const;

/** A set whose elements come and go one by one. */
class GrowingSet {
  readonly elements: MapEditor<ElementKey, ElementValue> = persistentMap<ElementKey, ElementValue>().edit();
  private entries: PersistentMap<ElementKey, ElementValue> | undefined;
  private set: NftSet | undefined;

  constructor(private readonly form: Omit<NftSet, "elements">) {}

  finish(): NftSet {
    const entries = this.elements.finish();
    if (this.set === undefined || entries !== this.entries) {
      this.entries = entries;
      this.set = { ...this.form, elements: new TrieElements(entries) };
    }
    return this.set;
  }
}

/** Those that are no function of the whole state alone. */
const GROWING = [
  "services",
  "service-kinds",
  "service-inside",
  "service-inside-kinds",
  "service-outside",
  "service-outside-kinds",
  "service-backends",
  "service-slots",
  "service-members",
  "service-members-outside",
  "service-sources",
] as const satisfies readonly ServiceSet[];

type KindSet = "service-kinds" | "service-inside-kinds" | "service-outside-kinds";

/** What a frontend needs. */
interface Parts {
  readonly entries: readonly { readonly set: ServiceSet; readonly key: ElementKey; readonly value: ElementValue }[];
  readonly kinds: readonly { readonly set: KindSet; readonly word: string; readonly chains: () => KindChains }[];
  readonly problem?: string;
}

export class ServiceRules {
  /** What could not be done, by frontend. */
  readonly problems = new Map<string, string>();
  private state: ServiceState | undefined;
  private readonly growing = new Map<string, GrowingSet>();
  /** How many frontends have a kind, by set and word. */
  private readonly kinds = new Map<string, number>();
  private baseNames: readonly string[] = [];

  /** `masqueradeMark`: one bit of the packet mark. */
  constructor(private readonly masqueradeMark: number, private readonly chains: Chains) {
    for (const family of FAMILIES) {
      const forms = serviceSets(family);
      for (const name of GROWING) this.growing.set(`${name}${family}`, new GrowingSet(forms[name]));
    }
  }

  /** Brings `sets` and the chains there. Undefined: services are somebody else's, nothing is left. */
  follow(state: ServiceState | undefined, sets: MapEditor<string, NftSet>): void {
    const before = this.state;
    if (before === state) return;
    this.state = state;
    for (
      const { before: old, after } of (state?.frontends ?? NO_FRONTENDS).changesSince(before?.frontends ?? NO_FRONTENDS)
    ) {
      this.replace(old, after);
    }
    if (
      (before === undefined) !== (state === undefined) ||
      before?.nodePortAddresses.length !== state?.nodePortAddresses.length
    ) this.followBase(state);
    for (const family of FAMILIES) {
      const forms = serviceSets(family);
      if (state === undefined) {
        for (const name of Object.keys(forms)) sets.delete(`${name}${family}`);
        continue;
      }
      for (const name of GROWING) sets.set(`${name}${family}`, this.growing.get(`${name}${family}`)!.finish());
      if (before === undefined) {
        sets.set(`service-clients${family}`, { ...forms["service-clients"], elements: elementsOf([]) });
      }
      const nets = (name: "service-pods" | "service-nodes", old: readonly Cidr[] | undefined, now: readonly Cidr[]) => {
        if (old !== now) sets.set(`${name}${family}`, { ...forms[name], elements: netElements(family, now) });
      };
      nets("service-pods", before?.podNets, state.podNets);
      nets("service-nodes", before?.nodePortAddresses, state.nodePortAddresses);
    }
  }

  private followBase(state: ServiceState | undefined): void {
    const old = this.baseNames;
    const base = state && serviceBaseChains(state.nodePortAddresses.length > 0, this.masqueradeMark);
    this.baseNames = [...base?.keys() ?? []];
    for (const [name, chain] of base ?? []) this.chains.retain(name, chain);
    for (const name of old) this.chains.release(name);
  }

  private replace(before: ServiceFrontend | undefined, after: ServiceFrontend | undefined): void {
    const { family, key } = (after ?? before)!;
    const old = before && this.partsOf(before), now = after && this.partsOf(after);
    // The new kinds first: what both lead through stays.
    for (const kind of now?.kinds ?? []) this.holdKind(kind, family, 1);
    for (const kind of old?.kinds ?? []) this.holdKind(kind, family, -1);
    const kept = new Set(now?.entries.map(({ set, key }) => set + key));
    for (const { set, key } of old?.entries ?? []) {
      if (!kept.has(set + key)) this.growing.get(`${set}${family}`)!.elements.delete(key);
    }
    for (const { set, key, value } of now?.entries ?? []) this.growing.get(`${set}${family}`)!.elements.set(key, value);
    if (now?.problem !== undefined) this.problems.set(key, now.problem);
    else this.problems.delete(key);
  }

  private holdKind({ set, word, chains: make }: Parts["kinds"][number], family: Family, by: 1 | -1): void {
    const id = `${set}${family}${word}`;
    const count = (this.kinds.get(id) ?? 0) + by;
    this.kinds.set(id, count);
    const { elements } = this.growing.get(`${set}${family}`)!;
    if (count === 0) {
      this.kinds.delete(id);
      elements.delete(word);
      for (const name of make().chains.keys()) this.chains.release(name);
    } else if (count === 1 && by > 0) {
      const { to, chains } = make();
      for (const [name, chain] of chains) this.chains.retain(name, chain);
      elements.set(word, to);
    }
  }

  private partsOf(frontend: ServiceFrontend): Parts {
    const { address, family, protocol, port, scope, affinitySeconds, sources, title } = frontend;
    const head = (address ?? anyAddress(family)) + String.fromCharCode(protocol) + "\0\0\0" + portBytes(port) + "\0\0";
    const place = address === undefined ? "node" : "address";
    const entries: Parts["entries"][number][] = [];
    const kinds: Parts["kinds"][number][] = [];
    const lead = (from: "services" | "service-inside" | "service-outside", list: BackendList) => {
      const isOutside = from === "service-outside";
      const active = activeBackends(list);
      const kind: PickKind = {
        family,
        place,
        count: active.length === 0 ? list.empty : active.length,
        ...affinitySeconds === undefined ? {} : { affinitySeconds },
      };
      const word = pickWord(kind);
      entries.push({ set: from, key: head, value: word });
      const set = from === "services" ? "service-kinds" : `${from}-kinds` as const;
      kinds.push({ set, word, chains: () => pickChains(kind, isOutside) });
      const numbers = affinitySeconds === undefined ? undefined : backendNumbers(active);
      for (const [at, { address, port }] of active.entries()) {
        const index = head + backendIndex(at, isOutside), value = address + portBytes(port) + "\0\0";
        if (numbers === undefined) {
          entries.push({ set: "service-backends", key: index, value });
        } else {
          const number = hostWord(numbers[at]!);
          const members = isOutside ? "service-members-outside" : "service-members";
          entries.push({ set: "service-slots", key: index, value: number }, {
            set: members,
            key: head + number,
            value,
          });
        }
      }
    };
    const outside = scope === "cluster" || frontend.outside?.id === frontend.backends.id ? undefined : frontend.outside;
    const masquerades = scope !== "cluster" && frontend.masqueradeOutside;
    const isRestricted = sources !== undefined;
    if (outside === undefined && !masquerades && !isRestricted) lead("services", frontend.backends);
    else {
      const kind: AskKind = { family, place, hasOutside: outside !== undefined, masquerades, isRestricted };
      const word = askWord(kind);
      entries.push({ set: "services", key: head, value: word });
      kinds.push({ set: "service-kinds", word, chains: () => askChains(kind, this.masqueradeMark) });
      lead("service-inside", frontend.backends);
      if (outside !== undefined) lead("service-outside", outside);
    }
    for (const net of maximalNets((sources ?? []).filter((net) => cidrFamily(net) === family))) {
      entries.push({ set: "service-sources", key: head + cidrAddress(net) + head + cidrLast(net), value: true });
    }
    const most = Math.max(frontend.backends.backends.length, outside?.backends.length ?? 0);
    return {
      entries,
      kinds,
      ...most <= BACKENDS_MAX ? {} : {
        problem: `service ${title}: found ${most} backends, wanted at most ${BACKENDS_MAX}; the others get nothing`,
      },
    };
  }
}

const NO_FRONTENDS: ServiceState["frontends"] = persistentMap();

/** Those that take new flows. */
const activeBackends = ({ backends }: BackendList): readonly ServiceBackendTarget[] =>
  (backends.some(({ draining }) => draining) ? backends.filter(({ draining }) => !draining) : backends)
    .slice(0, BACKENDS_MAX);

/** A number for each, none 0, that depends on who it is: others come and go, and it stays (but where two have one hash, once in 4 billion). */
function backendNumbers(backends: readonly ServiceBackendTarget[]): readonly number[] {
  const taken = new Set([0]);
  return backends.map(({ address, port }) => {
    // FNV-1a, 32 bits.
    let number = 0x811c9dc5;
    for (const byte of address + portBytes(port)) number = Math.imul(number ^ byte.charCodeAt(0), 0x01000193) >>> 0;
    while (taken.has(number)) number = (number + 1) >>> 0;
    taken.add(number);
    return number;
  });
}

const netElements = (family: Family, nets: readonly Cidr[]) =>
  elementsOf(
    maximalNets(nets.filter((net) => cidrFamily(net) === family)).map((net) =>
      [cidrAddress(net) + cidrLast(net), true] as const
    ),
  );
