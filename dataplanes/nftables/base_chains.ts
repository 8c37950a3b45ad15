/**
 * What the table has whatever the workloads are: base chains, what leads into the workloads' chains, host endpoints, and
 * masquerading. Small, and rendered whole. Pure.
 */
import { type Address, type Cidr, cidrFamily, type Family, parseAddress } from "../../src/model/address.ts";
import type { DesiredState, PolicyList } from "../../src/model/desired.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { Direction } from "../../src/model/rule.ts";
import { maximalNets } from "../../src/model/prefixes.ts";
import { addressForm } from "./address_elements.ts";
import { ACCEPT, goto, isFamily, isProtocol, jump, loadAddress, verdict } from "./expressions.ts";
import { HostChains } from "./host_chains.ts";
import { type AddressSetUse, type Endings, netSetName } from "./output.ts";
import {
  CT_STATE,
  ctState,
  DROPPED,
  hostWord,
  iifname,
  isPod,
  isState,
  lookup,
  NEIGHBOUR_DISCOVERY,
  oifname,
  tableSet,
  THROUGH,
  vmap,
} from "./packet_tests.ts";
import type { Expression, NftChain, NftSet, Rule } from "./ruleset.ts";

export interface RenderOptions {
  /** NFLOG group of `log` rules. */
  readonly logGroup: number;
  /** One bit of the packet mark: policy before tracking or DNAT has allowed the packet at its host endpoint. */
  readonly passedMark: number;
  /** How flows that policy denies by now are cut; absent: nothing is. */
  readonly cut?: CutOptions;
  /** Absent: services are somebody else's. `masqueradeMark`: one bit of the packet mark. */
  readonly services?: { readonly masqueradeMark: number };
  /**
   * One bit of the packet mark: what carries it was forwarded past the FORWARD hook (IPVS takes a service's packets from INPUT to OUTPUT), and
   * is judged on its way out. Absent: there is none such.
   */
  readonly forwardMark?: number;
  /** Group to which some packets of established flows are logged, after everything else; absent: none are. */
  readonly sampleGroup?: number;
  /** Absent: `flat`. `linear`: lists rule by rule, as they are written. */
  readonly shape?: "flat" | "linear";
}

export interface CutOptions {
  /** One bit of the connection mark: no packet of a flow that carries it passes. */
  readonly mark: number;
  /** Senders of cut TCP flows are told by a reset. */
  readonly resets: boolean;
}

/** IPVS takes packets to the node at 99 (NF_IP_PRI_NAT_SRC − 1): what is left, and is perhaps for another address by now, is for the node. */
const AFTER_IPVS = 102;
/** Before source NAT at 100: −2 … 1 around it, as in FORWARD around 0. */
const ON_THE_WAY_OUT = 90;

/** What everybody has let through: source NAT is at 100, SELinux at 225, connection tracking's own end at 2³¹ − 1. */
const AFTER_ALL = 1_000;
/** One packet of so many, by chance: who sends less has little to gain. */
const SAMPLE_EVERY = 256;
/** Each wakes the daemon: with 200 a second new connections were 6 % fewer, with 50 they are 2 %. */
const SAMPLES_PER_SECOND = 50;
const SAMPLES_BURST = 20;
/** IPS_SRC_NAT and IPS_DST_NAT of include/uapi/linux/netfilter/nf_conntrack_common.h. */
const IPS_NAT = 0x30;

const LINK_LOCAL = parseAddress("fe80::") as Address;

/** A pod that meets itself. */
const OWN: Rule = [iifname(), oifname(4), lookup("self"), verdict(ACCEPT)];

const hasMark = (bit: number, has: boolean): readonly Expression[] => [
  { op: "meta", key: "mark", dreg: 0 },
  { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(bit), xor: hostWord(0) },
  { op: "cmp", sreg: 0, is: has ? "neq" : "eq", data: hostWord(0) },
];

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
    const { sets, chains, problems } = this;
    const hosts = new HostChains(state, { sets, chains, problems, passedMark: options.passedMark, compile });
    this.states();
    this.cut(hosts.any);
    this.rawPrerouting(hosts);
    hosts.preDnat();
    this.input(hosts);
    this.forward();
    hosts.forward();
    this.forwarded(hosts);
    this.output(hosts);
    this.masquerade();
    this.sample();
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
      [iifname(), lookup("workloads"), ...DROPPED],
      [...isPod(iifname()), ...DROPPED],
    ];
    const toPod: readonly Rule[] = [
      [oifname(), lookup("workloads"), ...DROPPED],
      [...isPod(oifname()), ...DROPPED],
    ];
    this.chains.set("invalid-forward", { rules: [...fromPod, ...toPod] });
    this.chains.set("invalid-input", { rules: fromPod });
    this.chains.set("neighbours", { rules: [[iifname(), lookup("workloads"), ...NEIGHBOUR_DISCOVERY]] });
  }

  /** Where the packets of cut flows end. */
  private cut(hosts: boolean): void {
    const { cut } = this.options;
    if (cut === undefined) return;
    const end = goto("cut-end");
    const reset: readonly Rule[] = cut.resets ? [[...isProtocol(PROTOCOLS.TCP), { op: "tcpReset" }]] : [];
    this.chains.set("cut-end", { rules: [...reset, DROPPED] });
    // Strangers' flows may carry any mark.
    const ours: readonly Rule[] = [iifname(), oifname()].flatMap((load) => [
      [load, lookup("workloads"), verdict(end)],
      [...isPod(load), verdict(end)],
    ]);
    this.chains.set("cut", { rules: hosts ? [[verdict(end)]] : ours });
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

  private rawPrerouting(hosts: HostChains): void {
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
        [...isFamily(4), iifname(), loadAddress(4, "source", 4), lookup("source4"), verdict(ACCEPT)],
        [...isFamily(6), iifname(), loadAddress(6, "source", 4), lookup("source6"), verdict(ACCEPT)],
        [
          ...neighbour,
          loadAddress(6, "source", 0),
          { op: "bitwise", sreg: 0, dreg: 0, mask: "\xff\xc0" + "\0".repeat(14), xor: "\0".repeat(16) },
          { op: "cmp", sreg: 0, is: "eq", data: LINK_LOCAL },
          verdict(ACCEPT),
        ],
        [
          ...neighbour,
          loadAddress(6, "source", 0),
          { op: "cmp", sreg: 0, is: "eq", data: "\0".repeat(16) },
          verdict(ACCEPT),
        ],
        DROPPED,
      ],
    });
    // By name where that says it: a comparison costs less than a lookup, and this is asked of every packet.
    const rules: Rule[] = [
      [...isPod(iifname()), verdict(goto("source-check"))],
      [iifname(), lookup("workloads"), verdict(goto("source-check"))],
    ];
    this.base("raw-prerouting", "prerouting", -300, [...rules, ...hosts.untracked("ingress")]);
  }

  private forward(): void {
    this.base("forward-from", "forward", -1, [...this.cutFlows(), ...this.egressRules()]);
    this.base("forward-to", "forward", 0, this.ingressRules());
  }

  /** Of a packet that goes through the node, the end that it comes from. */
  private egressRules(): readonly Rule[] {
    return [
      THROUGH,
      [...isState("invalid"), verdict(jump("invalid-forward"))],
      OWN,
      [iifname(), vmap("from-workload")],
      [...isPod(iifname()), ...DROPPED],
    ];
  }

  /** The end that it goes to. */
  private ingressRules(): readonly Rule[] {
    return [
      THROUGH,
      [...isState("invalid"), verdict(jump("invalid-forward"))],
      OWN,
      [oifname(), vmap("to-workload")],
      [...isPod(oifname()), ...DROPPED],
    ];
  }

  /** The same for what never meets FORWARD: its source is still the client, its destination the backend, and both links are known. */
  private forwarded(hosts: HostChains): void {
    const { forwardMark, cut } = this.options;
    if (forwardMark === undefined) return;
    const others: Rule = [...hasMark(forwardMark, false), verdict(ACCEPT)];
    // No reset can be sent from this hook: who made the flow hears nothing, as from a dead server.
    const cuts: readonly Rule[] = cut === undefined ? [] : [[
      { op: "ct", key: "mark", dreg: 0 },
      { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(cut.mark), xor: hostWord(0) },
      { op: "cmp", sreg: 0, is: "neq", data: hostWord(0) },
      ...DROPPED,
    ]];
    this.base("out-from", "postrouting", ON_THE_WAY_OUT - 1, [others, ...cuts, ...this.egressRules()]);
    this.base("out-to", "postrouting", ON_THE_WAY_OUT, [others, ...this.ingressRules()]);
    hosts.forwarded(others, ON_THE_WAY_OUT);
  }

  private input(hosts: HostChains): void {
    const rules: Rule[] = [
      ...this.cutFlows(CT_STATE.established),
      THROUGH,
      [...isState("invalid"), verdict(jump("invalid-input"))],
      // The kernel tracks no neighbour discovery. What is forwarded is none, whatever its type says: neighbours share a link.
      [...isState("untracked"), verdict(jump("neighbours"))],
      [iifname(), vmap("from-workload")],
      [...isPod(iifname()), ...DROPPED],
    ];
    rules.push(...hosts.input());
    this.base("input", "input", this.options.forwardMark === undefined ? 0 : AFTER_IPVS, rules);
  }

  private output(hosts: HostChains): void {
    // What a process of the node says on a flow that a pod began may be cut as well.
    const own = hosts.output();
    // What IPVS sends on passes here as well, and is not the node's own.
    const { forwardMark } = this.options;
    const others: readonly Rule[] = forwardMark === undefined || own.length === 0
      ? []
      : [[...hasMark(forwardMark, true), verdict(ACCEPT)]];
    const rules = [...this.cutFlows(CT_STATE.established), ...others, ...own];
    if (rules.length > 0) this.base("output", "output", 0, rules);
    const raw = hosts.untracked("egress");
    if (raw.length > 0) this.base("raw-output", "output", -300, raw);
  }

  private masquerade(): void {
    const { sources, inside } = this.state.masquerade;
    const rules: Rule[] = [];
    for (const family of [4, 6] as const) {
      const ours = (nets: readonly Cidr[]) => maximalNets(nets.filter((net) => cidrFamily(net) === family));
      const from = ours(sources), within = ours(inside);
      if (from.length === 0) continue;
      const rule: Expression[] = [
        ...isFamily(family),
        loadAddress(family, "source", 0),
        lookup(this.netSet(family, from)),
      ];
      if (within.length > 0) {
        rule.push(loadAddress(family, "destination", 0), lookup(this.netSet(family, within), true));
      }
      rules.push([...rule, { op: "masquerade" }]);
    }
    if (rules.length > 0) this.base("postrouting", "postrouting", 100, rules, "nat");
  }

  /** Now and then a packet of an established TCP flow of a workload, without translation, when nobody has dropped it. */
  private sample(): void {
    const { sampleGroup: group } = this.options;
    if (group === undefined) return;
    const isFlow: readonly Expression[] = [
      ...isProtocol(PROTOCOLS.TCP),
      ...isState("established"),
      { op: "ct", key: "status", dreg: 0 },
      { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(IPS_NAT), xor: hostWord(0) },
      { op: "cmp", sreg: 0, is: "eq", data: hostWord(0) },
      iifname(),
      { op: "cmp", sreg: 0, is: "neq", data: "\0".repeat(16) },
    ];
    this.chains.set("sample", {
      rules: [[
        { op: "limit", rate: SAMPLES_PER_SECOND, unitSeconds: 1, burst: SAMPLES_BURST },
        { op: "log", group, prefix: "" },
      ]],
    });
    this.chains.set("sample-flow", {
      rules: [iifname(), oifname()].map((load) => [...isFlow, load, lookup("workloads"), verdict(goto("sample"))]),
    });
    this.base("sampled", "postrouting", AFTER_ALL, [[
      { op: "random", modulus: SAMPLE_EVERY, offset: 0, dreg: 0 },
      { op: "cmp", sreg: 0, is: "eq", data: hostWord(0) },
      verdict(jump("sample-flow")),
    ]]);
  }

  private netSet(family: Family, nets: readonly Cidr[]): string {
    const form = addressForm(family, [], nets);
    const name = netSetName(family, [], nets, form);
    this.addressSets.set(name, { family, ids: [], nets, form });
    return name;
  }
}
