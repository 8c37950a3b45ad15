/** `manx explain` and `manx policies`: what the desired state says about a packet or an endpoint, and why. */
import type { Calc } from "../../calc/mod.ts";
import { tierOf } from "../../calc/policy_list.ts";
import { type Address, addressFamily, type Family, formatAddress } from "../../model/address.ts";
import type { DesiredState, Failsafe, PolicyList } from "../../model/desired.ts";
import type { Decision, EndpointRef, Stage } from "../../model/evaluate.ts";
import { formatProtocol } from "../../model/rule_format.ts";
import type { Datastore } from "../../sdk/datastore.ts";
import type { Dataplane } from "../../sdk/dataplane.ts";
import { explainError, RefusedError, UnavailableError } from "../../sdk/errors.ts";
import type { Log } from "../../sdk/plugin.ts";
import { describe } from "../config.ts";
import { createCounters } from "./counter.ts";
import {
  type End,
  holdersOf,
  type Lookup,
  nodeAddresses,
  readService,
  resolveEnd,
  type ServiceTarget,
  workloadName,
} from "./end.ts";
import { concerning, Nodes, type NodesView, standsFor } from "./nodes.ts";
import { packetOf, packetView, parseProtocol, type ProtocolQuestion, resolvePort } from "./packet.ts";
import { judgeWay, type LinkTowards, type WayJudgement } from "./path.ts";
import { appliedPolicy, directionOf, keyOf, listOf, type StepParts, viewOfStep } from "./step.ts";
import type {
  AppliedPolicy,
  EndView,
  ExplainQuestion,
  ExplainReply,
  ExplainRequest,
  Explanation,
  PoliciesReply,
  PolicyListView,
  StepView,
} from "./view.ts";
import type { KindRegistry } from "../resources/kinds.ts";
import { createPause } from "../pause.ts";
import { NotFoundError } from "../resources/resources.ts";
import { readSourceLines, type SourceLines, sourceLinesKey } from "../resources/source_lines.ts";
import { compareWorlds } from "../what_if/what_if.ts";
import type { WorldSide } from "../what_if/parties.ts";
import { readWhatIf, type WhatIf } from "../what_if/manifest.ts";

/** Backends of a service that are explained one by one. */
const BACKENDS_MAX = 16;
const DEFAULT_NAMESPACE = "default";
const STAGES: readonly Stage[] = [
  "untrackedIngress",
  "preDnat",
  "ingress",
  "forwardIngress",
  "egress",
  "forwardEgress",
  "untrackedEgress",
];

export interface ExplainParts {
  readonly node: string;
  readonly failsafe: Failsafe;
  readonly calc: Calc;
  readonly datastore: Pick<Datastore, "get">;
  readonly registry: KindRegistry;
  readonly dataplanes: readonly { readonly name: string; readonly instance: Dataplane }[];
  /** Of this node. */
  readonly addresses: () => readonly Address[];
  /** Links of this node, from the kernel. Undefined: no route. */
  readonly linkTowards: (address: Address) => string | undefined;
  readonly isSynced: () => boolean;
  /** Whether the kernel has what `calc` says. */
  readonly isInForce: () => boolean;
  readonly log: Log;
}

export interface Explainer {
  /** @throws {ManxError} codes `refused`, `not-found`, `ambiguous`, `unavailable` */
  explain(request: ExplainRequest, signal?: AbortSignal): Promise<ExplainReply>;
  /** What applies to an endpoint, in order. @throws {ManxError} as `explain` */
  policies(endpoint: string, namespace: string, signal?: AbortSignal): Promise<PoliciesReply>;
}

/** A world to ask: the one that is, or one that would be. */
interface Scene {
  readonly lookup: Lookup;
  readonly stateOf: (node: string) => DesiredState;
  /** Places of manifests that are not stored, before those that are. */
  readonly lines: ReadonlyMap<string, SourceLines>;
  /** Whether the kernel counts by these lists. */
  readonly isLive: boolean;
}

export function createExplainer(parts: ExplainParts): Explainer {
  const { node, calc } = parts;
  const counters = createCounters(parts.dataplanes, parts.log);
  /** One imagined world at a time: each is a second copy of the real one. */
  let turn: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(body: () => Promise<T>): Promise<T> => {
    const mine = turn.then(body);
    turn = mine.catch(() => {});
    return mine;
  };

  function assertSynced(): void {
    if (parts.isSynced()) return;
    throw new UnavailableError("explain: found the datastore not in sync, wanted it in sync: nothing is known yet");
  }

  const linkTowards: LinkTowards = (of, address) => of === node ? parts.linkTowards(address) : undefined;
  const addressesOf = (name: string, lookup: Lookup): readonly Address[] =>
    name === node ? parts.addresses() : nodeAddresses(name, lookup);

  /** The world as it is, for what lies between these ends: this node's own state, and other nodes' as they calculate it. */
  async function sceneOfNow(ends: readonly End[], addresses: readonly Address[], signal?: AbortSignal): Promise<Scene> {
    const isOwn = (end: End) => end.node === node && (end.attached || end.kind === "node");
    const elsewhere = ends.some((end) => end.kind !== "outside" && !isOwn(end));
    const nodes = newNodes(signal);
    if (elsewhere) {
      const ids = ends.flatMap(({ workload }) => workload === undefined ? [] : [standsFor(workload) ?? workload]);
      await nodes.take(concerning(calc.world(), addresses, new Set(ids)));
    }
    const view = nodes.view();
    // One state for the whole answer, whatever happens meanwhile.
    const { desired } = calc.current;
    const stands = ends.some((end) => end.node === node && !isOwn(end));
    return {
      lookup: calc,
      stateOf: (name) => name === node && !stands ? desired : view.stateOf(name),
      lines: new Map(),
      isLive: true,
    };
  }

  const newNodes = (signal?: AbortSignal): Nodes =>
    new Nodes({ node, failsafe: parts.failsafe, pause: createPause(signal) });

  function linesReader(scene: Scene, signal?: AbortSignal): StepParts["linesOf"] {
    const found = new Map<string, Promise<SourceLines | undefined>>();
    const read = async (id: string) => {
      const key = keyOf(id);
      if (key.kind === "") return undefined;
      try {
        const kept = await parts.datastore.get(sourceLinesKey(key), signal);
        return kept === undefined
          ? undefined
          : readSourceLines(kept.value, (await parts.datastore.get(key, signal))?.value);
      } catch (error) {
        // The answer stands without it.
        parts.log.debug("explain: a place in a manifest cannot be read", { policy: id, error: explainError(error) });
        return undefined;
      }
    };
    return (id) => {
      const known = scene.lines.get(id);
      if (known !== undefined) return Promise.resolve(known);
      let lines = found.get(id);
      if (lines === undefined) found.set(id, lines = read(id));
      return lines;
    };
  }

  async function explainWay(
    question: ProtocolQuestion,
    from: End,
    to: End,
    port: number | undefined,
    family: Family,
    scene: Scene,
    signal?: AbortSignal,
  ): Promise<{ way: WayJudgement; steps: readonly StepView[]; source: Address; destination: Address }> {
    const source = addressOf(from, family)!, destination = addressOf(to, family)!;
    const packet = packetOf(question, port, source, destination);
    const way = judgeWay(from, to, packet, {
      node,
      stateOf: scene.stateOf,
      linkTowards,
      addressesOf: (name) => addressesOf(name, scene.lookup),
    });
    const linesOf = linesReader(scene, signal);
    const holders = memo((address: Address) => holdersOf(address, scene.lookup));
    const steps: StepView[] = [];
    for (const asked of way.steps) {
      steps.push(
        await viewOfStep(asked, {
          calc: scene.lookup,
          state: scene.stateOf(asked.node),
          nameOf: (endpoint) => nameOf(endpoint, scene.lookup),
          holdersOf: holders,
          linesOf,
          counterOf: (list, decision) => counterOf(asked.node, list, decision, scene, signal),
        }),
      );
    }
    return { way, steps, source, destination };
  }

  async function counterOf(of: string, list: PolicyList, decision: Decision, scene: Scene, signal?: AbortSignal) {
    if (!scene.isLive) return { absent: "not applied yet" } as const;
    if (of !== node) return { absent: of === "" ? "its node is not known" : `${of} counts: ask there` } as const;
    return await counters.of(list, decision, signal);
  }

  async function explainBetween(
    asked: ExplainQuestion,
    question: ProtocolQuestion,
    from: End,
    to: End,
    port: number | undefined,
    scene: Scene,
    now: Scene | undefined,
    signal?: AbortSignal,
  ): Promise<Explanation> {
    const families = commonFamilies(asked, question, from, to);
    const family = families[0]!;
    const { way, steps, source, destination } = await explainWay(question, from, to, port, family, scene, signal);
    const notes = [...way.notes, ...untrackedNotes(steps), ...unguardedNotes([from, to], way)];
    if (scene.isLive && !parts.isInForce()) {
      notes.push(`the latest change is not in force on ${node} yet: the kernel may still judge as before`);
    }
    const packet = packetOf(question, port, source, destination);
    const verdictNow = now === undefined ? undefined : judgeWay(from, to, packet, {
      node,
      stateOf: now.stateOf,
      linkTowards,
      addressesOf: (name) => addressesOf(name, now.lookup),
    }).verdict;
    let otherFamily: Explanation["otherFamily"];
    const second = families[1];
    if (second !== undefined) {
      const other = await explainWay(question, from, to, port, second, scene, signal);
      otherFamily = {
        family: second,
        verdict: other.way.verdict,
        same: other.way.verdict === way.verdict && decisive(other.steps)?.reason === decisive(steps)?.reason,
        reason: decisive(other.steps)?.reason ?? "",
      };
    }
    return {
      verdict: way.verdict,
      ...verdictNow === undefined ? {} : { verdictNow },
      from: endView(from, source),
      to: endView(to, destination),
      packet: packetView(question, packet),
      steps,
      ...otherFamily === undefined ? {} : { otherFamily },
      notes,
    };
  }

  async function explain(request: ExplainRequest, signal?: AbortSignal): Promise<ExplainReply> {
    assertSynced();
    const namespace = request.namespace ?? DEFAULT_NAMESPACE;
    const { question: asked } = request;
    const protocol = asked === undefined ? undefined : parseProtocol(asked.protocol);
    if (request.whatIf === undefined) {
      if (asked === undefined) throw new RefusedError(["explain: found nothing to explain, wanted FROM TO PROTOCOL"]);
      const explanations = await explainAll(asked, protocol!, namespace, undefined, signal);
      return { node, explanations };
    }
    const whatIf = readWhatIf(request.whatIf, namespace, parts.registry, calc);
    const { scene, now, reply } = await inTurn(() => imagine(whatIf, signal));
    const explanations = asked === undefined
      ? []
      : await explainAll(asked, protocol!, namespace, { scene, now }, signal);
    return { node, explanations, whatIf: reply };
  }

  /** The world with the changes, beside the one that is; and what differs. */
  async function imagine(whatIf: WhatIf, signal?: AbortSignal) {
    const nodes = newNodes(signal);
    // A copy of the list, made at once: the daemon goes on between steps.
    await nodes.take([...calc.world()]);
    const before = nodes.view();
    await nodes.take(whatIf.changes);
    const after = nodes.view();
    const sceneOf = (view: NodesView, lookup: Lookup, lines: Scene["lines"]): Scene => ({
      lookup,
      stateOf: (name) => view.stateOf(name),
      lines,
      isLive: false,
    });
    const now = sceneOf(before, calc, new Map()), scene = sceneOf(after, nodes.lookup, whatIf.lines);
    const side = (view: NodesView, lookup: Lookup): WorldSide => ({
      desired: view.desired,
      lookup,
      stateOf: (name) => view.stateOf(name),
      homeOf: (id) => view.homeOf(id),
      addressesOf: memo((name) => addressesOf(name, lookup)),
    });
    const compared = await compareWorlds(
      side(before, calc),
      side(after, nodes.lookup),
      linkTowards,
      createPause(signal),
    );
    return { scene, now, reply: { changes: whatIf.outcomes, ...compared } };
  }

  async function explainAll(
    asked: ExplainQuestion,
    question: ProtocolQuestion,
    namespace: string,
    worlds: { readonly scene: Scene; readonly now: Scene } | undefined,
    signal?: AbortSignal,
  ): Promise<readonly Explanation[]> {
    const lookup = worlds?.scene.lookup ?? calc;
    const from = resolveEnd("from", asked.from, namespace, node, lookup);
    const service = readService(asked.to, namespace) ?? serviceAt(asked.to, lookup);
    const targets = service === undefined
      ? [{ to: resolveEnd("to", asked.to, namespace, node, lookup), port: undefined }]
      : backendsOf(asked.to, service, question, lookup);
    const explanations: Explanation[] = [];
    for (const { to, port: backendPort } of targets) {
      const port = backendPort ?? resolvePort(question, to);
      const scene = worlds?.scene ?? await sceneOfNow([from, to], [...from.addresses, ...to.addresses], signal);
      const isNew = worlds !== undefined && [from, to].some((end) => !isThere(end, worlds.now));
      explanations.push(
        await explainBetween(asked, question, from, to, port, scene, isNew ? undefined : worlds?.now, signal),
      );
    }
    return explanations;
  }

  function backendsOf(
    text: string,
    { namespace, name }: { readonly namespace: string; readonly name: string },
    question: ProtocolQuestion,
    lookup: Lookup,
  ): readonly { to: End; port: number }[] {
    const service = lookup.object("service", `${namespace}/${name}`);
    if (service === undefined) throw new NotFoundError(`to: found no service ${namespace}/${name}`);
    const { protocol, port } = question;
    const wanted = service.ports.find((one) =>
      one.protocol === protocol && (typeof port === "string" ? one.name === port : one.port === port)
    );
    if (wanted === undefined) {
      const ports = service.ports.map((one) => `${formatProtocol(one.protocol)}/${one.port}`).join(", ");
      throw new RefusedError([
        `protocol: found ${
          describe(`${formatProtocol(protocol)}/${port}`)
        }, which is no port of service ${namespace}/${name}, wanted one of ${ports}`,
      ]);
    }
    const backends = new Map<string, { address: Address; port: number }>();
    for (const { objects } of lookup.world()) {
      for (const object of objects) {
        if (object.kind !== "serviceBackends" || object.service !== service.id) continue;
        const target = object.ports.find((one) => one.name === wanted.name && one.protocol === protocol);
        if (target === undefined) continue;
        for (const { address, ready } of object.backends) {
          if (ready) backends.set(`${address} ${target.port}`, { address, port: target.port });
        }
      }
    }
    if (backends.size === 0) {
      throw new NotFoundError(`to: found no ready endpoint of ${text}, wanted at least one in its EndpointSlices`);
    }
    return [...backends.values()].slice(0, BACKENDS_MAX).map(({ address, port }) => ({
      to: resolveEnd("to", formatAddress(address), namespace, node, lookup),
      port,
    }));
  }

  async function policies(endpoint: string, namespace: string, signal?: AbortSignal): Promise<PoliciesReply> {
    assertSynced();
    const end = resolveEnd("policies", endpoint, namespace, node, calc);
    if (end.kind === "outside") {
      throw new NotFoundError(
        `policies: found no endpoint with ${end.name}: policy applies to pods, endpoints and nodes`,
      );
    }
    const scene = await sceneOfNow([end], end.addresses, signal);
    const linesOf = linesReader(scene, signal);
    const at = { calc: scene.lookup, linesOf };
    const lists: PolicyListView[] = [];
    const state = scene.stateOf(end.node ?? "");
    const refs: EndpointRef[] = end.workload !== undefined
      ? [{ workload: end.workload }]
      : [...state.hostEndpoints.keys()].toSorted().map((hostEndpoint) => ({ hostEndpoint }));
    for (const ref of refs) {
      for (const stage of STAGES) {
        const list = listOf(state, ref, stage);
        if (list !== undefined) lists.push(await listView(nameOf(ref, calc), stage, list, at));
      }
    }
    return { endpoint: end.name, node: end.node ?? "", lists };
  }

  return { explain, policies };
}

/** The service that has the address as its own. */
function serviceAt(text: string, lookup: Lookup): ServiceTarget | undefined {
  for (const { objects } of lookup.world()) {
    for (const object of objects) {
      if (object.kind === "service" && object.clusterAddresses.some((address) => formatAddress(address) === text)) {
        return object;
      }
    }
  }
  return undefined;
}

async function listView(
  endpoint: string,
  stage: Stage,
  list: PolicyList,
  parts: Pick<StepParts, "calc" | "linesOf">,
): Promise<PolicyListView> {
  const all = (policies: PolicyList["profiles"]): Promise<AppliedPolicy[]> =>
    Promise.all(policies.map((policy) => appliedPolicy(policy, parts)));
  return {
    endpoint,
    direction: directionOf(stage),
    stage,
    tiers: await Promise.all(list.tiers.map(async ({ name, defaultAction, policies }) => {
      const { order } = tierOf(name, parts.calc.object("tier", name));
      return { name, order: Number.isFinite(order) ? order : null, defaultAction, policies: await all(policies) };
    })),
    profiles: await all(list.profiles),
    end: list.end,
  };
}

function nameOf(endpoint: EndpointRef, lookup: Lookup): string {
  if ("hostEndpoint" in endpoint) return `host endpoint ${endpoint.hostEndpoint}`;
  const workload = lookup.object("workload", endpoint.workload);
  return workload === undefined ? standsFor(endpoint.workload) ?? endpoint.workload : workloadName(workload);
}

/** Whether both worlds have it. */
const isThere = (end: End, { lookup }: Scene): boolean =>
  end.workload === undefined || lookup.object("workload", end.workload) !== undefined ||
  lookup.object("pod", standsFor(end.workload) ?? "") !== undefined;

const addressOf = (end: End, family: Family): Address | undefined =>
  end.addresses.find((address) => addressFamily(address) === family);

/** The one to explain, then the other where it may be told of. @throws {RefusedError} */
function commonFamilies(asked: ExplainQuestion, question: ProtocolQuestion, from: End, to: End): readonly Family[] {
  const both = ([4, 6] as const).filter((family) =>
    addressOf(from, family) !== undefined && addressOf(to, family) !== undefined
  );
  const has = (end: End) =>
    end.addresses.length === 0
      ? `${end.name} has no address`
      : `${end.name} has ${end.addresses.map(formatAddress).join(" and ")}`;
  const wanted = asked.family ?? question.family;
  if (asked.family !== undefined && question.family !== undefined && asked.family !== question.family) {
    throw new RefusedError([
      `protocol: found ${formatProtocol(question.protocol)} with IPv${asked.family}, wanted ${
        asked.family === 4 ? "icmp" : "icmpv6"
      }`,
    ]);
  }
  if (wanted !== undefined && !both.includes(wanted) || both.length === 0) {
    throw new RefusedError([
      `explain: found no ${wanted === undefined ? "" : `IPv${wanted} `}addresses on both ends (${has(from)}; ${
        has(to)
      }), wanted two of one family`,
    ]);
  }
  return wanted === undefined ? both : [wanted];
}

const endView = (end: End, address: Address): EndView => ({
  name: end.name,
  kind: end.kind,
  address: formatAddress(address),
  ...end.node === undefined ? {} : { node: end.node },
  labels: Object.fromEntries([...end.labels].toSorted(([a], [b]) => a < b ? -1 : 1)),
});

/** The step that made the verdict: the one that denied, else the last that was asked. */
export const decisive = (steps: readonly StepView[]): StepView | undefined =>
  steps.find(({ verdict }) => verdict === "deny") ?? steps.at(-1);

/** Without connection tracking nobody knows an answer for one. */
function untrackedNotes(steps: readonly StepView[]): string[] {
  const untracked = steps.some(({ stage, decision }) => stage.startsWith("untracked") && decision?.by === "rule");
  return untracked
    ? ["doNotTrack policy decided: answers are judged by themselves, so explain the other way as well"]
    : [];
}

/** Nodes that nobody has written a host endpoint for. */
function unguardedNotes(ends: readonly End[], { steps }: WayJudgement): string[] {
  const guarded = new Set(steps.flatMap(({ node, step }) => {
    const ref = step.kind === "judgement" ? step.judgement.endpoint : step.endpoint;
    return "hostEndpoint" in ref ? [node] : [];
  }));
  return ends.filter(({ kind, node }) => kind === "node" && !guarded.has(node!)).map(({ name }) =>
    `${name} has no host endpoint there: what it sends and gets itself meets no policy of its own`
  );
}

function memo<K, V>(make: (key: K) => V): (key: K) => V {
  const made = new Map<K, V>();
  return (key) => {
    let value = made.get(key);
    if (value === undefined) made.set(key, value = make(key));
    return value;
  };
}
