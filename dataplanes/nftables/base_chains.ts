/**
 * What the table has whatever the workloads are: base chains, what leads into the workloads' chains, host endpoints, and
 * masquerading. Small, and rendered whole. Pure.
 */
import { type Address, type Cidr, cidrFamily, type Family, parseAddress } from "../../src/model/address.ts";
import type { DesiredHostEndpoint, DesiredState, PolicyList, ProtocolPort } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import type { Direction } from "../../src/model/rule.ts";
import { addressForm, maximalNets } from "./address_elements.ts";
import { FILTER_ENDINGS } from "./compile.ts";
import { ACCEPT, DROP, goto, isFamily, isProtocol, jump, verdict } from "./expressions.ts";
import { type AddressSetUse, type Endings, netSetName } from "./output.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
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
  type Verdict,
} from "./ruleset.ts";

export interface RenderOptions {
  /** NFLOG group of `log` rules. */
  readonly logGroup: number;
  /** One bit of the packet mark: policy before tracking or DNAT has allowed the packet at its host endpoint. */
  readonly passedMark: number;
  /** How flows that policy denies by now are cut; absent: nothing is. */
  readonly cut?: CutOptions;
  /** Absent: `flat`. `linear`: lists rule by rule, as they are written. */
  readonly shape?: "flat" | "linear";
}

export interface CutOptions {
  /** One bit of the connection mark: no packet of a flow that carries it passes. */
  readonly mark: number;
  /** Senders of cut TCP flows are told by a reset. */
  readonly resets: boolean;
}

/** Interfaces with this prefix are pods', known or not: architecture.md, "Names that the kernel sees". */
export const POD_PREFIX = "mx";
/** IFNAMSIZ of include/uapi/linux/if.h, less the terminator. */
export const INTERFACE_NAME_MAX = 15;

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

/** Established and related flows are through: of every packet asked first, so by the cheapest means there is. */
const THROUGH: Rule = [
  ctState(),
  { op: "bitwise", sreg: 0, dreg: 0, mask: "\x06\0\0\0", xor: "\0\0\0\0" },
  { op: "cmp", sreg: 0, is: "neq", data: "\0\0\0\0" },
  verdict(ACCEPT),
];
const isState = (state: keyof typeof CT_STATE): readonly Expression[] => [
  ctState(),
  { op: "cmp", sreg: 0, is: "eq", data: CT_STATE[state] },
];

/** A 32-bit number as registers hold it: host byte order. */
const hostWord = (value: number): string =>
  String.fromCharCode(value & 0xff, value >>> 8 & 0xff, value >>> 16 & 0xff, value >>> 24);

export const tableSet = (
  fields: readonly KeyField[],
  entries: Iterable<readonly [ElementKey, ElementValue]>,
  kind: { readonly map?: boolean; readonly interval?: boolean } = {},
): NftSet => ({ fields, interval: kind.interval ?? false, map: kind.map ?? false, elements: elementsOf(entries) });

/** The base chains of a state, as they grow. `compile` gives the name of the chain that a list compiles to. */
export class BaseChains {
  readonly sets = new Map<string, NftSet>();
  readonly chains = new Map<string, NftChain>();
  readonly addressSets = new Map<string, AddressSetUse>();
  readonly problems = new Set<string>();

  constructor(
    readonly state: Pick<DesiredState, "hostEndpoints" | "failsafe" | "masquerade">,
    readonly options: RenderOptions,
    readonly compile: (list: PolicyList, direction: Direction, endings: Endings) => string,
  ) {
    const hosts = this.hostInterfaces();
    this.states();
    this.cut(hosts);
    this.rawPrerouting(hosts);
    this.preDnat(hosts);
    this.input(hosts);
    this.forward(hosts);
    this.output(hosts);
    this.masquerade();
  }

  private list(list: PolicyList, direction: Direction, endings: Endings = FILTER_ENDINGS): Verdict {
    return goto(this.compile(list, direction, endings));
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

  /** Established and related flows are through; invalid packets of workloads are not. */
  private states(): void {
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
    this.chains.set("neighbours", { rules: [[iifname(), lookup("workloads"), ...NEIGHBOUR_DISCOVERY]] });
  }

  /** Where the packets of cut flows end. */
  private cut(hosts: HostInterfaces): void {
    const { cut } = this.options;
    if (cut === undefined) return;
    const end = goto("cut-end");
    const reset: readonly Rule[] = cut.resets ? [[...isProtocol(PROTOCOLS.TCP), { op: "tcpReset" }]] : [];
    this.chains.set("cut-end", { rules: [...reset, [verdict(DROP)]] });
    // Strangers' flows may carry any mark.
    const ours: readonly Rule[] = [iifname(), oifname()].flatMap((load) => [
      [load, lookup("workloads"), verdict(end)],
      [...isPod(load), verdict(end)],
    ]);
    this.chains.set("cut", { rules: hosts.any ? [[verdict(end)]] : ours });
  }

  /**
   * Before what lets established flows through. `only`: a state; where the node itself sends and receives, the resets that
   * it makes (related, not established) must pass.
   */
  private cutFlows(only?: string): readonly Rule[] {
    const { cut } = this.options;
    if (cut === undefined) return [];
    const state: readonly Expression[] = only === undefined
      ? []
      : [ctState(), { op: "cmp", sreg: 0, is: "eq", data: only }];
    return [[
      { op: "ct", key: "mark", dreg: 0 },
      { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(cut.mark), xor: hostWord(0) },
      { op: "cmp", sreg: 0, is: "neq", data: hostWord(0) },
      ...state,
      verdict({ kind: "jump", chain: "cut" }),
    ]];
  }

  private rawPrerouting(hosts: HostInterfaces): void {
    const neighbour: readonly Expression[] = [
      ...isFamily(6),
      ...isProtocol(58),
      { op: "payload", base: "transport", offset: 0, length: 1, dreg: 0 },
      lookup("unspoofable-types"),
      iifname(),
      lookup("workloads"),
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
    // By name where that says it: a comparison costs less than a lookup, and this is asked of every packet.
    const rules: Rule[] = [
      [...isPod(iifname()), verdict(goto("source-check"))],
      [iifname(), lookup("workloads"), verdict(goto("source-check"))],
    ];
    this.untracked(hosts, "ingress", rules);
    this.base("raw-prerouting", "prerouting", -300, rules);
  }

  private forward(hosts: HostInterfaces): void {
    const own: Rule = [iifname(), oifname(4), lookup("self"), verdict(ACCEPT)];
    this.base("forward-from", "forward", -1, [
      ...this.cutFlows(),
      THROUGH,
      [...isState("invalid"), verdict(jump("invalid-forward"))],
      own,
      [iifname(), vmap("from-workload")],
      [...isPod(iifname()), verdict(DROP)],
    ]);
    this.base("forward-to", "forward", 0, [
      THROUGH,
      [...isState("invalid"), verdict(jump("invalid-forward"))],
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
      (endpoint) => endpoint.forwardIngress && this.hostList(endpoint.forwardIngress, "ingress"),
    );
    this.hostChain(
      "host-forward-out",
      "forward",
      1,
      "egress",
      hosts,
      (endpoint) => endpoint.forwardEgress && this.hostList(endpoint.forwardEgress, "egress"),
    );
  }

  private input(hosts: HostInterfaces): void {
    const rules: Rule[] = [
      ...this.cutFlows(CT_STATE.established),
      THROUGH,
      [...isState("invalid"), verdict(jump("invalid-input"))],
      // The kernel tracks no neighbour discovery. What is forwarded is none, whatever its type says: neighbours share a link.
      [...isState("untracked"), verdict(jump("neighbours"))],
      [iifname(), vmap("from-workload")],
      [...isPod(iifname()), verdict(DROP)],
    ];
    if (hosts.any) {
      const failsafe = this.failsafe("inbound");
      rules.push(...this.passed(hosts, "ingress"));
      rules.push(
        ...this.hostDispatch(
          "host-input",
          "ingress",
          hosts,
          (endpoint) => this.hostList(endpoint.ingress, "ingress", [failsafe, NEIGHBOUR_DISCOVERY]),
        ),
      );
    }
    this.base("input", "input", 0, rules);
  }

  private output(hosts: HostInterfaces): void {
    const cut = this.cutFlows(CT_STATE.established);
    if (!hosts.any) {
      // What a process of the node says on a flow that a pod began.
      if (cut.length > 0) this.base("output", "output", 0, cut);
      return;
    }
    const failsafe = this.failsafe("outbound");
    const rules: Rule[] = [
      ...cut,
      THROUGH,
      ...this.passed(hosts, "egress"),
      ...this.hostDispatch(
        "host-output",
        "egress",
        hosts,
        (endpoint) => this.hostList(endpoint.egress, "egress", [failsafe, NEIGHBOUR_DISCOVERY]),
        true,
      ),
    ];
    this.base("output", "output", 0, rules);
    const raw: Rule[] = [];
    this.untracked(hosts, "egress", raw);
    if (raw.length > 0) this.base("raw-output", "output", -300, raw);
  }

  // ------------------------------------------------------------------------------------------------------ host endpoints

  private hostInterfaces(): HostInterfaces {
    const named = new Map<string, DesiredHostEndpoint>();
    let star: DesiredHostEndpoint | undefined;
    for (
      const endpoint of [...this.state.hostEndpoints.values()].sort((a, b) => a.id < b.id ? -1 : a.id > b.id ? 1 : 0)
    ) {
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

  /** A list behind what host endpoints have before it: invalid packets drop, failsafe ports are open, and neighbours are found. */
  private hostList(list: PolicyList, direction: Direction, before: readonly Rule[] = []): Verdict {
    const invalid: Rule = [ctState(), { op: "cmp", sreg: 0, is: "eq", data: CT_STATE.invalid }, verdict(DROP)];
    return this.chain([invalid, ...before, [verdict(this.list(list, direction))]]);
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
    const bit = this.options.passedMark;
    return [[
      { op: "meta", key: "mark", dreg: 0 },
      { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(bit), xor: hostWord(0) },
      { op: "cmp", sreg: 0, is: "neq", data: hostWord(0) },
      verdict(ACCEPT),
    ]];
  }

  private setPassed(passed: boolean): readonly Expression[] {
    const bit = this.options.passedMark;
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
    const passed = direction === "ingress" ? this.passed(hosts, direction) : [];
    this.base(name, hook, priority, [THROUGH, ...passed, ...rules]);
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
      (endpoint) =>
        endpoint.preDnat &&
        this.chain([failsafe, NEIGHBOUR_DISCOVERY, [verdict(this.list(endpoint.preDnat, "ingress", endings))]]),
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
        return list === undefined
          ? undefined
          : this.chain([...failsafe, NEIGHBOUR_DISCOVERY, [verdict(this.list(list, direction, endings))]]);
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
    this.addressSets.set(name, { family, ids: [], nets, form });
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

/** Types 130 to 136: RFC 2710 and RFC 4861. A link without them has no IPv6, whatever ports are open. */
const NEIGHBOUR_DISCOVERY: Rule = [
  ...isFamily(6),
  ...isProtocol(PROTOCOLS.ICMPv6),
  { op: "payload", base: "transport", offset: 0, length: 1, dreg: 0 },
  { op: "range", sreg: 0, is: "eq", from: "\x82", to: "\x88" },
  verdict(ACCEPT),
];
