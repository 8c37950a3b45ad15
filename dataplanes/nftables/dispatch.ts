/** What leads into the workloads' chains: sets and maps whose elements are interfaces. */
import type { DesiredWorkload } from "../../src/model/desired.ts";
import { type MapEditor, persistentMap } from "../../src/model/persistent_map.ts";
import { DROP, goto } from "./expressions.ts";
import {
  type ElementKey,
  type ElementValue,
  interfaceKey,
  type KeyField,
  type NftSet,
  TrieElements,
} from "./ruleset.ts";

const SETS = {
  workloads: { fields: ["ifname"], map: false },
  "from-workload": { fields: ["ifname"], map: true },
  "to-workload": { fields: ["ifname"], map: true },
  self: { fields: ["ifname", "ifname"], map: false },
  source4: { fields: ["ifname", "ipv4_addr"], map: false },
  source6: { fields: ["ifname", "ipv6_addr"], map: false },
} as const satisfies Readonly<Record<string, { readonly fields: readonly KeyField[]; readonly map: boolean }>>;
type SetName = keyof typeof SETS;
const NAMES = Object.keys(SETS) as SetName[];

/** The chains of one workload's lists. */
export interface WorkloadChains {
  readonly ingress: string;
  readonly egress: string;
}

export class Dispatch {
  private readonly elements = new Map<SetName, MapEditor<ElementKey, ElementValue>>(
    NAMES.map((name) => [name, persistentMap<ElementKey, ElementValue>().edit()]),
  );
  /** What stands for an interface. */
  private readonly entries = new Map<string, readonly (readonly [SetName, ElementKey])[]>();

  /** Brings one interface to who claims it: one workload, several (which cuts it off), or none. */
  set(
    interfaceName: string,
    claims: Iterable<DesiredWorkload>,
    chainsOf: (one: DesiredWorkload) => WorkloadChains,
  ): void {
    for (const [set, element] of this.entries.get(interfaceName) ?? []) this.elements.get(set)!.delete(element);
    const [workload, ...others] = claims;
    if (workload === undefined) {
      this.entries.delete(interfaceName);
      return;
    }
    const entries: (readonly [SetName, ElementKey])[] = [];
    const put = (set: SetName, element: ElementKey, value: ElementValue) => {
      this.elements.get(set)!.set(element, value);
      entries.push([set, element]);
    };
    const key = interfaceKey(interfaceName);
    put("workloads", key, true);
    if (others.length > 0) {
      put("from-workload", key, DROP);
      put("to-workload", key, DROP);
    } else {
      const { ingress, egress } = chainsOf(workload);
      put("from-workload", key, goto(egress));
      put("to-workload", key, goto(ingress));
      put("self", key + key, true);
      for (const address of workload.addresses) put(address.length === 4 ? "source4" : "source6", key + address, true);
    }
    this.entries.set(interfaceName, entries);
  }

  *sets(): Iterable<readonly [string, NftSet]> {
    for (const name of NAMES) {
      yield [name, { ...SETS[name], interval: false, elements: new TrieElements(this.elements.get(name)!.finish()) }];
    }
  }
}
