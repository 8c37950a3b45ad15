/** The tables of one family: what each of the kernel's own chains leads to, put together of pods', host endpoints' and services' chains. Pure. */
import type { Cidr, Family } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { maximalNets } from "../../src/model/prefixes.ts";
import { POD_PREFIX } from "./dispatch.ts";
import { type Compile, GrowingTables } from "./growing_tables.ts";
import { HostChains } from "./host_chains.ts";
import type { Interfaces } from "./interfaces.ts";
import { podForward, podInput, sourceCheck } from "./pod_chains.ts";
import { isProtocol } from "./rule_matches.ts";
import { DROP, inState, jump, KNOWN_FLOWS, RETURN, type Rule, rule, type Table, type Target } from "./ruleset.ts";
import { inNets, postroutingRules, refusalRules, type ServiceMarks } from "./services_chains.ts";
import { ofFamily } from "./set_content.ts";
import { type SetUse, sourceSetName } from "./set_names.ts";

export interface TableOptions {
  /** One bit of the packet mark: policy before tracking or DNAT has allowed the packet at its host endpoint. */
  readonly passedMark: number;
  /** One bit of the connection mark: no packet of a flow that carries it passes. Absent: nothing is cut. */
  readonly cutMark?: number | undefined;
  /** Whether packets can be masqueraded. */
  readonly nat: boolean;
  /** Absent: services are somebody else's. */
  readonly services?: ServiceMarks | undefined;
}

/** What of the desired state tables are made of, but for services' own chains. */
export type TableParts = Pick<DesiredState, "workloads" | "hostEndpoints" | "failsafe" | "masquerade"> & {
  readonly hasServices: boolean;
};

export interface NodeTables {
  readonly tables: readonly Table[];
  /** Sets that the rules ask for, by name. */
  readonly uses: ReadonlyMap<string, SetUse>;
  /** One line each. */
  readonly problems: ReadonlySet<string>;
}

export function nodeTables(
  parts: TableParts,
  interfaces: Interfaces,
  family: Family,
  options: TableOptions,
  compile: Compile,
): NodeTables {
  const tables = new GrowingTables(family, compile);
  new Hooks(tables, parts, interfaces, options).all();
  return { tables: [...tables.tables()], uses: tables.uses, problems: tables.problems };
}

class Hooks {
  private readonly hosts: HostChains;

  constructor(
    private readonly tables: GrowingTables,
    private readonly parts: TableParts,
    private readonly interfaces: Interfaces,
    private readonly options: TableOptions,
  ) {
    this.hosts = new HostChains(tables, interfaces, parts.failsafe, options.passedMark);
  }

  all(): void {
    const { tables, hosts } = this;
    tables.hook("raw", "PREROUTING", "raw-in", this.rawIn());
    const rawOut = hosts.untrackedOutput();
    if (rawOut !== undefined) tables.hook("raw", "OUTPUT", "raw-out", rawOut);
    const preDnat = hosts.preDnat();
    if (preDnat !== undefined) tables.hook("mangle", "PREROUTING", "pre-dnat", preDnat);
    tables.hook("filter", "FORWARD", "forward", this.forward());
    tables.hook("filter", "INPUT", "input", this.input());
    const output = this.output();
    if (output.length > 0) tables.hook("filter", "OUTPUT", "output", output);
    const postrouting = this.postrouting();
    if (postrouting.length > 0) tables.hook("nat", "POSTROUTING", "postrouting", postrouting);
  }

  private rawIn(): readonly Rule[] {
    const { tables, hosts, interfaces } = this;
    const pods = sourceCheck(tables);
    const names = new Map<string, readonly Target[]>();
    const star = hosts.untracked("ingress", interfaces.star);
    for (const [name, endpoint] of interfaces.hosts) {
      if (!name.startsWith(POD_PREFIX)) names.set(name, [hosts.untracked("ingress", endpoint) ?? RETURN]);
    }
    if (star !== undefined && !names.has("lo")) names.set("lo", [RETURN]);
    for (const name of interfaces.workloads.keys()) {
      if (!name.startsWith(POD_PREFIX)) names.set(name, [pods]);
    }
    return [...hosts.unmark("ingress"), ...tables.tree("raw", { way: "in", names, otherPods: pods, others: star })];
  }

  private forward(): readonly Rule[] {
    const { tables, hosts, interfaces: { workloads } } = this;
    return [
      ...this.cutFlows(),
      KNOWN_FLOWS,
      ...this.refusals(),
      ...hosts.forward("ingress"),
      podForward(tables, workloads, "in"),
      podForward(tables, workloads, "out"),
      ...hosts.forward("egress"),
    ];
  }

  private input(): readonly Rule[] {
    const { tables, hosts, interfaces: { workloads, hosts: named, star } } = this;
    const names = new Map<string, readonly Target[]>();
    for (const [name, endpoint] of named) {
      if (!name.startsWith(POD_PREFIX)) names.set(name, [hosts.input(endpoint)]);
    }
    if (star !== undefined && !names.has("lo")) names.set("lo", [RETURN]);
    for (const [name, workload] of workloads) names.set(name, [podInput(tables, workload)]);
    return [
      ...this.cutFlows("established"),
      KNOWN_FLOWS,
      ...this.refusals(),
      ...tables.tree("filter", { way: "in", names, otherPods: DROP, others: star && hosts.input(star) }),
    ];
  }

  private output(): readonly Rule[] {
    const cut = this.cutFlows("established");
    const refusals = this.refusals();
    return this.hosts.isEmpty ? [...cut, ...refusals] : [...cut, KNOWN_FLOWS, ...refusals, ...this.hosts.output()];
  }

  /**
   * Before what lets established flows through. `only`: a state; where the node itself sends and receives, the resets that it
   * makes (related, not established) must pass.
   */
  private cutFlows(only?: "established"): readonly Rule[] {
    const { tables, options: { cutMark }, interfaces: { workloads } } = this;
    if (cutMark === undefined) return [];
    const end = tables.to("filter", [rule({ target: "tcpReset" }, isProtocol(PROTOCOLS.TCP)), rule(DROP)]);
    // Strangers' flows may carry any mark.
    const names = new Map(
      [...workloads.keys()].map((name) => [name, [end]] as const).filter(([name]) => !name.startsWith(POD_PREFIX)),
    );
    const ours = this.hosts.isEmpty
      ? (["in", "out"] as const).map((way) =>
        rule(jump(tables.chain("filter", tables.tree("filter", { way, names, otherPods: end, others: undefined }))))
      )
      : [rule(end)];
    const cut = jump(tables.chain("filter", ours));
    return [rule(cut, { match: "flowMark", mask: cutMark, not: false }, ...only === undefined ? [] : [inState(only)])];
  }

  /** Before policy: what has come to a service without backends has nowhere to go. */
  private refusals(): readonly Rule[] {
    const { services } = this.options;
    if (services === undefined || !this.parts.hasServices) return [];
    return refusalRules(services, (rules) => this.tables.chain("filter", rules));
  }

  private postrouting(): readonly Rule[] {
    const { tables, options: { services }, parts: { hasServices } } = this;
    const ofServices = services !== undefined && hasServices
      ? postroutingRules(services, sourceSetName(tables.family), (rules) => tables.chain("nat", rules))
      : [];
    return [...ofServices, ...this.masquerade()];
  }

  private masquerade(): readonly Rule[] {
    const { tables: { family, uses, problems }, parts: { masquerade: { sources, inside } } } = this;
    const ours = (nets: readonly Cidr[]) => maximalNets(ofFamily(nets, family));
    const from = ours(sources), within = ours(inside);
    if (from.length === 0) return [];
    if (!this.options.nat) {
      problems.add("this kernel cannot masquerade: pods' packets leave with their own addresses");
      return [];
    }
    const matches = [inNets(family, "source", from, false, uses)];
    if (within.length > 0) matches.push(inNets(family, "destination", within, true, uses));
    return [rule({ target: "masquerade" }, ...matches)];
  }
}
