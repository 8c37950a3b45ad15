/** What host endpoints have in the base chains: their interfaces, failsafe ports, and policy before tracking and DNAT. Pure. */
import type { DesiredHostEndpoint, DesiredState, PolicyList, ProtocolPort } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import type { Direction } from "../../src/model/rule.ts";
import { FILTER_ENDINGS } from "./compile.ts";
import { ACCEPT, DROP, goto, verdict } from "./expressions.ts";
import type { Endings } from "./output.ts";
import {
  hostWord,
  iifname,
  INTERFACE_NAME_MAX,
  isInterface,
  isPod,
  isState,
  lookup,
  NEIGHBOUR_DISCOVERY,
  oifname,
  tableSet,
  THROUGH,
  vmap,
} from "./packet_tests.ts";
import { portBytes } from "../../src/model/port_ranges.ts";
import {
  type BaseChain,
  type Expression,
  interfaceKey,
  type NftChain,
  type NftSet,
  type Rule,
  type Verdict,
} from "./ruleset.ts";

/** Where what is rendered goes, and the name of the chain that a list compiles to. */
export interface HostSurroundings {
  readonly sets: Map<string, NftSet>;
  readonly chains: Map<string, NftChain>;
  readonly problems: Set<string>;
  /** `RenderOptions.passedMark`. */
  readonly passedMark: number;
  readonly compile: (list: PolicyList, direction: Direction, endings: Endings) => string;
}

type Judge = (endpoint: DesiredHostEndpoint) => Verdict | undefined;

export class HostChains {
  /** By interface name, sorted. */
  private readonly named: ReadonlyMap<string, DesiredHostEndpoint>;
  /** The endpoint of every other interface. */
  private readonly star: DesiredHostEndpoint | undefined;

  constructor(
    private readonly state: Pick<DesiredState, "hostEndpoints" | "failsafe">,
    private readonly here: HostSurroundings,
  ) {
    const named = new Map<string, DesiredHostEndpoint>();
    const endpoints = [...state.hostEndpoints.values()].sort((a, b) => a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
    for (const endpoint of endpoints) {
      const { id, interfaces } = endpoint;
      const claim = (what: string) =>
        here.problems.add(`host endpoint ${id}: ${what} is another host endpoint's already`);
      if (interfaces === "*") {
        if (this.star === undefined) this.star = endpoint;
        else claim("every interface");
        continue;
      }
      for (const name of interfaces) {
        if (name === "" || name.length > INTERFACE_NAME_MAX) {
          const wanted = `wanted a name of 1 to ${INTERFACE_NAME_MAX} bytes`;
          here.problems.add(`host endpoint ${id}: found interface ${JSON.stringify(name)}, ${wanted}`);
        } else if (named.has(name)) claim(`interface ${name}`);
        else named.set(name, endpoint);
      }
    }
    this.named = new Map([...named].sort(([a], [b]) => a < b ? -1 : 1));
  }

  get any(): boolean {
    return this.star !== undefined || this.named.size > 0;
  }

  /** Forwarded traffic, before and after that of workloads. */
  forward(): void {
    this.chainAt("host-forward-in", "forward", -2, "ingress", this.judgeIn);
    this.chainAt("host-forward-out", "forward", 1, "egress", this.judgeOut);
  }

  /** The same on the way out, around `priority`, but for what `others` lets through. */
  forwarded(others: Rule, priority: number): void {
    this.chainAt("host-out-in", "postrouting", priority - 2, "ingress", this.judgeIn, others);
    this.chainAt("host-out-out", "postrouting", priority + 1, "egress", this.judgeOut, others);
  }

  private readonly judgeIn: Judge = ({ forwardIngress }) => forwardIngress && this.behind(forwardIngress, "ingress");
  private readonly judgeOut: Judge = ({ forwardEgress }) => forwardEgress && this.behind(forwardEgress, "egress");

  /** For the chain `input`, after workloads. */
  input(): readonly Rule[] {
    if (!this.any) return [];
    const before = [this.failsafe("inbound"), NEIGHBOUR_DISCOVERY];
    return [
      ...this.passed("ingress"),
      ...this.dispatch("host-input", "ingress", ({ ingress }) => this.behind(ingress, "ingress", before)),
    ];
  }

  /** For the chain `output`. */
  output(): readonly Rule[] {
    if (!this.any) return [];
    const before = [this.failsafe("outbound"), NEIGHBOUR_DISCOVERY];
    return [
      THROUGH,
      ...this.passed("egress"),
      ...this.dispatch("host-output", "egress", ({ egress }) => this.behind(egress, "egress", before), true),
    ];
  }

  preDnat(): void {
    if (!this.some((endpoint) => endpoint.preDnat !== undefined)) return;
    const failsafe = this.failsafe("inbound");
    this.here.chains.set("passed", { rules: [[...this.setPassed(true), verdict(ACCEPT)]] });
    const endings: Endings = { allow: goto("passed"), deny: DROP, next: ACCEPT };
    // After conntrack (-200), before dstnat (-100).
    this.chainAt(
      "pre-dnat",
      "prerouting",
      -150,
      "ingress",
      ({ preDnat }) =>
        preDnat && this.chain([failsafe, NEIGHBOUR_DISCOVERY, [verdict(this.list(preDnat, "ingress", endings))]]),
    );
  }

  /** Before connection tracking. */
  untracked(direction: Direction): readonly Rule[] {
    if (!this.marks(direction)) return [];
    const listOf = (endpoint: DesiredHostEndpoint) =>
      direction === "ingress" ? endpoint.untrackedIngress : endpoint.untrackedEgress;
    const clear = [...this.setPassed(false)];
    if (!this.some((endpoint) => listOf(endpoint) !== undefined)) return [clear];
    this.here.chains.set("no-track", { rules: [[{ op: "notrack" }, ...this.setPassed(true), verdict(ACCEPT)]] });
    const endings: Endings = { allow: goto("no-track"), deny: DROP, next: ACCEPT };
    // Without flows an answer is known by its source port only.
    const failsafe = direction === "ingress"
      ? [this.failsafe("inbound"), this.failsafe("outbound", "source")]
      : [this.failsafe("outbound"), this.failsafe("inbound", "source")];
    const judge: Judge = (endpoint) => {
      const list = listOf(endpoint);
      return list && this.chain([...failsafe, NEIGHBOUR_DISCOVERY, [verdict(this.list(list, direction, endings))]]);
    };
    const map = direction === "ingress" ? "host-raw-in" : "host-raw-out";
    return [clear, ...this.dispatch(map, direction, judge, direction === "egress")];
  }

  // -------------------------------------------------------------------------------------------------------------- parts

  private some(holds: (endpoint: DesiredHostEndpoint) => boolean): boolean {
    return [...this.named.values(), this.star].some((endpoint) => endpoint !== undefined && holds(endpoint));
  }

  private list(list: PolicyList, direction: Direction, endings: Endings = FILTER_ENDINGS): Verdict {
    return goto(this.here.compile(list, direction, endings));
  }

  private chain(rules: readonly Rule[]): Verdict {
    const name = `c-${digest(JSON.stringify(rules))}`;
    this.here.chains.set(name, { rules });
    return goto(name);
  }

  /** A list behind what host endpoints have before it: invalid packets drop, failsafe ports are open, and neighbours are found. */
  private behind(list: PolicyList, direction: Direction, before: readonly Rule[] = []): Verdict {
    return this.chain([[...isState("invalid"), verdict(DROP)], ...before, [verdict(this.list(list, direction))]]);
  }

  /** Whether some host endpoint has policy before connection tracking or DNAT: it then marks what it allows. */
  private marks(direction: Direction): boolean {
    return this.some((endpoint) =>
      (direction === "ingress" ? endpoint.untrackedIngress ?? endpoint.preDnat : endpoint.untrackedEgress) !== undefined
    );
  }

  /** What was allowed before at its host endpoint meets no more of that endpoint's policy. */
  private passed(direction: Direction): readonly Rule[] {
    if (!this.marks(direction)) return [];
    return [[
      { op: "meta", key: "mark", dreg: 0 },
      { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(this.here.passedMark), xor: hostWord(0) },
      { op: "cmp", sreg: 0, is: "neq", data: hostWord(0) },
      verdict(ACCEPT),
    ]];
  }

  private setPassed(passed: boolean): readonly Expression[] {
    const bit = this.here.passedMark;
    return [
      { op: "meta", key: "mark", dreg: 0 },
      { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(~bit), xor: hostWord(passed ? bit : 0) },
      { op: "setMark", sreg: 0 },
    ];
  }

  /** Rules that send packets of host endpoints' interfaces on their way; none where no endpoint has anything to say. */
  private dispatch(mapName: string, direction: Direction, judge: Judge, starMeetsWorkloads = false): readonly Rule[] {
    const star = this.star && judge(this.star);
    const entries: [string, Verdict][] = [];
    let judged = star !== undefined;
    for (const [name, endpoint] of this.named) {
      const to = judge(endpoint);
      if (to !== undefined) judged = true;
      entries.push([interfaceKey(name), to ?? ACCEPT]);
    }
    if (!judged) return [];
    const load = direction === "ingress" ? iifname() : oifname();
    const rules: Rule[] = [];
    if (entries.length > 0) {
      this.here.sets.set(mapName, tableSet(["ifname"], entries, { map: true }));
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

  private chainAt(
    name: string,
    hook: BaseChain["hook"],
    priority: number,
    direction: Direction,
    judge: Judge,
    others?: Rule,
  ): void {
    const rules = this.dispatch(name, direction, judge);
    if (rules.length === 0) return;
    const base: BaseChain = { type: "filter", hook, priority, policy: "accept" };
    const passed = direction === "ingress" ? this.passed(direction) : [];
    this.here.chains.set(name, {
      base,
      rules: [...others === undefined ? [] : [others], THROUGH, ...passed, ...rules],
    });
  }

  private failsafe(which: "inbound" | "outbound", end: "source" | "destination" = "destination"): Rule {
    const name = `failsafe-${which}`;
    const key = ({ protocol, port }: ProtocolPort) =>
      String.fromCharCode(protocol) + "\0\0\0" + portBytes(port) + "\0\0";
    const ports = this.state.failsafe[which].map((port) => [key(port), true] as const);
    this.here.sets.set(name, tableSet(["inet_proto", "inet_service"], ports));
    return [
      { op: "meta", key: "l4proto", dreg: 0 },
      { op: "payload", base: "transport", offset: end === "source" ? 0 : 2, length: 2, dreg: 1 },
      lookup(name),
      verdict(ACCEPT),
    ];
  }
}
