/**
 * What the table has whatever the workloads are: base chains, what leads into the workloads' chains, host endpoints, and
 * masquerading. Small, and rendered whole. Pure.
 */
import { type Address, type Cidr, cidrFamily, type Family, parseAddress } from "../../src/model/address.ts";
import type { DesiredHostEndpoint, DesiredState, PolicyList, ProtocolPort } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import { addressForm, maximalNets } from "./address_elements.ts";
import {
  ACCEPT,
  type AddressSetUse,
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
  type Verdict,
} from "./ruleset.ts";

export interface RenderOptions {
  /** NFLOG group of `log` rules. */
  readonly logGroup: number;
  /** One bit of the packet mark: policy before tracking or DNAT has allowed the packet at its host endpoint. */
  readonly passedMark: number;
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
    readonly compile: (list: PolicyList, endings: Endings) => string,
  ) {
    const hosts = this.hostInterfaces();
    this.states();
    this.rawPrerouting(hosts);
    this.preDnat(hosts);
    this.input(hosts);
    this.forward(hosts);
    this.output(hosts);
    this.masquerade();
  }

  private list(list: PolicyList, endings: Endings = FILTER_ENDINGS): Verdict {
    return goto(this.compile(list, endings));
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
    this.addressSets.set(name, { kind: "net", family, ids: [], nets, form });
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
