/** Chains that judge what comes to host endpoints, leaves them and is forwarded by them. Pure. */
import type { DesiredHostEndpoint, DesiredState, PolicyList, ProtocolPort } from "../../src/model/desired.ts";
import { hasPorts } from "../../src/model/ports.ts";
import type { Direction } from "../../src/model/rule.ts";
import type { Endings } from "./compile.ts";
import { POD_PREFIX } from "./dispatch.ts";
import type { GrowingTables } from "./growing_tables.ts";
import type { Interfaces } from "./interfaces.ts";
import { besideNeighbours } from "./neighbours.ts";
import { isProtocol, portMatches } from "./rule_matches.ts";
import {
  DROP,
  type End,
  INVALID_FLOWS,
  jump,
  KNOWN_FLOWS,
  type Match,
  RETURN,
  type Rule,
  rule,
  type TableName,
  type Target,
} from "./ruleset.ts";

/** What judges packets of an endpoint; undefined: it has nothing to say of them. */
type Judge = (endpoint: DesiredHostEndpoint) => Target | undefined;

export class HostChains {
  constructor(
    private readonly tables: GrowingTables,
    private readonly interfaces: Interfaces,
    private readonly failsafePorts: DesiredState["failsafe"],
    /** One bit of the packet mark: policy before tracking or DNAT has allowed the packet at its host endpoint. */
    private readonly passedMark: number,
  ) {}

  private get endpoints(): readonly DesiredHostEndpoint[] {
    const { hosts, star } = this.interfaces;
    return star === undefined ? [...hosts.values()] : [...hosts.values(), star];
  }

  get isEmpty(): boolean {
    return this.interfaces.star === undefined && this.interfaces.hosts.size === 0;
  }

  // ----------------------------------------------------------------------------------------------------------------- filter

  /** What comes to the node. */
  input({ ingress }: DesiredHostEndpoint): Target {
    return this.judged(ingress, "ingress", this.failsafe("inbound", "destination"));
  }

  /** What the node sends. */
  output(): readonly Rule[] {
    const failsafe = this.failsafe("outbound", "destination");
    return this.sent("filter", ({ egress }) => this.judged(egress, "egress", failsafe));
  }

  /** Empty where no endpoint has anything to say of what is forwarded. */
  forward(direction: Direction): readonly Rule[] {
    const rules = this.tree("filter", direction, ({ forwardIngress, forwardEgress }) => {
      const list = direction === "ingress" ? forwardIngress : forwardEgress;
      // Forwarded traffic has no failsafe ports.
      return list && this.tables.to("filter", this.list(list, direction, []));
    });
    return rules.length === 0 ? [] : [rule(jump(this.tables.chain("filter", rules)))];
  }

  private judged(list: PolicyList, direction: Direction, failsafe: readonly Rule[]): Target {
    const rules = this.list(list, direction, failsafe);
    return this.tables.to("filter", besideNeighbours(this.tables, "filter", rules));
  }

  /** A list behind what host endpoints have before it. */
  private list(list: PolicyList, direction: Direction, failsafe: readonly Rule[]): readonly Rule[] {
    const marked = this.marks(direction) ? [rule(RETURN, this.isPassed)] : [];
    return [...marked, INVALID_FLOWS, ...failsafe, rule(this.tables.list("filter", list, direction))];
  }

  // ----------------------------------------------------------------------------------------- before DNAT, before tracking

  /** Undefined where no endpoint has such policy. */
  preDnat(): readonly Rule[] | undefined {
    const { tables } = this;
    if (this.endpoints.every(({ preDnat }) => preDnat === undefined)) return undefined;
    const failsafe = this.failsafe("inbound", "destination");
    const endings = this.endingsAt(tables.to("mangle", [rule(this.setPassed(true))]));
    const rules = this.tree("mangle", "ingress", ({ preDnat }) =>
      preDnat &&
      tables.to(
        "mangle",
        besideNeighbours(tables, "mangle", [...failsafe, rule(tables.list("mangle", preDnat, "ingress", endings))]),
      ));
    return [KNOWN_FLOWS, rule(RETURN, this.isPassed), ...rules];
  }

  untracked(direction: Direction, endpoint: DesiredHostEndpoint | undefined): Target | undefined {
    const { tables } = this;
    const list = direction === "ingress" ? endpoint?.untrackedIngress : endpoint?.untrackedEgress;
    if (list === undefined) return undefined;
    const endings = this.endingsAt(tables.to("raw", [rule({ target: "noTrack" }), rule(this.setPassed(true))]));
    // Without flows an answer is known by its source port only.
    const [to, back] = direction === "ingress" ? ["inbound", "outbound"] as const : ["outbound", "inbound"] as const;
    return tables.to(
      "raw",
      besideNeighbours(tables, "raw", [
        ...this.failsafe(to, "destination"),
        ...this.failsafe(back, "source"),
        rule(tables.list("raw", list, direction, endings)),
      ]),
    );
  }

  /** What the node sends, before it is tracked; undefined where no endpoint has such policy. */
  untrackedOutput(): readonly Rule[] | undefined {
    if (!this.marks("egress")) return undefined;
    return [...this.unmark("egress"), ...this.sent("raw", (endpoint) => this.untracked("egress", endpoint))];
  }

  /** A mark from outside says nothing. */
  unmark(direction: Direction): readonly Rule[] {
    return this.marks(direction) ? [rule(this.setPassed(false))] : [];
  }

  /** Whether some host endpoint has policy before connection tracking or DNAT: it then marks what it allows. */
  private marks(direction: Direction): boolean {
    return this.endpoints.some(({ untrackedIngress, untrackedEgress, preDnat }) =>
      (direction === "ingress" ? untrackedIngress ?? preDnat : untrackedEgress) !== undefined
    );
  }

  private get isPassed(): Match {
    return { match: "mark", mask: this.passedMark, not: false };
  }

  private setPassed(passed: boolean): Target {
    return { target: "mark", value: passed ? this.passedMark : 0, mask: this.passedMark };
  }

  private endingsAt(allow: Target): Endings {
    return { allow, deny: DROP, next: RETURN };
  }

  // ------------------------------------------------------------------------------------------------------------ interfaces

  /** What the node sends; towards its pods as well, which only the endpoint of every interface stands for. */
  private sent(table: TableName, judge: Judge): readonly Rule[] {
    const { workloads, hosts, star } = this.interfaces;
    const others = star && judge(star);
    const names = new Map<string, readonly Target[]>();
    if (others !== undefined) names.set("lo", [RETURN]);
    for (const [name, endpoint] of hosts) {
      if (!workloads.has(name)) names.set(name, [judge(endpoint) ?? RETURN]);
    }
    return this.tables.tree(table, { way: "out", names, otherPods: others, others });
  }

  /** By host endpoints' interfaces; pods' are none of theirs. Empty where none has anything to say. */
  private tree(table: TableName, direction: Direction, judge: Judge): readonly Rule[] {
    const { workloads, hosts, star } = this.interfaces;
    const others = star && judge(star);
    const names = new Map<string, readonly Target[]>();
    let judged = others !== undefined;
    for (const [name, endpoint] of hosts) {
      if (name.startsWith(POD_PREFIX)) continue;
      const to = judge(endpoint);
      if (to !== undefined) judged = true;
      names.set(name, [to ?? RETURN]);
    }
    if (!judged) return [];
    if (others !== undefined) {
      if (!names.has("lo")) names.set("lo", [RETURN]);
      for (const name of workloads.keys()) if (!name.startsWith(POD_PREFIX)) names.set(name, [RETURN]);
    } else for (const name of workloads.keys()) names.delete(name);
    const way = direction === "ingress" ? "in" : "out";
    return this.tables.tree(table, { way, names, otherPods: undefined, others });
  }

  private failsafe(which: "inbound" | "outbound", end: End): readonly Rule[] {
    const byProtocol = new Map<number, number[]>();
    for (const { protocol, port } of this.failsafePorts[which] as readonly ProtocolPort[]) {
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
}
