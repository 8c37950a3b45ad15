/**
 * What a change of the world does to who reaches whom: two desired states, compared pair by pair. Endpoints that nothing tells
 * apart are compared once, and only those whose lists, or the sets in them, differ. Pure but for its pauses.
 */
import { type Address, addressFamily, type Family } from "../../model/address.ts";
import type { DesiredState, PolicyList, ProtocolPort } from "../../model/desired.ts";
import { judgePath } from "../../model/evaluate.ts";
import { persistentMap } from "../../model/persistent_map.ts";
import { andBits, type Bits, isEmpty, noBits, sameBits, setBit, withoutBits } from "../bits.ts";
import { guessLink, type LinkTowards, sourceOutside } from "../explain/path.ts";
import { listOf } from "../explain/step.ts";
import type { WhatIfReply } from "../explain/view.ts";
import { type Change, type Group, mergeChanges, type PairChange } from "./groups.ts";
import { allLists, ChangedLists, knowledge, STAGES } from "./lists.ts";
import { classifyPackets, type PacketClasses } from "./packets.ts";
import { type Both, partiesOf, type Party, type SideName, type WorldSide } from "./parties.ts";
import { Rows } from "./rows.ts";

/** Pairs between two looks at the clock. */
const PAIRS_AT_ONCE = 16;
/** Names of added and removed endpoints that are told. */
const NAMES_MAX = 100;

/** Every pair whose reachability differs. `pause` is awaited often. */
export async function compareWorlds(
  now: WorldSide,
  then: WorldSide,
  linkTowards: LinkTowards,
  pause: () => Promise<void>,
): Promise<Omit<WhatIfReply, "changes">> {
  const sides: Both<WorldSide> = { now, then };
  const changed = new ChangedLists(now.desired, then.desired);
  const { parties, added, removed } = partiesOf(sides, changed);
  await pause();
  const notes: string[] = [];
  const hasHosts = now.desired.hostEndpoints.size + then.desired.hostEndpoints.size > 0;
  const comparisons: Comparison[] = [];
  for (const family of [4, 6] as const) {
    if (parties.filter((party) => hasFamily(party, family)).length < 2) continue;
    const comparison = new Comparison(family, sides, parties, changed, hasHosts, linkTowards);
    await pause();
    await comparison.learn(pause);
    comparisons.push(comparison);
  }
  const alike = groupParties(parties, comparisons, sides, changed, hasHosts);
  const found: PairChange[] = [];
  for (const comparison of comparisons) {
    const { family, packets } = comparison;
    if (packets.isCoarse) {
      notes.push(
        `IPv${family}: too many ports are named: rules that ask for source ports are compared for clients' ports only`,
      );
    }
    const here = alike.filter(({ members }) => hasFamily(members[0]!, family));
    await comparison.run(here, (change) => found.push(change), pause);
  }
  await pause();
  const groups = mergeChanges(found);
  const count = (kind: Party["kind"]) => parties.filter((party) => party.kind === kind).length;
  return {
    groups,
    pairs: groups.reduce((sum, { from, to, except }) => sum + from.length * to.length - except.length, 0),
    compared: { endpoints: count("workload"), nodes: count("node"), networks: count("network") },
    added: added.toSorted().slice(0, NAMES_MAX),
    removed: removed.toSorted().slice(0, NAMES_MAX),
    notes,
  };
}

const hasFamily = ({ addresses }: Party, family: Family): boolean =>
  addresses.now.has(family) && addresses.then.has(family);

/** All pairs, in one family. */
class Comparison {
  readonly packets: PacketClasses;
  readonly #addresses: readonly Address[];
  readonly #at: ReadonlyMap<Address, number>;
  readonly #rows: Both<Rows>;
  #known: Both<readonly string[]> = { now: [], then: [] };
  readonly #hostRows = new Map<string, Bits>();
  /** As far as they are known. */
  readonly #links = new Map<string, string | undefined>();
  readonly #changes = new Map<string, Change>();
  readonly #everything: Bits;

  constructor(
    readonly family: Family,
    readonly sides: Both<WorldSide>,
    all: readonly Party[],
    readonly changed: ChangedLists,
    readonly hasHosts: boolean,
    readonly linkTowards: LinkTowards,
  ) {
    const { now, then } = sides;
    const parties = all.filter((party) => hasFamily(party, family));
    this.packets = classifyPackets(family, {
      lists: [...allLists(now.desired), ...allLists(then.desired)],
      sets: [now.desired.sets, then.desired.sets],
      ports: hasHosts ? failsafePorts(sides) : [],
    });
    // Behind which a pod may hide: only host endpoints look.
    const nodes = new Set(hasHosts ? parties.flatMap(({ node }) => [node.now, node.then]) : []);
    nodes.delete("");
    const nodeAddresses = [...nodes].flatMap((node) => [now, then].flatMap((side) => side.addressesOf(node)))
      .filter((address) => addressFamily(address) === family);
    this.#addresses = [
      ...new Set([
        ...parties.flatMap(({ addresses }) => [addresses.now.get(family)!, addresses.then.get(family)!]),
        ...nodeAddresses,
      ]),
    ];
    this.#at = new Map(this.#addresses.map((address, at) => [address, at]));
    this.#rows = {
      now: new Rows(now.desired, this.packets, this.#addresses),
      then: new Rows(then.desired, this.packets, this.#addresses),
    };
    this.#everything = this.#rows.now.everything;
  }

  /** Has to be over before `kindOf` is asked. */
  async learn(pause: () => Promise<void>): Promise<void> {
    const known = ({ desired }: WorldSide) => knowledge(allLists(desired), desired, this.#addresses, pause);
    this.#known = { now: await known(this.sides.now), then: await known(this.sides.then) };
  }

  /** Equal for parties that the lists of neither world tell apart by their addresses. */
  kindOf(party: Party): string {
    if (!hasFamily(party, this.family)) return "";
    return (["now", "then"] as const).map((side) =>
      this.#known[side][this.#at.get(party.addresses[side].get(this.family)!)!]
    )
      .join(";");
  }

  /** Tells of every pair of groups that something changes between. */
  async run(
    groups: readonly Group[],
    tell: (change: PairChange) => void,
    pause: () => Promise<void>,
  ): Promise<void> {
    let compared = 0;
    for (const from of groups) {
      for (const to of groups) {
        if (!(from.sends || to.receives)) continue;
        if (++compared % PAIRS_AT_ONCE === 0) await pause();
        const change = this.#compare(from, to);
        if (change !== undefined) tell(change);
      }
      await pause();
    }
  }

  #compare(from: Group, to: Group): PairChange | undefined {
    const [a, b] = [from.members[0]!, to.members[0]!];
    if (a.kind === "network" && b.kind === "network") return undefined;
    if (from === to && from.members.length === 1) return undefined;
    const except = exceptions(from, to, this.hasHosts);
    if (from.members.length * to.members.length === except.length) return undefined;
    const before = this.#asked("now", a, b), after = this.#asked("then", a, b);
    if (before.length === after.length && before.every((bits, i) => sameBits(bits, after[i]!))) return undefined;
    const now = this.#throughAll(before), then = this.#throughAll(after);
    if (sameBits(now, then)) return undefined;
    return {
      family: this.family,
      from,
      to,
      except,
      change: this.#changeOf(withoutBits(now, then), withoutBits(then, now)),
    };
  }

  /** The same ones come again and again. */
  #changeOf(closed: Bits, opened: Bits): Change {
    const key = `${closed} ${opened}`;
    let change = this.#changes.get(key);
    if (change === undefined) {
      const words: Change["words"][number][] = [];
      if (!isEmpty(closed)) words.push({ now: "allow", then: "deny", words: this.packets.words(closed) });
      if (!isEmpty(opened)) words.push({ now: "deny", then: "allow", words: this.packets.words(opened) });
      this.#changes.set(key, change = { id: this.#changes.size, words });
    }
    return change;
  }

  #throughAll(asked: readonly Bits[]): Bits {
    return asked.reduce(andBits, this.#everything);
  }

  /** Classes of packets that each of those on the way lets through. */
  #asked(side: SideName, from: Party, to: Party): readonly Bits[] {
    const source = from.addresses[side].get(this.family)!, destination = to.addresses[side].get(this.family)!;
    const rows = this.#rows[side], at = this.#at.get(destination)!;
    const asked: Bits[] = [];
    if (from.lists !== undefined) asked.push(rows.row(from.lists[side].egress, this.#at.get(source)!, at).allow);
    if (this.hasHosts) asked.push(this.#pastHosts(side, from, to));
    // As `judgePath` has it: what a node sends to its own pod is not asked of the pod. Where the pods of a group may be on
    // many nodes, such pairs are exceptions.
    const isNear = isOfOneNode(to, this.hasHosts) && from.kind === "node" && from.node[side] === to.node[side];
    if (to.lists !== undefined && !isNear) {
      asked.push(rows.row(to.lists[side].ingress, this.#at.get(this.#seen(side, from, to, source))!, at).allow);
    }
    return asked;
  }

  /** The source address on the destination's node. */
  #seen(side: SideName, from: Party, to: Party, source: Address): Address {
    if (from.kind !== "workload" || !this.hasHosts || from.node[side] === to.node[side]) return source;
    const destination = to.addresses[side].get(this.family)!;
    const own = sourceOutside(
      this.sides[side].desired,
      { source, destination },
      this.sides[side].addressesOf(from.node[side]),
    );
    return this.#at.has(own) ? own : source;
  }

  /** What host endpoints on the way let through: the evaluator itself, packet by packet, for there are few of them. */
  #pastHosts(side: SideName, from: Party, to: Party): Bits {
    const source = from.addresses[side].get(this.family)!, destination = to.addresses[side].get(this.family)!;
    const start = from.node[side], end = to.node[side];
    const stub = (party: Party) => party.kind === "workload" ? party.id : undefined;
    if (start !== "" && start === end) {
      return this.#hostRow(side, start, source, destination, stub(from), stub(to), undefined);
    }
    let allowed = this.#everything;
    if (start !== "") {
      const link = this.#linkOf(side, start, destination);
      allowed = this.#hostRow(side, start, source, destination, stub(from), undefined, { out: link });
    }
    if (end !== "") {
      const seen = this.#seen(side, from, to, source);
      const link = this.#linkOf(side, end, seen);
      allowed = andBits(allowed, this.#hostRow(side, end, seen, destination, undefined, stub(to), { in: link }));
    }
    return allowed;
  }

  #linkOf(side: SideName, node: string, address: Address): string {
    const hosts = [...this.sides[side].stateOf(node).hostEndpoints.values()];
    if (hosts.length === 0) return "";
    const key = `${node} ${address}`;
    if (!this.#links.has(key)) this.#links.set(key, this.linkTowards(node, address));
    return this.#links.get(key) ?? guessLink(hosts.map(({ interfaces }) => interfaces)).link;
  }

  #hostRow(
    side: SideName,
    node: string,
    source: Address,
    destination: Address,
    from: string | undefined,
    to: string | undefined,
    link: { readonly in?: string; readonly out?: string } | undefined,
  ): Bits {
    const state = this.sides[side].stateOf(node);
    if (state.hostEndpoints.size === 0) return this.#everything;
    const lists = [...state.hostEndpoints.keys()].flatMap((hostEndpoint) =>
      STAGES.flatMap((stage) => listOf(state, { hostEndpoint }, stage) ?? [])
    );
    const kinds = (of: "source" | "destination", address: Address) =>
      lists.map((list) => this.#rows[side].kindOf(list, of, this.#at.get(address)!)).join();
    const key = [
      side,
      node,
      from !== undefined,
      to !== undefined,
      link?.in,
      link?.out,
      kinds("source", source),
      kinds("destination", destination),
    ].join(" ");
    let bits = this.#hostRows.get(key);
    if (bits !== undefined) return bits;
    const alone = openState(state, [
      ...from === undefined ? [] : [{ name: FROM, address: source }],
      ...to === undefined ? [] : [{ name: TO, address: destination }],
    ]);
    const path = {
      ...link?.in !== undefined ? { inInterface: link.in } : from !== undefined ? { inInterface: FROM } : {},
      ...link?.out !== undefined ? { outInterface: link.out } : to !== undefined ? { outInterface: TO } : {},
    };
    bits = noBits(this.packets.size);
    for (let at = 0; at < this.packets.size; at++) {
      const packet = this.packets.packet(at, source, destination);
      if (judgePath(alone, { packet, ...path }).verdict === "allow") setBit(bits, at);
    }
    this.#hostRows.set(key, bits);
    return bits;
  }
}

/** Whether a group of parties like this one is kept to one node: where nodes make a difference. */
const isOfOneNode = ({ node }: Party, hasHosts: boolean): boolean => hasHosts || node.now !== node.then;

/** By what the lists of both worlds know of them; with host endpoints about, by node as well. */
function groupParties(
  parties: readonly Party[],
  comparisons: readonly Comparison[],
  sides: Both<WorldSide>,
  changed: ChangedLists,
  hasHosts: boolean,
): readonly Group[] {
  const listsOf = (side: SideName, { lists }: Party) =>
    lists === undefined ? "" : `${lists[side].ingress.id} ${lists[side].egress.id}`;
  const groups = new Map<string, Party[]>();
  for (const party of parties) {
    const { kind, id, node } = party;
    const key = JSON.stringify([
      kind,
      kind === "workload" ? "" : id,
      isOfOneNode(party, hasHosts) ? [node.now, node.then] : "",
      listsOf("now", party),
      listsOf("then", party),
      ...comparisons.map((comparison) => [hasFamily(party, comparison.family), comparison.kindOf(party)]),
    ]);
    const members = groups.get(key);
    if (members === undefined) groups.set(key, [party]);
    else members.push(party);
  }
  return [...groups.values()].map((members): Group => {
    const { lists, node, addresses } = members[0]!;
    const moved = node.now !== node.then ||
      comparisons.some(({ family }) => addresses.now.get(family) !== addresses.then.get(family));
    const differs = moved || hasHosts && hostsDiffer(node.then, sides, changed);
    return {
      members,
      sends: differs || changed.differs(lists?.now.egress, lists?.then.egress),
      receives: differs || changed.differs(lists?.now.ingress, lists?.then.ingress),
    };
  });
}

function hostsDiffer(node: string, sides: Both<WorldSide>, changed: ChangedLists): boolean {
  if (node === "") return false;
  // Who leaves a node with whose address is seen by the host endpoints of others.
  if (JSON.stringify(sides.now.desired.masquerade) !== JSON.stringify(sides.then.desired.masquerade)) return true;
  const before = sides.now.stateOf(node), after = sides.then.stateOf(node);
  const ids = new Set([...before.hostEndpoints.keys(), ...after.hostEndpoints.keys()]);
  return [...ids].some((hostEndpoint) => {
    const a = before.hostEndpoints.get(hostEndpoint), b = after.hostEndpoints.get(hostEndpoint);
    if (a === undefined || b === undefined || String(a.interfaces) !== String(b.interfaces)) return true;
    return STAGES.some((stage) =>
      changed.differs(listOf(before, { hostEndpoint }, stage), listOf(after, { hostEndpoint }, stage))
    );
  });
}

/** Interfaces of the workloads that stand for any at the ends of a host's way. */
const FROM = "\0from", TO = "\0to";

const ALLOW_ALL: PolicyList = {
  id: "what-if allow all",
  tiers: [],
  profiles: [{
    id: "",
    staged: false,
    rules: [{ action: "allow", source: {}, destination: {}, origin: { policy: "", direction: "ingress", index: 0 } }],
  }],
  end: "deny",
};

/** The node with its host endpoints, and workloads that have no policy. */
const openState = (state: DesiredState, workloads: readonly { name: string; address: Address }[]): DesiredState => ({
  ...state,
  workloads: persistentMap(workloads.map(({ name, address }) => [name, {
    id: name,
    interfaceName: name,
    addresses: [address],
    ingress: ALLOW_ALL,
    egress: ALLOW_ALL,
  }])),
});

function failsafePorts({ now, then }: Both<WorldSide>): readonly ProtocolPort[] {
  return [now, then].flatMap(({ desired: { failsafe } }) => [...failsafe.inbound, ...failsafe.outbound]);
}

/** Pairs that never meet policy: oneself, and a node's own pods where it has no host endpoint. */
function exceptions(from: Group, to: Group, hasHosts: boolean): readonly (readonly [string, string])[] {
  if (from === to) return from.members.map(({ name }) => [name, name] as const);
  const [node] = from.members;
  if (node!.kind !== "node") return [];
  return to.members.filter((member) =>
    member.kind === "workload" && !isOfOneNode(member, hasHosts) && member.node.then === node!.id
  ).map(({ name }) => [node!.name, name] as const);
}
