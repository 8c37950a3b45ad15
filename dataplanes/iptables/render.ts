/** `DesiredState` → tables and sets. Pure: only speed depends on what came before. */
import { type Cidr, type Family, parseCidr } from "../../src/model/address.ts";
import type {
  DesiredHostEndpoint,
  DesiredState,
  DesiredWorkload,
  PolicyList,
  ProtocolPort,
} from "../../src/model/desired.ts";
import { type PersistentMap, persistentMap } from "../../src/model/persistent_map.ts";
import { hasPorts, PROTOCOLS } from "../../src/model/ports.ts";
import { maximalNets } from "../../src/model/prefixes.ts";
import type { Direction } from "../../src/model/rule.ts";
import { interfaceMember } from "../../src/kernel/netlink/schema/ipset.ts";
import { chainName, type Compiled, compileList, type Endings, FILTER_ENDINGS } from "./compile.ts";
import { dispatch, type DispatchOptions, INTERFACE_NAME_MAX, type LeafRules, POD_PREFIX } from "./dispatch.ts";
import { portMatches } from "./rule_matches.ts";
import { inNets, postroutingRules, refusalRules, type ServiceMarks } from "./services_chains.ts";
import { ServiceTables } from "./services_tables.ts";
import {
  DROP,
  type End,
  goto,
  type IpSet,
  jump,
  type Match,
  OURS,
  RETURN,
  type Rule,
  rule,
  type Ruleset,
  type Table,
  type TableName,
  type Target,
} from "./ruleset.ts";
import { ListedContent, MemberContent, ofFamily } from "./set_content.ts";
import type { SetUse } from "./set_names.ts";

export interface RenderOptions {
  /** NFLOG group of `log` rules. */
  readonly logGroup: number;
  /** One bit of the packet mark: policy before tracking or DNAT has allowed the packet at its host endpoint. */
  readonly passedMark: number;
  /** One bit of the connection mark: no packet of a flow that carries it passes. Absent: nothing is cut. */
  readonly cutMark?: number | undefined;
  readonly families: readonly Family[];
  /** Absent: `flat`. `linear`: lists rule by rule, as they are written. */
  readonly shape?: "flat" | "linear";
  /** Whether packets can be masqueraded. */
  readonly nat: boolean;
  /** Absent: services are somebody else's. */
  readonly services?: ServiceMarks | undefined;
}

export interface Rendered {
  readonly ruleset: Ruleset;
  /** What is not as wanted, or slower than it might be, one line each. */
  readonly problems: readonly string[];
}

type Parts = Pick<DesiredState, "workloads" | "hostEndpoints" | "failsafe" | "masquerade"> & {
  readonly hasServices: boolean;
};

export class Renderer {
  private parts: Parts | undefined;
  private tables: readonly Table[] = [];
  /** Without services. */
  private bases: readonly Table[] = [];
  private readonly services: ServiceTables;
  private uses: ReadonlyMap<string, SetUse> = new Map();
  private problems: readonly string[] = [];
  private sources = new Map<string, ListedContent>();
  private sets: ReadonlyMap<string, IpSet> = new Map();
  private seenSets: DesiredState["sets"] | undefined;
  private ruleset: Ruleset | undefined;
  private lists = new WeakMap<PolicyList, Map<string, Compiled>>();
  /** By a list's id: the heads of what it was compiled to. */
  private heads: ReadonlyMap<string, ReadonlySet<string>> = new Map();

  constructor(readonly options: RenderOptions) {
    this.services = new ServiceTables(options.families, options.services, sourceSet);
  }

  render(desired: DesiredState): Rendered {
    const { workloads, hostEndpoints, failsafe, masquerade } = desired;
    const was = this.parts;
    const hasServices = this.options.services !== undefined && desired.services !== undefined;
    const same = was !== undefined && was.workloads === workloads && was.hostEndpoints === hostEndpoints &&
      was.failsafe === failsafe && was.masquerade === masquerade && was.hasServices === hasServices;
    if (!same) {
      const parts = { workloads, hostEndpoints, failsafe, masquerade, hasServices };
      this.renderTables(parts);
      this.parts = parts;
    }
    const served = this.services.follow(desired.services);
    if (!same || served) {
      const tables = this.bases.map((base) => this.services.addTo(base));
      if (tables.length !== this.tables.length || tables.some((table, i) => table !== this.tables[i])) {
        this.tables = tables;
      }
    }
    if (!same || served || this.seenSets !== desired.sets) {
      this.renderSets(desired.sets);
      this.seenSets = desired.sets;
    }
    if (this.ruleset?.tables !== this.tables || this.ruleset.sets !== this.sets) {
      this.ruleset = { tables: this.tables, sets: this.sets };
    }
    return { ruleset: this.ruleset, problems: this.problems };
  }

  /** The chains that a list begins with, wherever it applies. */
  headsOf({ id }: PolicyList): ReadonlySet<string> {
    return this.heads.get(id) ?? new Set();
  }

  private compiled(list: PolicyList, direction: Direction, family: Family, endings: Endings): Compiled {
    let known = this.lists.get(list);
    if (known === undefined) this.lists.set(list, known = new Map());
    const key = `${family} ${direction} ${endings === FILTER_ENDINGS ? "" : JSON.stringify(endings)}`;
    let found = known.get(key);
    if (found === undefined) {
      const { logGroup, shape } = this.options;
      known.set(
        key,
        found = compileList(list, { family, direction, endings, logGroup, ...shape === undefined ? {} : { shape } }),
      );
    }
    return found;
  }

  private renderTables(desired: Parts): void {
    const tables: Table[] = [], uses = new Map<string, SetUse>(), problems = new Set<string>();
    const sources = new Map<string, ListedContent>();
    const heads = new Map<string, Set<string>>();
    for (const family of this.options.families) {
      const compile = (list: PolicyList, direction: Direction, endings: Endings): Compiled => {
        const compiled = this.compiled(list, direction, family, endings);
        const known = heads.get(list.id);
        if (known === undefined) heads.set(list.id, new Set([compiled.head]));
        else known.add(compiled.head);
        return compiled;
      };
      const node = new NodeTables(desired, family, this.options, compile);
      for (const problem of node.problems) problems.add(problem);
      for (const [name, use] of node.uses) uses.set(name, use);
      const name = sourceSet(family), before = this.sources.get(name);
      const content = new ListedContent(node.sources);
      sources.set(name, before?.equals(content) ? before : content);
      for (const table of node.tables()) {
        const known = this.bases.find((one) => one.family === family && one.table === table.table);
        tables.push(known !== undefined && sameTable(known, table) ? known : table);
      }
    }
    this.bases = tables;
    this.heads = heads;
    this.uses = uses;
    this.sources = sources;
    this.problems = [...problems];
  }

  private renderSets(sets: DesiredState["sets"]): void {
    const rendered = new Map<string, IpSet>();
    let changed = false;
    const put = (name: string, set: IpSet) => {
      if (this.sets.get(name) !== set) changed = true;
      rendered.set(name, set);
    };
    for (const [name, content] of this.sources) {
      const before = this.sets.get(name);
      put(
        name,
        before?.content === content ? before : { kind: "interface", family: name === sourceSet(4) ? 4 : 6, content },
      );
    }
    for (const [name, { kind, family, ids, nets }] of [...this.uses, ...this.services.uses()]) {
      const members = ids.map((id) => {
        const set = sets.get(id);
        return set === undefined || set.kind !== kind ? NO_MEMBERS : set.members;
      });
      const before = this.sets.get(name);
      const same = before?.content instanceof MemberContent &&
        members.every((one, i) => (before.content as MemberContent).sources[i] === one);
      put(name, same ? before : { kind, family, content: new MemberContent(family, kind, members, nets) });
    }
    if (changed || rendered.size !== this.sets.size) this.sets = rendered;
  }
}

const NO_MEMBERS: PersistentMap<string, true> = persistentMap();
const sourceSet = (family: Family): string => `${OURS}${family}i-source`;

/** Chains are named by their content, or by the list that they are made of, but for those that hooks lead to. */
function sameTable(one: Table, other: Table): boolean {
  if (one.chains.size !== other.chains.size || one.hooks.size !== other.hooks.size) return false;
  for (const [hook, chain] of one.hooks) if (other.hooks.get(hook) !== chain) return false;
  for (const name of one.chains.keys()) if (!other.chains.has(name)) return false;
  return [...one.hooks.values()].every((name) =>
    JSON.stringify(one.chains.get(name)) === JSON.stringify(other.chains.get(name))
  );
}

interface HostInterfaces {
  /** By name, sorted. */
  readonly named: ReadonlyMap<string, DesiredHostEndpoint>;
  /** The endpoint of every other interface. */
  readonly star: DesiredHostEndpoint | undefined;
}

const LINK_LOCAL = parseCidr("fe80::/10");
const UNSPECIFIED = parseCidr("::/128");
/** Neighbour discovery and multicast listeners, RFC 4861 and RFC 2710. */
const NEIGHBOUR_TYPES = [130, 131, 132, 133, 134, 135, 136];
/** MLDv2 reports, RFC 3810: from the link-local address or none, as those are, but no part of what policy never sees. */
const MLDV2_REPORT = 143;

const inState = (...states: Extract<Match, { match: "state" }>["states"]): Match => ({ match: "state", states });
const isProtocol = (protocol: number): Match => ({ match: "protocol", protocol, not: false });
const KNOWN_FLOWS = rule(RETURN, inState("established", "related"));
const INVALID = rule(DROP, inState("invalid"));

/** The tables of one family, as they grow. */
class NodeTables {
  readonly problems = new Set<string>();
  readonly uses = new Map<string, SetUse>();
  /** Members of the set of who may send from where. */
  readonly sources = new Set<string>();
  private readonly grown = new Map<TableName, { chains: Map<string, readonly Rule[]>; hooks: Map<string, string> }>();
  /** By interface; undefined: claimed by several. */
  private readonly workloads = new Map<string, DesiredWorkload | undefined>();
  private readonly hosts: HostInterfaces;

  constructor(
    private readonly state: Parts,
    private readonly family: Family,
    private readonly options: RenderOptions,
    private readonly compile: (list: PolicyList, direction: Direction, endings: Endings) => Compiled,
  ) {
    this.findWorkloads();
    this.hosts = this.findHosts();
    this.rawIn();
    this.rawOut();
    this.preDnat();
    this.forward();
    this.input();
    this.output();
    this.postrouting();
  }

  *tables(): Iterable<Table> {
    for (const [table, { chains, hooks }] of this.grown) yield { family: this.family, table, chains, hooks };
  }

  // ------------------------------------------------------------------------------------------------------------- endpoints

  private findWorkloads(): void {
    const sorted = [...this.state.workloads.values()].sort((a, b) => a.id < b.id ? -1 : 1);
    for (const workload of sorted) {
      const { id, interfaceName } = workload;
      if (!isInterfaceName(interfaceName)) {
        this.problems.add(
          `workload ${id}: found interface ${
            JSON.stringify(interfaceName)
          }, wanted a name of 1 to ${INTERFACE_NAME_MAX} bytes`,
        );
      } else if (this.workloads.has(interfaceName)) {
        this.workloads.set(interfaceName, undefined);
        this.problems.add(`interface ${interfaceName} is claimed by several workloads: it is cut off`);
      } else this.workloads.set(interfaceName, workload);
    }
    for (const [name, workload] of this.workloads) {
      for (const address of workload?.addresses ?? []) {
        if (address.length === (this.family === 4 ? 4 : 16)) this.sources.add(interfaceMember(address, name));
      }
    }
  }

  private findHosts(): HostInterfaces {
    const named = new Map<string, DesiredHostEndpoint>();
    let star: DesiredHostEndpoint | undefined;
    for (const endpoint of [...this.state.hostEndpoints.values()].sort((a, b) => a.id < b.id ? -1 : 1)) {
      const claim = (what: string) =>
        this.problems.add(`host endpoint ${endpoint.id}: ${what} is another host endpoint's already`);
      if (endpoint.interfaces === "*") {
        if (star === undefined) star = endpoint;
        else claim("every interface");
        continue;
      }
      for (const name of endpoint.interfaces) {
        if (!isInterfaceName(name)) {
          this.problems.add(
            `host endpoint ${endpoint.id}: found interface ${
              JSON.stringify(name)
            }, wanted a name of 1 to ${INTERFACE_NAME_MAX} bytes`,
          );
        } else if (named.has(name)) claim(`interface ${name}`);
        else named.set(name, endpoint);
      }
    }
    return { named: new Map([...named].sort(([a], [b]) => a < b ? -1 : 1)), star };
  }

  private get hasHosts(): boolean {
    return this.hosts.star !== undefined || this.hosts.named.size > 0;
  }

  // ---------------------------------------------------------------------------------------------------------------- chains

  private table(table: TableName) {
    let grown = this.grown.get(table);
    if (grown === undefined) this.grown.set(table, grown = { chains: new Map(), hooks: new Map() });
    return grown;
  }

  private chain(table: TableName, rules: readonly Rule[]): string {
    const name = chainName(rules);
    this.table(table).chains.set(name, rules);
    return name;
  }

  private to(table: TableName, rules: readonly Rule[]): Target {
    return goto(this.chain(table, rules));
  }

  private hook(table: TableName, hook: string, name: string, rules: readonly Rule[]): void {
    const grown = this.table(table);
    grown.chains.set(`${OURS}${name}`, rules);
    grown.hooks.set(hook, `${OURS}${name}`);
  }

  private list(table: TableName, list: PolicyList, direction: Direction, endings: Endings = FILTER_ENDINGS): Target {
    const { head, chains, sets, notes } = this.compile(list, direction, endings);
    const grown = this.table(table);
    for (const [name, rules] of chains) grown.chains.set(name, rules);
    for (const [name, use] of sets) this.uses.set(name, use);
    for (const note of notes) this.problems.add(`policy list ${list.id}: ${note}`);
    return goto(head);
  }

  private tree(table: TableName, options: Omit<DispatchOptions, "chain">): readonly Rule[] {
    return dispatch({ ...options, chain: (rules) => this.chain(table, rules) });
  }

  private workloadList(list: PolicyList, direction: Direction): readonly Rule[] {
    return [INVALID, rule(this.list("filter", list, direction))];
  }

  /** Neighbour discovery goes back where it came from; it is between an endpoint and its node, never forwarded. */
  private besideNeighbours(table: TableName, rest: readonly Rule[]): readonly Rule[] {
    if (this.family === 4) return rest;
    const neighbours = NEIGHBOUR_TYPES.map((type) =>
      rule(RETURN, isProtocol(PROTOCOLS.ICMPv6), { match: "icmp", type, code: null, not: false })
    );
    return [rule(this.to(table, [...neighbours, ...rest]), isProtocol(PROTOCOLS.ICMPv6)), ...rest];
  }

  // -------------------------------------------------------------------------------------------------------------- workloads

  private rawIn(): void {
    const set: Match = { match: "set", set: sourceSet(this.family), ends: ["source", "source"], not: false };
    const check: Rule[] = [rule(RETURN, set)];
    if (this.family === 6) {
      const types = [...NEIGHBOUR_TYPES, MLDV2_REPORT].map((type) =>
        rule(RETURN, isProtocol(PROTOCOLS.ICMPv6), { match: "icmp", type, code: null, not: false })
      );
      const aside = this.to("raw", [...types, rule(DROP)]);
      for (const net of [LINK_LOCAL, UNSPECIFIED]) {
        check.push(rule(aside, isProtocol(PROTOCOLS.ICMPv6), { match: "net", end: "source", net, not: false }));
      }
    }
    check.push(rule(DROP));
    // Unknown ones have no address.
    const pods = this.to("raw", check);
    const names = new Map<string, readonly Target[]>();
    const star = this.untracked("ingress", this.hosts.star);
    for (const [name, endpoint] of this.hosts.named) {
      if (!name.startsWith(POD_PREFIX)) names.set(name, [this.untracked("ingress", endpoint) ?? RETURN]);
    }
    if (star !== undefined && !names.has("lo")) names.set("lo", [RETURN]);
    for (const name of this.workloads.keys()) {
      if (!name.startsWith(POD_PREFIX)) names.set(name, [pods]);
    }
    this.hook("raw", "PREROUTING", "raw-in", [
      ...this.marks("ingress") ? [rule(this.setPassed(false))] : [],
      ...this.tree("raw", { way: "in", names, otherPods: pods, others: star }),
    ]);
  }

  private forward(): void {
    const names = (way: "in" | "out"): Map<string, LeafRules> => {
      const direction = way === "in" ? "egress" : "ingress";
      return new Map([...this.workloads].map(([name, workload]) => {
        if (workload === undefined) return [name, (matches: readonly Match[]) => [rule(DROP, ...matches)]] as const;
        const list = this.to("filter", this.workloadList(workload[direction], direction));
        // What a pod sends to itself meets no policy.
        const itself: Match = { match: "interface", way: way === "in" ? "out" : "in", name, prefix: false };
        return [
          name,
          (matches: readonly Match[]) => [rule(RETURN, ...matches, itself), rule(list, ...matches)],
        ] as const;
      }));
    };
    const side = (way: "in" | "out") =>
      jump(this.chain("filter", this.tree("filter", { way, names: names(way), otherPods: DROP, others: undefined })));
    this.hook("filter", "FORWARD", "forward", [
      ...this.cutFlows(),
      KNOWN_FLOWS,
      ...this.refusals(),
      ...this.hostForward("ingress"),
      rule(side("in")),
      rule(side("out")),
      ...this.hostForward("egress"),
    ]);
  }

  private input(): void {
    const names = new Map<string, readonly Target[]>();
    const failsafe = this.failsafe("inbound", "destination");
    const judge = (endpoint: DesiredHostEndpoint) =>
      this.to("filter", this.besideNeighbours("filter", this.hostList(endpoint.ingress, "ingress", failsafe)));
    for (const [name, endpoint] of this.hosts.named) {
      if (!name.startsWith(POD_PREFIX)) names.set(name, [judge(endpoint)]);
    }
    const { star } = this.hosts;
    if (star !== undefined && !names.has("lo")) names.set("lo", [RETURN]);
    for (const [name, workload] of this.workloads) {
      names.set(name, [
        workload === undefined
          ? DROP
          : this.to("filter", this.besideNeighbours("filter", this.workloadList(workload.egress, "egress"))),
      ]);
    }
    this.hook("filter", "INPUT", "input", [
      ...this.cutFlows("established"),
      KNOWN_FLOWS,
      ...this.refusals(),
      ...this.tree("filter", { way: "in", names, otherPods: DROP, others: star && judge(star) }),
    ]);
  }

  // --------------------------------------------------------------------------------------------------------- host endpoints

  private output(): void {
    const cut = this.cutFlows("established");
    const refusals = this.refusals();
    if (!this.hasHosts) {
      const rules = [...cut, ...refusals];
      if (rules.length > 0) this.hook("filter", "OUTPUT", "output", rules);
      return;
    }
    const failsafe = this.failsafe("outbound", "destination");
    const judge = (endpoint: DesiredHostEndpoint) =>
      this.to("filter", this.besideNeighbours("filter", this.hostList(endpoint.egress, "egress", failsafe)));
    this.hook("filter", "OUTPUT", "output", [...cut, KNOWN_FLOWS, ...refusals, ...this.hostOut("filter", judge)]);
  }

  /** What the node sends; towards its pods as well, which only the endpoint of every interface stands for. */
  private hostOut(
    table: TableName,
    judge: (endpoint: DesiredHostEndpoint) => Target | undefined,
  ): readonly Rule[] {
    const { named, star } = this.hosts;
    const others = star && judge(star);
    const names = new Map<string, readonly Target[]>();
    if (others !== undefined) names.set("lo", [RETURN]);
    for (const [name, endpoint] of named) {
      if (!this.workloads.has(name)) names.set(name, [judge(endpoint) ?? RETURN]);
    }
    return this.tree(table, { way: "out", names, otherPods: others, others });
  }

  private hostForward(direction: Direction): readonly Rule[] {
    const listOf = (endpoint: DesiredHostEndpoint | undefined) =>
      direction === "ingress" ? endpoint?.forwardIngress : endpoint?.forwardEgress;
    const rules = this.hostTree("filter", direction, (endpoint) => {
      const list = listOf(endpoint);
      // Forwarded traffic has no failsafe ports.
      return list && this.to("filter", this.hostList(list, direction, []));
    });
    return rules.length === 0 ? [] : [rule(jump(this.chain("filter", rules)))];
  }

  /** By host endpoints' interfaces; pods' are none of theirs. Empty where none has anything to say. */
  private hostTree(
    table: TableName,
    direction: Direction,
    judge: (endpoint: DesiredHostEndpoint) => Target | undefined,
  ): readonly Rule[] {
    const { named, star } = this.hosts;
    const others = star && judge(star);
    const names = new Map<string, readonly Target[]>();
    let judged = others !== undefined;
    for (const [name, endpoint] of named) {
      if (name.startsWith(POD_PREFIX)) continue;
      const to = judge(endpoint);
      if (to !== undefined) judged = true;
      names.set(name, [to ?? RETURN]);
    }
    if (!judged) return [];
    if (others !== undefined) {
      if (!names.has("lo")) names.set("lo", [RETURN]);
      for (const name of this.workloads.keys()) if (!name.startsWith(POD_PREFIX)) names.set(name, [RETURN]);
    } else for (const name of this.workloads.keys()) names.delete(name);
    return this.tree(table, { way: direction === "ingress" ? "in" : "out", names, otherPods: undefined, others });
  }

  /** A list behind what host endpoints have before it. */
  private hostList(list: PolicyList, direction: Direction, failsafe: readonly Rule[]): readonly Rule[] {
    const marked = this.marks(direction) ? [rule(RETURN, this.isPassed)] : [];
    return [...marked, INVALID, ...failsafe, rule(this.list("filter", list, direction))];
  }

  /** Whether some host endpoint has policy before connection tracking or DNAT: it then marks what it allows. */
  private marks(direction: Direction): boolean {
    return [...this.hosts.named.values(), this.hosts.star].some((endpoint) =>
      endpoint !== undefined &&
      (direction === "ingress" ? endpoint.untrackedIngress ?? endpoint.preDnat : endpoint.untrackedEgress) !== undefined
    );
  }

  private get isPassed(): Match {
    return { match: "mark", mask: this.options.passedMark, not: false };
  }

  private setPassed(passed: boolean): Target {
    const { passedMark } = this.options;
    return { target: "mark", value: passed ? passedMark : 0, mask: passedMark };
  }

  private preDnat(): void {
    if (![...this.hosts.named.values(), this.hosts.star].some((endpoint) => endpoint?.preDnat !== undefined)) return;
    const failsafe = this.failsafe("inbound", "destination");
    const passed = this.to("mangle", [rule(this.setPassed(true))]);
    const endings: Endings = { allow: passed, deny: DROP, next: RETURN };
    const rules = this.hostTree("mangle", "ingress", ({ preDnat }) =>
      preDnat &&
      this.to(
        "mangle",
        this.besideNeighbours("mangle", [...failsafe, rule(this.list("mangle", preDnat, "ingress", endings))]),
      ));
    this.hook("mangle", "PREROUTING", "pre-dnat", [KNOWN_FLOWS, rule(RETURN, this.isPassed), ...rules]);
  }

  private untracked(direction: Direction, endpoint: DesiredHostEndpoint | undefined): Target | undefined {
    const list = direction === "ingress" ? endpoint?.untrackedIngress : endpoint?.untrackedEgress;
    if (list === undefined) return undefined;
    const passed = this.to("raw", [rule({ target: "noTrack" }), rule(this.setPassed(true))]);
    const endings: Endings = { allow: passed, deny: DROP, next: RETURN };
    // Without flows an answer is known by its source port only.
    const [to, back] = direction === "ingress" ? ["inbound", "outbound"] as const : ["outbound", "inbound"] as const;
    return this.to(
      "raw",
      this.besideNeighbours("raw", [
        ...this.failsafe(to, "destination"),
        ...this.failsafe(back, "source"),
        rule(this.list("raw", list, direction, endings)),
      ]),
    );
  }

  private rawOut(): void {
    if (!this.marks("egress")) return;
    this.hook("raw", "OUTPUT", "raw-out", [
      rule(this.setPassed(false)),
      ...this.hostOut("raw", (endpoint) => this.untracked("egress", endpoint)),
    ]);
  }

  private failsafe(which: "inbound" | "outbound", end: End): readonly Rule[] {
    const byProtocol = new Map<number, number[]>();
    for (const { protocol, port } of this.state.failsafe[which] as readonly ProtocolPort[]) {
      if (!hasPorts(protocol)) continue;
      const ports = byProtocol.get(protocol);
      if (ports === undefined) byProtocol.set(protocol, [port]);
      else ports.push(port);
    }
    return [...byProtocol].flatMap(([protocol, ports]) =>
      portMatches(protocol, end, [...new Set(ports)].sort((a, b) => a - b).map((port) => ({ first: port, last: port })))
        .map((matches) => rule(RETURN, isProtocol(protocol), ...matches))
    );
  }

  // -------------------------------------------------------------------------------------------------------------- cut flows

  /**
   * Before what lets established flows through. `only`: a state; where the node itself sends and receives, the resets that it
   * makes (related, not established) must pass.
   */
  private cutFlows(only?: "established"): readonly Rule[] {
    const { cutMark } = this.options;
    if (cutMark === undefined) return [];
    const end = this.to("filter", [rule({ target: "tcpReset" }, isProtocol(PROTOCOLS.TCP)), rule(DROP)]);
    // Strangers' flows may carry any mark.
    const names = new Map(
      [...this.workloads.keys()].map((name) => [name, [end]] as const)
        .filter(([name]) => !name.startsWith(POD_PREFIX)),
    );
    const ours = this.hasHosts
      ? [rule(end)]
      : (["in", "out"] as const).map((way) =>
        rule(jump(this.chain("filter", this.tree("filter", { way, names, otherPods: end, others: undefined }))))
      );
    const cut = jump(this.chain("filter", ours));
    return [rule(cut, { match: "flowMark", mask: cutMark, not: false }, ...only === undefined ? [] : [inState(only)])];
  }

  // ------------------------------------------------------------------------------------------------- services, masquerade

  /** Before policy: what has come to a service without backends has nowhere to go. */
  private refusals(): readonly Rule[] {
    const { services } = this.options;
    if (services === undefined || !this.state.hasServices) return [];
    return refusalRules(services, (rules) => this.chain("filter", rules));
  }

  private postrouting(): void {
    const { services } = this.options;
    const ofServices = services !== undefined && this.state.hasServices
      ? postroutingRules(services, sourceSet(this.family), (rules) => this.chain("nat", rules))
      : [];
    const rules = [...ofServices, ...this.masquerade()];
    if (rules.length > 0) this.hook("nat", "POSTROUTING", "postrouting", rules);
  }

  private masquerade(): readonly Rule[] {
    const ours = (nets: readonly Cidr[]) => maximalNets(ofFamily(nets, this.family));
    const from = ours(this.state.masquerade.sources), within = ours(this.state.masquerade.inside);
    if (from.length === 0) return [];
    if (!this.options.nat) {
      this.problems.add("this kernel cannot masquerade: pods' packets leave with their own addresses");
      return [];
    }
    const matches = [inNets(this.family, "source", from, false, this.uses)];
    if (within.length > 0) matches.push(inNets(this.family, "destination", within, true, this.uses));
    return [rule({ target: "masquerade" }, ...matches)];
  }
}

const isInterfaceName = (name: string): boolean => /^[\x21-\x7e]{1,15}$/.test(name);
