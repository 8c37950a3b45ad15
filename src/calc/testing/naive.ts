/** The calculation said slowly and plainly, from a whole world at once: what the incremental one is held against. */
import { cidrFamily, formatAddress, formatCidr, hostCidr } from "../../model/address.ts";
import type { Address } from "../../model/address.ts";
import type { NamedPort } from "../../model/ports.ts";
import type { Direction, NeutralPolicy, NeutralRule } from "../../model/rule.ts";
import { matches } from "../../model/selector_match.ts";
import { parseSelector } from "../../model/selector_parse.ts";
import type { WorldChange, WorldObject } from "../../model/world.ts";
import type { CalcResult } from "../mod.ts";
import { membersText } from "./dump.ts";

type Of<K extends WorldObject["kind"]> = Extract<WorldObject, { kind: K }>;

interface NaiveEndpoint {
  readonly labels: ReadonlyMap<string, string>;
  readonly nets: readonly string[];
  readonly addresses: readonly Address[];
  readonly ports: readonly NamedPort[];
}

export class NaiveWorld {
  readonly #objects: readonly WorldObject[];

  /** Each origin once. */
  constructor(changes: readonly WorldChange[]) {
    const byOrigin = [...changes].sort((a, b) => a.origin < b.origin ? -1 : 1);
    const firsts = new Map<string, WorldObject>();
    for (const { objects } of byOrigin) {
      for (const object of objects) {
        const key = `${object.kind} ${object.id}`;
        if (!firsts.has(key)) firsts.set(key, object);
      }
    }
    this.#objects = [...firsts.values()];
  }

  all<K extends WorldObject["kind"]>(kind: K): Of<K>[] {
    return this.#objects.filter((object): object is Of<K> => object.kind === kind);
  }
  get<K extends WorldObject["kind"]>(kind: K, id: string): Of<K> | undefined {
    return this.all(kind).find((object) => object.id === id);
  }

  endpoints(): NaiveEndpoint[] {
    const joined = new Set(this.all("workload").map((w) => `${w.namespace}/${w.pod}`));
    const pods = this.all("pod").filter((pod) => pod.addresses.length > 0 && !joined.has(pod.id));
    return [
      ...this.all("workload").map((w) => this.workload(w)),
      ...pods.map(({ namespace, serviceAccount, labels, addresses, ports }): NaiveEndpoint => ({
        labels: this.#inherit(labels, {
          namespace,
          serviceAccount,
          orchestrator: "k8s",
          profiles: [`kns.${namespace}`],
        }),
        nets: addresses.map((address) => formatCidr(hostCidr(address))),
        addresses,
        ports,
      })),
      ...this.all("hostEndpoint").map((host) => this.host(host)),
      ...this.all("networkSet").map(({ labels, namespace, name, nets }): NaiveEndpoint => ({
        labels: this.#inherit(labels, { namespace, name, profiles: [] }),
        nets: nets.map(formatCidr),
        addresses: [],
        ports: [],
      })),
    ];
  }

  workload(workload: Of<"workload">): NaiveEndpoint {
    const { namespace, addresses, orchestrator } = workload;
    const pod = this.get("pod", `${namespace}/${workload.pod}`);
    const { labels, ports, serviceAccount } = workload.pod !== undefined && pod ? pod : workload;
    const profiles = workload.profiles ?? [`kns.${namespace}`];
    return {
      labels: this.#inherit(labels, { namespace, serviceAccount, orchestrator, profiles }),
      nets: addresses.map((address) => formatCidr(hostCidr(address))),
      addresses,
      ports,
    };
  }

  host({ labels, profiles, expectedAddresses, ports }: Of<"hostEndpoint">): NaiveEndpoint {
    const nets = expectedAddresses.map((address) => formatCidr(hostCidr(address)));
    return { labels: this.#inherit(labels, { profiles }), nets, addresses: expectedAddresses, ports };
  }

  #inherit(own: ReadonlyMap<string, string>, from: {
    namespace?: string;
    serviceAccount?: string;
    orchestrator?: string;
    name?: string;
    profiles: readonly string[];
  }): ReadonlyMap<string, string> {
    const labels = new Map<string, string>();
    const put = (key: string, value: string | undefined) =>
      value === undefined ? labels.delete(key) : labels.set(key, value);
    // Weakest first.
    const reserved = /^pc(ns|sa)\.|^projectcalico\.org\/(namespace|serviceaccount|orchestrator|name)$/;
    for (const name of from.profiles.toReversed()) {
      for (const [key, value] of this.get("profile", name)?.labelsToApply ?? []) {
        if (!reserved.test(key)) put(key, value);
      }
    }
    const account = from.serviceAccount && this.get("serviceAccount", `${from.namespace}/${from.serviceAccount}`);
    for (const [key, value] of account ? account.labels : []) put(`pcsa.${key}`, value);
    for (const [key, value] of (from.namespace && this.get("namespace", from.namespace)?.labels) || []) {
      put(`pcns.${key}`, value);
    }
    if (from.orchestrator !== undefined) put("projectcalico.org/orchestrator", from.orchestrator);
    if (from.name !== undefined) put("projectcalico.org/name", from.name);
    for (const [key, value] of own) if (!reserved.test(key)) put(key, value);
    put("projectcalico.org/namespace", from.namespace);
    put("projectcalico.org/serviceaccount", from.serviceAccount);
    put("pcns.projectcalico.org/name", from.namespace);
    put("pcns.kubernetes.io/metadata.name", from.namespace);
    put("pcsa.projectcalico.org/name", from.serviceAccount);
    return labels;
  }

  /** What a set should hold, read from its title. */
  members(title: string): string {
    const [, port, portSelector] = /^port (\S+) of (.*)$/.exec(title) ?? [];
    const [, addressesOnly, service] = /^(addresses of )?service (\S+)$/.exec(title) ?? [];
    const members = new Set<string>();
    if (service !== undefined) {
      for (const slice of this.all("serviceBackends").filter((slice) => slice.service === service)) {
        for (const { address } of slice.backends) {
          if (addressesOnly) members.add(formatCidr(hostCidr(address)));
          else for (const port of slice.ports) members.add(`${formatAddress(address)} ${port.protocol}/${port.port}`);
        }
      }
      return [...members].sort().join(" ");
    }
    const nodes = /^nodes (.*)$/.exec(title)?.[1];
    if (nodes !== undefined) {
      const selected = this.all("node").filter(({ labels }) => matches(parseSelector(nodes), labels));
      for (const { addresses } of selected) for (const one of addresses) members.add(formatCidr(hostCidr(one)));
      return [...members].sort().join(" ");
    }
    const selector = parseSelector(portSelector ?? title);
    for (const endpoint of this.endpoints().filter(({ labels }) => matches(selector, labels))) {
      if (port === undefined) { for (const net of endpoint.nets) members.add(net); }
      for (const { name, protocol, port: number } of endpoint.ports) {
        if (name === port) {
          for (const address of endpoint.addresses) members.add(`${formatAddress(address)} ${protocol}/${number}`);
        }
      }
    }
    return [...members].sort().join(" ");
  }

  /** Names of tiers and policies that apply, in order. */
  policies(endpoint: NaiveEndpoint, direction: Direction, stages: readonly string[]): string {
    const fixed: Readonly<Record<string, number>> = {
      "kube-admin": 1_000,
      default: 1_000_000,
      "kube-baseline": 10_000_000,
    };
    const isClosed = (name: string) => !(name in fixed) && this.get("tier", name)?.closed === true;
    const tierOrder = (name: string) =>
      fixed[name] ?? (isClosed(name) ? -Infinity : this.get("tier", name)?.order ?? Infinity);
    const keys = (policy: NeutralPolicy) =>
      [tierOrder(policy.tier), policy.tier, policy.order ?? Infinity, policy.sortName, policy.id] as const;
    return this.all("policy")
      .filter((policy) =>
        stages.includes(policy.stage) && policy[direction] && matches(policy.selects, endpoint.labels)
      )
      .sort((a, b) => {
        const [left, right] = [keys(a), keys(b)];
        const at = left.findIndex((key, i) => key !== right[i]);
        return at < 0 ? 0 : left[at]! < right[at]! ? -1 : 1;
      })
      .map((policy) => {
        const rules = isClosed(policy.tier) ? [0] : policy[direction]!.filter(isPossible);
        return `${policy.tier}/${policy.id}${policy.staged ? "*" : ""}(${rules.length})`;
      })
      .join(" ");
  }

  /** All that can be said plainly of a node's state. */
  describe(node: string): string {
    const lines: string[] = [];
    const taken = new Set<string>();
    for (const workload of this.all("workload").sort((a, b) => a.id < b.id ? -1 : 1)) {
      if (workload.node !== node || taken.has(workload.interfaceName)) continue;
      taken.add(workload.interfaceName);
      const endpoint = this.workload(workload);
      const list = (direction: Direction) => this.policies(endpoint, direction, ["normal", "forward"]);
      lines.push(`${workload.id} ${workload.interfaceName} in: ${list("ingress")} out: ${list("egress")}`);
    }
    for (const host of this.all("hostEndpoint").sort((a, b) => a.id < b.id ? -1 : 1)) {
      if (host.node !== node) continue;
      const endpoint = this.host(host);
      const list = (direction: Direction, ...stages: string[]) => this.policies(endpoint, direction, stages);
      lines.push(
        `${host.id} in: ${list("ingress", "normal", "forward")} out: ${list("egress", "normal", "forward")}` +
          ` forward: ${list("ingress", "forward")} | ${list("egress", "forward")} early: ${
            list("ingress", "preDnat")
          }` +
          ` untracked: ${list("ingress", "untracked")} | ${list("egress", "untracked")}`,
      );
    }
    return lines.join("\n");
  }
}

/** Some family can match: each list of prefixes, wanted or not, has one of it. */
const isPossible = ({ family, source, destination }: NeutralRule): boolean =>
  ([4, 6] as const).some((candidate) =>
    (family ?? candidate) === candidate &&
    [source.nets, source.notNets, destination.nets, destination.notNets].every((nets) =>
      !nets?.length || nets.some((net) => cidrFamily(net) === candidate)
    )
  );

/** The same description, of a calculated state. */
export function describeState({ desired }: CalcResult): string {
  const lines: string[] = [];
  const byId = <T>(map: Iterable<readonly [string, T]>) => [...map].sort((a, b) => a[0] < b[0] ? -1 : 1);
  const list = (
    of: {
      tiers: readonly {
        name: string;
        policies: readonly { id: string; staged: boolean; rules: readonly unknown[] }[];
      }[];
    } | undefined,
  ) =>
    (of?.tiers ?? []).flatMap((tier) =>
      tier.policies.map(({ id, staged, rules }) => `${tier.name}/${id}${staged ? "*" : ""}(${rules.length})`)
    ).join(" ");
  for (const [id, w] of byId(desired.workloads)) {
    lines.push(`${id} ${w.interfaceName} in: ${list(w.ingress)} out: ${list(w.egress)}`);
  }
  for (const [id, h] of byId(desired.hostEndpoints)) {
    lines.push(
      `${id} in: ${list(h.ingress)} out: ${list(h.egress)} forward: ${list(h.forwardIngress)} | ${
        list(h.forwardEgress)
      }` +
        ` early: ${list(h.preDnat)} untracked: ${list(h.untrackedIngress)} | ${list(h.untrackedEgress)}`,
    );
  }
  return lines.join("\n");
}

/** `title: members` of each set, as it is and as it should be. */
export function describeSets(world: NaiveWorld, { desired }: CalcResult): { found: string; wanted: string } {
  const sets = [...desired.sets.values()].sort((a, b) => a.title < b.title ? -1 : 1);
  return {
    found: sets.map((set) => `${set.title}: ${membersText(set)}`).join("\n"),
    wanted: sets.map((set) => `${set.title}: ${world.members(set.title)}`).join("\n"),
  };
}
