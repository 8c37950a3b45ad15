/**
 * `DesiredState` as the table `inet manx`. Pure: equal states give equal rulesets, whatever came before. What is unchanged
 * from one call to the next is the same object, so that `diff` need not look into it.
 */
import { type Address, type Cidr, cidrFamily, type Family, parseAddress } from "../../src/model/address.ts";
import type {
  AddressSet,
  DesiredHostEndpoint,
  DesiredState,
  DesiredWorkload,
  PolicyList,
  ProtocolPort,
  SetId,
} from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import type { PersistentMap } from "../../src/model/persistent_map.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import {
  type AddressForm,
  addressForm,
  countLengths,
  hasFamily,
  isHost,
  type LengthCounts,
  maximalNets,
  NetElements,
  PortElements,
  shortLengths,
} from "./address_elements.ts";
import {
  ACCEPT,
  type AddressSetUse,
  type Compiled,
  compileList,
  DROP,
  type Endings,
  FILTER_ENDINGS,
  goto,
  isFamily,
  isProtocol,
  netSetName,
  verdict,
} from "./compile.ts";
import { portBytes } from "./ports.ts";
import {
  type ElementKey,
  elementsOf,
  type ElementValue,
  type Expression,
  interfaceKey,
  type KeyField,
  type NftChain,
  type NftSet,
  type Rule,
  type Ruleset,
  type Verdict,
} from "./ruleset.ts";

export interface RenderOptions {
  /** NFLOG group of `log` rules. */
  readonly logGroup: number;
  /** One bit of the packet mark: policy before tracking or DNAT has allowed the packet at its host endpoint. */
  readonly passedMark: number;
}

export interface Rendered {
  readonly ruleset: Ruleset;
  /** What of the state could not be rendered, or not in its best form; one line each. */
  readonly problems: readonly string[];
}

/** Interfaces with this prefix are pods', known or not: architecture.md, "Names that the kernel sees". */
export const POD_PREFIX = "mx";
/** IFNAMSIZ of include/uapi/linux/if.h, less the terminator. */
const INTERFACE_NAME_MAX = 15;

const LINK_LOCAL = parseAddress("fe80::") as Address;

const iifname = (dreg = 0): Expression => ({ op: "meta", key: "iifname", dreg });
const oifname = (dreg = 0): Expression => ({ op: "meta", key: "oifname", dreg });
const ctState = (dreg = 0): Expression => ({ op: "ct", key: "state", dreg });
const lookup = (set: string, invert = false): Expression => ({ op: "lookup", set, sreg: 0, invert });
const vmap = (set: string): Expression => ({ op: "vmap", set, sreg: 0 });
const isPod = (load: Expression): readonly Expression[] => [load, { op: "cmp", sreg: 0, is: "eq", data: POD_PREFIX }];
const isInterface = (load: Expression, name: string): readonly Expression[] => [
  load,
  { op: "cmp", sreg: 0, is: "eq", data: interfaceKey(name) },
];
/** IPv6 source or destination, IPv4 the same: header offsets of RFC 8200 section 3 and RFC 791 section 3.1. */
const addressAt = (family: Family, end: "source" | "destination", dreg: number): Expression => ({
  op: "payload",
  base: "network",
  offset: family === 4 ? (end === "source" ? 12 : 16) : (end === "source" ? 8 : 24),
  length: family === 4 ? 4 : 16,
  dreg,
});

/** NF_CT_STATE_BIT of include/uapi/linux/netfilter/nf_conntrack_common.h, as `ct state` gives them: host byte order. */
const CT_STATE = {
  invalid: "\x01\0\0\0",
  established: "\x02\0\0\0",
  related: "\x04\0\0\0",
  untracked: "\x40\0\0\0",
} as const;

/** A 32-bit number as registers hold it: host byte order. */
const hostWord = (value: number): string =>
  String.fromCharCode(value & 0xff, value >>> 8 & 0xff, value >>> 16 & 0xff, value >>> 24);

const tableSet = (
  fields: readonly KeyField[],
  entries: Iterable<readonly [ElementKey, ElementValue]>,
  kind: { readonly map?: boolean; readonly interval?: boolean } = {},
): NftSet => ({ fields, interval: kind.interval ?? false, map: kind.map ?? false, elements: elementsOf(entries) });

/** Holds what earlier states left for sharing; its output does not depend on it. */
export class Renderer {
  private lists = new WeakMap<PolicyList, Map<string, Compiled>>();
  private counts = new Map<SetId, LengthCounts>();
  private nextCounts = new Map<SetId, LengthCounts>();
  private addressSets = new Map<string, { readonly use: AddressSetUse; readonly set: NftSet }>();

  constructor(readonly options: RenderOptions) {}

  render(state: DesiredState): Rendered {
    const build = new Build(this, state);
    build.table();
    const addressSets = new Map<string, { readonly use: AddressSetUse; readonly set: NftSet }>();
    for (const [name, use] of build.uses) {
      const set = this.addressSet(state, use, this.addressSets.get(name)?.set);
      addressSets.set(name, { use, set });
      build.sets.set(name, set);
    }
    this.addressSets = addressSets;
    this.counts = this.nextCounts;
    this.nextCounts = new Map();
    return { ruleset: { sets: build.sets, chains: build.chains }, problems: [...build.problems].sort() };
  }

  compile(state: DesiredState, list: PolicyList, endings: Endings): Compiled {
    const key = JSON.stringify(endings);
    let versions = this.lists.get(list);
    if (versions === undefined) this.lists.set(list, versions = new Map());
    const cached = versions.get(key);
    if (cached !== undefined && this.stands(state, cached)) return cached;
    const suffix = endings === FILTER_ENDINGS ? list.id : `${list.id}|${key}`;
    const name = /^[A-Za-z0-9_-]{1,64}$/.test(suffix) ? `list-${suffix}` : `list-${digest(suffix)}`;
    const form = (family: Family, ids: readonly SetId[], nets: readonly Cidr[]) => this.form(state, family, ids, nets);
    const compiled = compileList(list, name, { endings, form, logGroup: this.options.logGroup });
    versions.set(key, compiled);
    return compiled;
  }

  /** Whether the sets it looks up still have the forms it was compiled for. */
  private stands(state: DesiredState, compiled: Compiled): boolean {
    for (const use of compiled.addressSets.values()) {
      if (use.kind !== "net" || use.ids.length === 0) continue;
      const form = this.form(state, use.family, use.ids, use.nets);
      if (form.interval !== use.form.interval || form.capacity !== use.form.capacity) return false;
    }
    return true;
  }

  private form(state: DesiredState, family: Family, ids: readonly SetId[], nets: readonly Cidr[]): AddressForm {
    return addressForm(family, ids.map((id) => this.lengths(state, id)), nets);
  }

  private lengths(state: DesiredState, id: SetId): LengthCounts {
    let counts = this.nextCounts.get(id);
    if (counts === undefined) {
      counts = countLengths(state.sets.get(id) ?? emptySet(id), this.counts.get(id));
      this.nextCounts.set(id, counts);
    }
    return counts;
  }

  private addressSet(state: DesiredState, use: AddressSetUse, before: NftSet | undefined): NftSet {
    if (use.kind === "port") {
      const members = (state.sets.get(use.id) ?? emptySet(use.id)).members;
      const known = before?.elements;
      if (before !== undefined && known instanceof PortElements && known.source === members) return before;
      return {
        fields: [`ipv${use.family}_addr`, "inet_proto", "inet_service"],
        interval: false,
        map: false,
        elements: new PortElements(use.family, members),
      };
    }
    const sources = use.ids.map((id) => (state.sets.get(id) ?? emptySet(id)).members);
    const known = before?.elements;
    if (
      before !== undefined && known instanceof NetElements && known.sources.every((source, i) => source === sources[i])
    ) return before;
    const filled = sources.filter((_, i) => hasFamily(this.lengths(state, use.ids[i]!), use.family));
    const lengths = new Set(use.ids.flatMap((id) => shortLengths(this.lengths(state, id), use.family)));
    for (const net of use.nets) if (!isHost(net)) lengths.add(net.charCodeAt(net.length - 1));
    const elements = new NetElements(
      use.family,
      sources,
      filled,
      use.nets,
      [...lengths].sort((a, b) => a - b),
      use.form.interval,
    );
    return { fields: [`ipv${use.family}_addr`], ...use.form, map: false, elements };
  }
}

const NO_MEMBERS: AddressSet["members"] = persistentMap();
const emptySet = (id: SetId): AddressSet => ({ id, kind: "net", title: "", members: NO_MEMBERS });

/** One render: the table as it grows. */
class Build {
  readonly sets = new Map<string, NftSet>();
  readonly chains = new Map<string, NftChain>();
  readonly uses = new Map<string, AddressSetUse>();
  readonly problems = new Set<string>();

  constructor(readonly renderer: Renderer, readonly state: DesiredState) {}

  table(): void {
    const workloads = this.usableWorkloads();
    const hosts = this.hostInterfaces();
    this.states();
    this.workloadSets(workloads);
    this.rawPrerouting(hosts);
    this.preDnat(hosts);
    this.input(hosts);
    this.forward(hosts);
    this.output(hosts);
    this.masquerade();
  }

  /** Goes to what a list compiles to, which is added. */
  private list(list: PolicyList, endings: Endings = FILTER_ENDINGS): Verdict {
    const compiled = this.renderer.compile(this.state, list, endings);
    for (const [name, chain] of compiled.chains) this.chains.set(name, chain);
    for (const [name, set] of compiled.fixedSets) this.sets.set(name, set);
    for (const [name, use] of compiled.addressSets) this.uses.set(name, use);
    for (const note of compiled.notes) this.problems.add(`policy list ${list.id}: ${note}`);
    return goto(compiled.head);
  }

  private chain(rules: readonly Rule[]): Verdict {
    const name = `c-${digest(JSON.stringify(rules))}`;
    this.chains.set(name, { rules });
    return goto(name);
  }

  private base(
    name: string,
    hook: "prerouting" | "input" | "forward" | "output" | "postrouting",
    priority: number,
    rules: readonly Rule[],
    type: "filter" | "nat" = "filter",
  ): void {
    this.chains.set(name, { base: { type, hook, priority, policy: "accept" }, rules });
  }

  // ---------------------------------------------------------------------------------------------------------- workloads

  /** By interface name; `undefined` where two claim one interface, which then is cut off. */
  private usableWorkloads(): ReadonlyMap<string, DesiredWorkload | undefined> {
    const byInterface = new Map<string, DesiredWorkload | undefined>();
    for (const workload of sortedValues(this.state.workloads)) {
      const name = workload.interfaceName;
      if (name === "" || name.length > INTERFACE_NAME_MAX) {
        this.problems.add(
          `workload ${workload.id}: found interface ${
            JSON.stringify(name)
          }, wanted a name of 1 to ${INTERFACE_NAME_MAX} bytes`,
        );
      } else if (byInterface.has(name)) {
        this.problems.add(
          `workload ${workload.id}: interface ${name} is another workload's too; its packets are dropped`,
        );
        byInterface.set(name, undefined);
      } else byInterface.set(name, workload);
    }
    return new Map([...byInterface].sort(([a], [b]) => a < b ? -1 : 1));
  }

  private workloadSets(workloads: ReadonlyMap<string, DesiredWorkload | undefined>): void {
    const from: [string, Verdict][] = [], to: [string, Verdict][] = [];
    const names: [string, true][] = [], self: [string, true][] = [];
    const sources: { 4: [string, true][]; 6: [string, true][] } = { 4: [], 6: [] };
    for (const [name, workload] of workloads) {
      const key = interfaceKey(name);
      names.push([key, true]);
      if (workload === undefined) {
        from.push([key, DROP]);
        to.push([key, DROP]);
        continue;
      }
      from.push([key, this.list(workload.egress)]);
      to.push([key, this.list(workload.ingress)]);
      self.push([key + key, true]);
      for (const address of workload.addresses) sources[address.length === 4 ? 4 : 6].push([key + address, true]);
    }
    this.sets.set("workloads", tableSet(["ifname"], names));
    this.sets.set("from-workload", tableSet(["ifname"], from, { map: true }));
    this.sets.set("to-workload", tableSet(["ifname"], to, { map: true }));
    this.sets.set("self", tableSet(["ifname", "ifname"], self));
    this.sets.set("source4", tableSet(["ifname", "ipv4_addr"], sources[4]));
    this.sets.set("source6", tableSet(["ifname", "ipv6_addr"], sources[6]));
  }

  /** Established and related flows are through; invalid packets of workloads are not; neighbour discovery always is. */
  private states(): void {
    const map = (name: string, invalid: string, neighbours: string) =>
      this.sets.set(
        name,
        tableSet(["ct_state"], [
          [CT_STATE.invalid, { kind: "jump", chain: invalid }],
          [CT_STATE.established, ACCEPT],
          [CT_STATE.related, ACCEPT],
          [CT_STATE.untracked, { kind: "jump", chain: neighbours }],
        ], { map: true }),
      );
    map("state-forward", "invalid-forward", "neighbours");
    map("state-input", "invalid-input", "neighbours-input");
    const fromPod: readonly Rule[] = [
      [iifname(), lookup("workloads"), verdict(DROP)],
      [...isPod(iifname()), verdict(DROP)],
    ];
    const toPod: readonly Rule[] = [
      [oifname(), lookup("workloads"), verdict(DROP)],
      [...isPod(oifname()), verdict(DROP)],
    ];
    this.chains.set("invalid-forward", { rules: [...fromPod, ...toPod] });
    this.chains.set("invalid-input", { rules: fromPod });
    // RFC 4861, RFC 2710: the kernel leaves them untracked.
    const neighbour: Rule = [...isFamily(6), ...isProtocol(58), ...icmpv6Type("\x82", "\x88"), verdict(ACCEPT)];
    this.chains.set("neighbours", { rules: [neighbour] });
    // In `input` host endpoints come after workloads, and theirs is not exempt.
    this.chains.set("neighbours-input", { rules: [[iifname(), lookup("workloads"), ...neighbour]] });
  }

  private rawPrerouting(hosts: HostInterfaces): void {
    const neighbour: readonly Expression[] = [
      ...isFamily(6),
      ...isProtocol(58),
      { op: "payload", base: "transport", offset: 0, length: 1, dreg: 0 },
      lookup("unspoofable-types"),
    ];
    // 130 … 136 and MLDv2 reports (RFC 3810), which a pod sends from its link-local or from no address.
    this.sets.set(
      "unspoofable-types",
      tableSet(
        ["icmpv6_type"],
        [0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x8f].map((type) => [String.fromCharCode(type), true]),
      ),
    );
    this.chains.set("source-check", {
      rules: [
        [...isFamily(4), iifname(), addressAt(4, "source", 4), lookup("source4"), verdict(ACCEPT)],
        [...isFamily(6), iifname(), addressAt(6, "source", 4), lookup("source6"), verdict(ACCEPT)],
        [
          ...neighbour,
          addressAt(6, "source", 0),
          { op: "bitwise", sreg: 0, dreg: 0, mask: "\xff\xc0" + "\0".repeat(14), xor: "\0".repeat(16) },
          { op: "cmp", sreg: 0, is: "eq", data: LINK_LOCAL },
          verdict(ACCEPT),
        ],
        [
          ...neighbour,
          addressAt(6, "source", 0),
          { op: "cmp", sreg: 0, is: "eq", data: "\0".repeat(16) },
          verdict(ACCEPT),
        ],
        [verdict(DROP)],
      ],
    });
    const rules: Rule[] = [
      [iifname(), lookup("workloads"), verdict(goto("source-check"))],
      [...isPod(iifname()), verdict(DROP)],
    ];
    this.untracked(hosts, "ingress", rules);
    this.base("raw-prerouting", "prerouting", -300, rules);
  }

  private forward(hosts: HostInterfaces): void {
    const own: Rule = [iifname(), oifname(4), lookup("self"), verdict(ACCEPT)];
    this.base("forward-from", "forward", -1, [
      [ctState(), vmap("state-forward")],
      own,
      [iifname(), vmap("from-workload")],
      [...isPod(iifname()), verdict(DROP)],
    ]);
    this.base("forward-to", "forward", 0, [
      [ctState(), vmap("state-forward")],
      own,
      [oifname(), vmap("to-workload")],
      [...isPod(oifname()), verdict(DROP)],
    ]);
    this.hostChain(
      "host-forward-in",
      "forward",
      -2,
      "ingress",
      hosts,
      (endpoint) => endpoint.forwardIngress && this.hostList(endpoint.forwardIngress),
    );
    this.hostChain(
      "host-forward-out",
      "forward",
      1,
      "egress",
      hosts,
      (endpoint) => endpoint.forwardEgress && this.hostList(endpoint.forwardEgress),
    );
  }

  private input(hosts: HostInterfaces): void {
    const rules: Rule[] = [
      [ctState(), vmap("state-input")],
      [iifname(), vmap("from-workload")],
      [...isPod(iifname()), verdict(DROP)],
    ];
    if (hosts.any) {
      const failsafe = this.failsafe("inbound");
      rules.push(...this.passed(hosts, "ingress"));
      rules.push(
        ...this.hostDispatch("host-input", "ingress", hosts, (endpoint) => this.hostList(endpoint.ingress, [failsafe])),
      );
    }
    this.base("input", "input", 0, rules);
  }

  private output(hosts: HostInterfaces): void {
    if (!hosts.any) return;
    const failsafe = this.failsafe("outbound");
    const rules: Rule[] = [
      [ctState(), vmap("state-host")],
      ...this.passed(hosts, "egress"),
      ...this.hostDispatch(
        "host-output",
        "egress",
        hosts,
        (endpoint) => this.hostList(endpoint.egress, [failsafe]),
        true,
      ),
    ];
    this.stateHost();
    this.base("output", "output", 0, rules);
    const raw: Rule[] = [];
    this.untracked(hosts, "egress", raw);
    if (raw.length > 0) this.base("raw-output", "output", -300, raw);
  }

  // ------------------------------------------------------------------------------------------------------ host endpoints

  private hostInterfaces(): HostInterfaces {
    const named = new Map<string, DesiredHostEndpoint>();
    let star: DesiredHostEndpoint | undefined;
    for (const endpoint of sortedValues(this.state.hostEndpoints)) {
      const claim = (what: string) =>
        this.problems.add(`host endpoint ${endpoint.id}: ${what} is another host endpoint's already`);
      if (endpoint.interfaces === "*") {
        if (star === undefined) star = endpoint;
        else claim("every interface");
        continue;
      }
      for (const name of endpoint.interfaces) {
        if (name === "" || name.length > INTERFACE_NAME_MAX) {
          this.problems.add(
            `host endpoint ${endpoint.id}: found interface ${
              JSON.stringify(name)
            }, wanted a name of 1 to ${INTERFACE_NAME_MAX} bytes`,
          );
        } else if (named.has(name)) claim(`interface ${name}`);
        else named.set(name, endpoint);
      }
    }
    const sorted = new Map([...named].sort(([a], [b]) => a < b ? -1 : 1));
    return { named: sorted, star, any: star !== undefined || sorted.size > 0 };
  }

  private stateHost(): void {
    this.sets.set(
      "state-host",
      tableSet(["ct_state"], [
        [CT_STATE.established, ACCEPT],
        [CT_STATE.related, ACCEPT],
      ], { map: true }),
    );
  }

  /** A list behind what host endpoints have before it: invalid packets drop, failsafe ports are open. */
  private hostList(list: PolicyList, before: readonly Rule[] = []): Verdict {
    const invalid: Rule = [ctState(), { op: "cmp", sreg: 0, is: "eq", data: CT_STATE.invalid }, verdict(DROP)];
    return this.chain([invalid, ...before, [verdict(this.list(list))]]);
  }

  /** Whether some host endpoint has policy before connection tracking or DNAT: it then marks what it allows. */
  private marks(hosts: HostInterfaces, direction: "ingress" | "egress"): boolean {
    const has = (endpoint: DesiredHostEndpoint) =>
      direction === "ingress" ? endpoint.untrackedIngress ?? endpoint.preDnat : endpoint.untrackedEgress;
    return [...hosts.named.values(), hosts.star].some((endpoint) =>
      endpoint !== undefined && has(endpoint) !== undefined
    );
  }

  /** What was allowed before at its host endpoint meets no more of that endpoint's policy. */
  private passed(hosts: HostInterfaces, direction: "ingress" | "egress"): readonly Rule[] {
    if (!this.marks(hosts, direction)) return [];
    const bit = this.renderer.options.passedMark;
    return [[
      { op: "meta", key: "mark", dreg: 0 },
      { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(bit), xor: hostWord(0) },
      { op: "cmp", sreg: 0, is: "neq", data: hostWord(0) },
      verdict(ACCEPT),
    ]];
  }

  private setPassed(passed: boolean): readonly Expression[] {
    const bit = this.renderer.options.passedMark;
    return [
      { op: "meta", key: "mark", dreg: 0 },
      { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(~bit), xor: hostWord(passed ? bit : 0) },
      { op: "setMark", sreg: 0 },
    ];
  }

  /** Rules that send packets of host endpoints' interfaces on their way; none where no endpoint has anything to say. */
  private hostDispatch(
    mapName: string,
    direction: "ingress" | "egress",
    hosts: HostInterfaces,
    judge: (endpoint: DesiredHostEndpoint) => Verdict | undefined,
    starMeetsWorkloads = false,
  ): readonly Rule[] {
    const star = hosts.star === undefined ? undefined : judge(hosts.star);
    const entries: [string, Verdict][] = [];
    let judged = star !== undefined;
    for (const [name, endpoint] of hosts.named) {
      const to = judge(endpoint);
      if (to !== undefined) judged = true;
      entries.push([interfaceKey(name), to ?? ACCEPT]);
    }
    if (!judged) return [];
    const load = direction === "ingress" ? iifname() : oifname();
    const rules: Rule[] = [];
    if (entries.length > 0) {
      this.sets.set(mapName, tableSet(["ifname"], entries, { map: true }));
      rules.push([load, vmap(mapName)]);
    }
    if (star !== undefined) {
      if (!starMeetsWorkloads) {
        rules.push([load, lookup("workloads"), verdict(ACCEPT)], [...isPod(load), verdict(ACCEPT)]);
      }
      rules.push([...isInterface(load, "lo"), verdict(ACCEPT)], [verdict(star)]);
    }
    return rules;
  }

  private hostChain(
    name: string,
    hook: "forward" | "prerouting",
    priority: number,
    direction: "ingress" | "egress",
    hosts: HostInterfaces,
    judge: (endpoint: DesiredHostEndpoint) => Verdict | undefined,
  ): void {
    const rules = this.hostDispatch(name, direction, hosts, judge);
    if (rules.length === 0) return;
    this.stateHost();
    const passed = direction === "ingress" ? this.passed(hosts, direction) : [];
    this.base(name, hook, priority, [[ctState(), vmap("state-host")], ...passed, ...rules]);
  }

  private preDnat(hosts: HostInterfaces): void {
    const wanted = [...hosts.named.values(), hosts.star].some((endpoint) => endpoint?.preDnat !== undefined);
    if (!wanted) return;
    const failsafe = this.failsafe("inbound");
    this.chains.set("passed", { rules: [[...this.setPassed(true), verdict(ACCEPT)]] });
    const endings: Endings = { allow: goto("passed"), deny: DROP, next: ACCEPT };
    // After conntrack (-200), before dstnat (-100).
    this.hostChain(
      "pre-dnat",
      "prerouting",
      -150,
      "ingress",
      hosts,
      (endpoint) => endpoint.preDnat && this.chain([failsafe, [verdict(this.list(endpoint.preDnat, endings))]]),
    );
  }

  private untracked(hosts: HostInterfaces, direction: "ingress" | "egress", rules: Rule[]): void {
    const listOf = (endpoint: DesiredHostEndpoint) =>
      direction === "ingress" ? endpoint.untrackedIngress : endpoint.untrackedEgress;
    if (!this.marks(hosts, direction)) return;
    rules.push([...this.setPassed(false)]);
    if (
      ![...hosts.named.values(), hosts.star].some((endpoint) =>
        endpoint !== undefined && listOf(endpoint) !== undefined
      )
    ) return;
    this.chains.set("no-track", { rules: [[{ op: "notrack" }, ...this.setPassed(true), verdict(ACCEPT)]] });
    const endings: Endings = { allow: goto("no-track"), deny: DROP, next: ACCEPT };
    // Without flows an answer is known by its source port only.
    const failsafe = direction === "ingress"
      ? [this.failsafe("inbound"), this.failsafe("outbound", "source")]
      : [this.failsafe("outbound"), this.failsafe("inbound", "source")];
    rules.push(...this.hostDispatch(
      direction === "ingress" ? "host-raw-in" : "host-raw-out",
      direction,
      hosts,
      (endpoint) => {
        const list = listOf(endpoint);
        return list === undefined ? undefined : this.chain([...failsafe, [verdict(this.list(list, endings))]]);
      },
      direction === "egress",
    ));
  }

  private failsafe(which: "inbound" | "outbound", end: "source" | "destination" = "destination"): Rule {
    const name = `failsafe-${which}`;
    const key = ({ protocol, port }: ProtocolPort) =>
      String.fromCharCode(protocol) + "\0\0\0" + portBytes(port) + "\0\0";
    this.sets.set(
      name,
      tableSet(["inet_proto", "inet_service"], this.state.failsafe[which].map((port) => [key(port), true])),
    );
    return [
      { op: "meta", key: "l4proto", dreg: 0 },
      { op: "payload", base: "transport", offset: end === "source" ? 0 : 2, length: 2, dreg: 1 },
      lookup(name),
      verdict(ACCEPT),
    ];
  }

  // ----------------------------------------------------------------------------------------------------------- masquerade

  private masquerade(): void {
    const { sources, inside } = this.state.masquerade;
    const rules: Rule[] = [];
    for (const family of [4, 6] as const) {
      const ours = (nets: readonly Cidr[]) => maximalNets(nets.filter((net) => cidrFamily(net) === family));
      const from = ours(sources), within = ours(inside);
      if (from.length === 0) continue;
      const rule: Expression[] = [
        ...isFamily(family),
        addressAt(family, "source", 0),
        lookup(this.netSet(family, from)),
      ];
      if (within.length > 0) rule.push(addressAt(family, "destination", 0), lookup(this.netSet(family, within), true));
      rules.push([...rule, { op: "masquerade" }]);
    }
    if (rules.length > 0) this.base("postrouting", "postrouting", 100, rules, "nat");
  }

  private netSet(family: Family, nets: readonly Cidr[]): string {
    const form = addressForm(family, [], nets);
    const name = netSetName(family, [], nets, form);
    this.uses.set(name, { kind: "net", family, ids: [], nets, form });
    return name;
  }
}

interface HostInterfaces {
  /** By name, sorted. */
  readonly named: ReadonlyMap<string, DesiredHostEndpoint>;
  /** The endpoint of every other interface. */
  readonly star: DesiredHostEndpoint | undefined;
  readonly any: boolean;
}

const icmpv6Type = (from: string, to: string): readonly Expression[] => [
  { op: "payload", base: "transport", offset: 0, length: 1, dreg: 0 },
  { op: "range", sreg: 0, is: "eq", from, to },
];

const sortedValues = <V extends { readonly id: string }>(map: PersistentMap<string, V>): readonly V[] =>
  [...map.values()].sort((a, b) => a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
