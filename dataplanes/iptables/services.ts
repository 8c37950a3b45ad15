/** `ServiceState` as chains of the table nat, following what changed. Pure: equal states give equal chains, whatever came before. */
import { type Cidr, type Family, hostCidr, makeCidr, parseCidr } from "../../src/model/address.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { maximalNets } from "../../src/model/prefixes.ts";
import type { ServiceFrontend, ServiceState } from "../../src/model/services.ts";
import { digest } from "../../src/model/digest.ts";
import type { SetUse } from "./set_names.ts";
import { jump, type Match, OURS, type Rule, rule } from "./ruleset.ts";
import { baseChains, frontendChains, inNets, type ServiceMarks } from "./services_chains.ts";
import { ServiceTree } from "./services_tree.ts";
import { ofFamily } from "./set_content.ts";

/** Where both hooks lead. */
export const SERVICES_CHAIN = `${OURS}services`;
export const SERVICE_HOOKS = ["PREROUTING", "OUTPUT"] as const;

/** Of one family, in the table nat. */
export interface ServiceChains {
  readonly chains: ReadonlyMap<string, readonly Rule[]>;
  readonly uses: ReadonlyMap<string, SetUse>;
}

const NO_FRONTENDS: ServiceState["frontends"] = persistentMap();
const LOOPBACK: Readonly<Record<Family, Cidr>> = { 4: parseCidr("127.0.0.0/8"), 6: parseCidr("::1/128") };
/** A name that says its prefix in full may be so long. */
const PREFIX_CHARACTERS = 18;
const PORT_DIGITS = 4, PROTOCOL_DIGITS = 2;

const numberText = (value: number, digits: number): string => value.toString(16).padStart(digits, "0");
const BYTES = Array.from({ length: 256 }, (_, byte) => numberText(byte, 2));

function hex(bytes: string): string {
  let text = "";
  for (let i = 0; i < bytes.length; i++) text += BYTES[bytes.charCodeAt(i)]!;
  return text;
}
/** Chains that find a service; others are about one that is found. */
export const isLookupChain = (name: string): boolean => name === SERVICES_CHAIN || LOOKUP_CHAIN.test(name);
const LOOKUP_CHAIN = new RegExp(`^${OURS}(s[46]|n\\d+-[46]|p[46])-`);
const treeName = (letter: string, family: Family, prefix: string): string =>
  `${OURS}${letter}${family}-${
    prefix.length <= PREFIX_CHARACTERS ? prefix : digest(prefix).slice(0, PREFIX_CHARACTERS)
  }`;

/** What frontends hold: chains and sets of others too stand as long as somebody holds them. */
interface Held {
  readonly own: readonly string[];
  readonly shared: readonly string[];
  readonly uses: readonly string[];
}

/** The services of one family. */
export class ServiceRules {
  private state: ServiceState | undefined;
  private readonly chains = new Map<string, readonly Rule[]>();
  private readonly uses = new Map<string, SetUse>();
  private readonly held = new Map<string, Held>();
  /** How many frontends hold a shared chain or a set. */
  private readonly holders = new Map<string, number>();
  /** All chains of a shared one that has several. */
  private readonly further = new Map<string, readonly string[]>();
  private podNets: readonly Cidr[] = [];
  private addresses: ServiceTree;
  /** By protocol. */
  private readonly ports = new Map<number, ServiceTree>();
  private finished: ServiceChains | undefined;

  /** `sourceSet`: which pod is behind which interface. */
  constructor(
    private readonly family: Family,
    private readonly marks: ServiceMarks,
    private readonly sourceSet: string,
  ) {
    this.addresses = this.addressTree();
  }

  /** The same object where nothing of this family has changed. */
  follow(state: ServiceState): ServiceChains {
    const before = this.state;
    if (before === state && this.finished !== undefined) return this.finished;
    this.state = state;
    const same = before !== undefined && this.finished !== undefined && sameNets(before.podNets, state.podNets);
    if (!same) this.clear(state);
    let changed = !same || !sameNets(before.nodePortAddresses, state.nodePortAddresses);
    const old = same ? before.frontends : NO_FRONTENDS;
    for (const { before: gone, after: now } of state.frontends.changesSince(old)) {
      if ((now ?? gone)!.family !== this.family) continue;
      changed = true;
      this.replace(gone, now);
    }
    if (changed || this.finished === undefined) this.finished = this.finish(state);
    return this.finished;
  }

  private clear({ podNets }: ServiceState): void {
    this.podNets = maximalNets(ofFamily(podNets, this.family));
    for (const all of [this.chains, this.uses, this.held, this.holders, this.further, this.ports]) all.clear();
    for (const [name, rules] of baseChains(this.marks)) this.chains.set(name, rules);
    this.addresses = this.addressTree();
  }

  private finish({ nodePortAddresses }: ServiceState): ServiceChains {
    const rules = [...this.addresses.finish()];
    const uses = new Map(this.uses);
    const nets = maximalNets(ofFamily(nodePortAddresses, this.family));
    const isAll = nodePortAddresses.length === 0;
    for (const [protocol, tree] of [...this.ports].sort(([a], [b]) => a - b)) {
      const chain = this.nodePorts(protocol, tree);
      if (chain === undefined || !isAll && nets.length === 0) continue;
      const answers: Match = isAll
        ? { match: "net", end: "destination", net: LOOPBACK[this.family], not: true }
        : inNets(this.family, "destination", nets, false, uses);
      const isLocal: Match = { match: "local", end: "destination", not: false };
      rules.push(rule(jump(chain), ...portMatches(protocol, tree.prefix), isLocal, answers));
    }
    this.chains.set(SERVICES_CHAIN, rules);
    return { chains: new Map(this.chains), uses };
  }

  /** The chain of a protocol's node ports; undefined where there are none. */
  private nodePorts(protocol: number, tree: ServiceTree): string | undefined {
    const chain = `${OURS}p${this.family}-${protocol}`;
    const rules = tree.finish();
    if (rules.length > 0) this.chains.set(chain, rules);
    else this.chains.delete(chain);
    return rules.length > 0 ? chain : undefined;
  }

  // ------------------------------------------------------------------------------------------------------------- frontends

  private tree(letter: string, matchesOf: (prefix: string) => readonly Match[]): ServiceTree {
    return new ServiceTree({
      chains: this.chains,
      nameOf: (prefix) => treeName(letter, this.family, prefix),
      matchesOf,
    });
  }

  private addressTree(): ServiceTree {
    return this.tree("s", (prefix) => this.addressMatches(prefix));
  }

  private portTree(protocol: number): ServiceTree {
    let tree = this.ports.get(protocol);
    if (tree === undefined) {
      tree = this.tree(`n${protocol}-`, (prefix) => portMatches(protocol, prefix));
      this.ports.set(protocol, tree);
    }
    return tree;
  }

  /** Of an address, a protocol and a port one after another. */
  private addressMatches(prefix: string): readonly Match[] {
    const bits = this.family === 4 ? 32 : 128, digits = bits / 4;
    const address = prefix.slice(0, digits), rest = prefix.slice(digits);
    const matches: Match[] = address === ""
      ? []
      : [{ match: "net", end: "destination", net: netOf(address, bits), not: false }];
    if (rest.length >= PROTOCOL_DIGITS) {
      matches.push(...portMatches(Number.parseInt(rest.slice(0, PROTOCOL_DIGITS), 16), rest.slice(PROTOCOL_DIGITS)));
    }
    return matches;
  }

  private replace(gone: ServiceFrontend | undefined, now: ServiceFrontend | undefined): void {
    const { address, protocol, port, key } = (now ?? gone)!;
    const tree = address === undefined ? this.portTree(protocol) : this.addresses;
    const place = (address === undefined ? "" : hex(address) + numberText(protocol, PROTOCOL_DIGITS)) +
      numberText(port, PORT_DIGITS);
    const before = this.held.get(key);
    if (now === undefined) tree.delete(place);
    else {
      const { marks, sourceSet, podNets } = this;
      const { choices, own, shared, uses } = frontendChains(now, { marks, sourceSet, podNets });
      const kept = new Set(own.keys());
      for (const name of before?.own ?? []) if (!kept.has(name)) this.chains.delete(name);
      for (const [name, rules] of own) this.chains.set(name, rules);
      for (const [name, make] of shared) if (this.hold(name)) this.add(name, make());
      for (const [name, use] of uses) if (this.hold(name)) this.uses.set(name, use);
      this.held.set(key, { own: [...kept], shared: [...shared.keys()], uses: [...uses.keys()] });
      const ranges = [{ first: port, last: port }];
      const matches: readonly Match[] = [
        ...address === undefined ? [] : [
          { match: "net", end: "destination", net: hostCidr(address), not: false } as const,
        ],
        { match: "protocol", protocol, not: false },
        { match: "ports", protocol, end: "destination", ranges },
      ];
      tree.set(place, choices.map((one) => rule(one.target, ...matches, ...one.matches)));
    }
    if (before === undefined) return;
    if (now === undefined) {
      this.held.delete(key);
      for (const name of before.own) this.chains.delete(name);
    }
    for (const name of before.shared) if (this.release(name)) this.remove(name);
    for (const name of before.uses) if (this.release(name)) this.uses.delete(name);
  }

  /** Whether it is the first. */
  private hold(name: string): boolean {
    const count = this.holders.get(name) ?? 0;
    this.holders.set(name, count + 1);
    return count === 0;
  }

  /** Whether it was the last. */
  private release(name: string): boolean {
    const left = this.holders.get(name)! - 1;
    if (left > 0) this.holders.set(name, left);
    else this.holders.delete(name);
    return left === 0;
  }

  private add(name: string, chains: ReadonlyMap<string, readonly Rule[]>): void {
    for (const [one, rules] of chains) this.chains.set(one, rules);
    if (chains.size > 1) this.further.set(name, [...chains.keys()]);
  }

  private remove(name: string): void {
    for (const one of this.further.get(name) ?? [name]) this.chains.delete(one);
    this.further.delete(name);
  }
}

const sameNets = (one: readonly Cidr[], other: readonly Cidr[]): boolean =>
  one === other || one.length === other.length && one.every((net, i) => net === other[i]);

function netOf(digits: string, bits: number): Cidr {
  const whole = digits.padEnd(bits / 4, "0");
  let address = "";
  for (let at = 0; at < whole.length; at += 2) {
    address += String.fromCharCode(Number.parseInt(whole.slice(at, at + 2), 16));
  }
  return makeCidr(address as Parameters<typeof makeCidr>[0], digits.length * 4);
}

/** Of all ports that begin so, in hexadecimal digits. */
function portMatches(protocol: number, prefix: string): readonly Match[] {
  const isProtocol: Match = { match: "protocol", protocol, not: false };
  if (prefix === "") return [isProtocol];
  const range = {
    first: Number.parseInt(prefix.padEnd(PORT_DIGITS, "0"), 16),
    last: Number.parseInt(prefix.padEnd(PORT_DIGITS, "f"), 16),
  };
  return [isProtocol, { match: "ports", protocol, end: "destination", ranges: [range] }];
}
