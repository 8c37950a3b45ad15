/** The way of a packet between two ends, node by node, and what each node judges on it. Pure. */
import { type Address, addressFamily, cidrContains, type Family, formatAddress } from "../../model/address.ts";
import type { DesiredState, Packet } from "../../model/desired.ts";
import {
  endpointAt,
  type EndpointRef,
  judge,
  type Judgement,
  judgePath,
  type Path,
  type PathStep,
} from "../../model/evaluate.ts";
import type { Direction } from "../../model/rule.ts";
import type { End } from "./end.ts";
import { NODE_LINK } from "./nodes.ts";

/** Which link a node reaches an address by, and so hears from it. */
export type LinkTowards = (node: string, address: Address) => string | undefined;

export interface PathParts {
  /** The node that answers: it forwards where neither end is on a node. */
  readonly node: string;
  readonly stateOf: (node: string) => DesiredState;
  /** Undefined: not known. */
  readonly linkTowards: LinkTowards;
  /** Addresses of a node, for what leaves it with its own. */
  readonly addressesOf: (node: string) => readonly Address[];
}

/** What one node was asked, or would be. */
export interface AskedStep {
  readonly node: string;
  readonly packet: Packet;
  readonly step: PathStep;
  readonly direction: Direction;
  /** False: dropped before; shown for whoever wants to open the way. */
  readonly reached: boolean;
}

export interface WayJudgement {
  readonly verdict: "allow" | "deny";
  readonly steps: readonly AskedStep[];
  readonly notes: readonly string[];
}

/** A node on the way, with what it sees. */
interface Leg {
  readonly node: string;
  readonly path: Path;
}

/** The first packet of a new connection from `from` to `to`. */
export function judgeWay(from: End, to: End, packet: Packet, parts: PathParts): WayJudgement {
  const notes: string[] = [];
  const legs = legsOf(from, to, packet, parts, notes);
  const steps: AskedStep[] = [];
  let verdict: "allow" | "deny" = "allow";
  for (const { node, path } of legs) {
    const state = parts.stateOf(node);
    const judged = judgePath(state, path);
    for (const step of judged.steps) {
      steps.push({
        node,
        packet: path.packet,
        step,
        direction: directionOf(step, state, path),
        reached: verdict === "allow",
      });
    }
    if (verdict === "allow" && judged.verdict === "deny") verdict = "deny";
    if (judged.verdict === "deny") steps.push(...unreached(state, node, path, judged.steps));
  }
  return { verdict, steps, notes };
}

/** What would be asked behind the step that denied: the workload at the end of this node's part of the way. */
function unreached(state: DesiredState, node: string, path: Path, steps: readonly PathStep[]): AskedStep[] {
  const { packet, outInterface } = path;
  const workload = outInterface === undefined
    ? undefined
    : [...state.workloads.values()].find((one) => one.interfaceName === outInterface);
  if (workload === undefined) return [];
  const endpoint: EndpointRef = { workload: workload.id };
  if (steps.some((step) => step.kind === "judgement" && isIngressOf(step.judgement, workload.id))) return [];
  const judgement = judge(state, endpoint, "ingress", packet);
  return [{ node, packet, step: { kind: "judgement", judgement }, direction: "ingress", reached: false }];
}

const isIngressOf = ({ stage, endpoint }: Judgement, workload: string): boolean =>
  stage === "ingress" && "workload" in endpoint && endpoint.workload === workload;

/** Of a step that policy was not asked at: by which end of the path the endpoint is at. */
function directionOf(step: PathStep, state: DesiredState, { inInterface, outInterface }: Path): Direction {
  if (step.kind === "judgement") return /egress/i.test(step.judgement.stage) ? "egress" : "ingress";
  const { endpoint } = step;
  const at = (name: string | undefined) => name === undefined ? undefined : endpointAt(state, name);
  if ("hostEndpoint" in endpoint) return at(inInterface)?.host?.id === endpoint.hostEndpoint ? "ingress" : "egress";
  return at(outInterface)?.workload?.id === endpoint.workload ? "ingress" : "egress";
}

function legsOf(from: End, to: End, packet: Packet, parts: PathParts, notes: string[]): readonly Leg[] {
  const interfaceOf = (end: End): string | undefined =>
    end.workload === undefined
      ? undefined
      : parts.stateOf(end.node ?? "").workloads.get(end.workload)?.interfaceName ?? noInterface(end, notes);
  if (from.kind === "node" && to.kind === "node" && from.node === to.node) {
    notes.push(`${from.name} talks to itself: what stays within a node meets no policy`);
    return [];
  }
  for (const end of [from, to]) {
    if (end.workload === undefined || end.attached) continue;
    notes.push(
      end.node === undefined
        ? `${end.name} has no WorkloadEndpoint and no node: shown is what its policies say, wherever it is enforced`
        : `${end.name} has no WorkloadEndpoint: shown is what its policies say; ${end.node} enforces them if it knows the pod by other means`,
    );
  }
  const nodeOf = (end: End) => end.kind === "outside" ? undefined : end.node ?? "";
  const start = nodeOf(from), end = nodeOf(to);
  if (start !== undefined && start === end && start !== "") {
    return [{ node: start, path: { packet, inInterface: interfaceOf(from), outInterface: interfaceOf(to) } }];
  }
  const link = (node: string, stated: string | undefined, address: Address) =>
    stated ?? linkOf(node, address, parts, notes);
  const legs: Leg[] = [];
  let onTheWire = packet;
  if (start !== undefined) {
    const outInterface = link(start, from.kind === "node" ? from.link : to.link, packet.destination);
    legs.push({ node: start, path: { packet, inInterface: interfaceOf(from), outInterface } });
    onTheWire = asItLeaves(from, packet, parts, notes);
  }
  if (end !== undefined) {
    const inInterface = link(end, to.kind === "node" ? to.link : from.link, onTheWire.source);
    legs.push({ node: end, path: { packet: onTheWire, inInterface, outInterface: interfaceOf(to) } });
  }
  if (legs.length === 0) {
    notes.push(`neither end is on a node that is known: shown is what ${parts.node} forwards`);
    const inInterface = link(parts.node, from.link, packet.source),
      outInterface = link(parts.node, to.link, packet.destination);
    legs.push({ node: parts.node, path: { packet, inInterface, outInterface } });
  }
  return legs;
}

/** A name that no link has: the packet is then between links that nobody guards. */
function noInterface(end: End, notes: string[]): string {
  notes.push(`${end.name} has no interface on ${end.node ?? "any node"} that is known`);
  return NODE_LINK;
}

/** Where it is not known, it matters only where there are host endpoints. */
function linkOf(node: string, address: Address, parts: PathParts, notes: string[]): string {
  const known = parts.linkTowards(node, address);
  if (known !== undefined) return known;
  const hosts = [...parts.stateOf(node).hostEndpoints.values()];
  if (hosts.length === 0) return NODE_LINK;
  const { link, isGuess } = guessLink(hosts.map(({ interfaces }) => interfaces));
  if (isGuess) {
    notes.push(
      `which link ${node} has towards ${
        formatAddress(address)
      } is not known here: ${link} is assumed (ADDRESS@LINK or node/${node}@LINK says another)`,
    );
  }
  return link;
}

/** The link of a node to the others, by its host endpoints: that with the node's address, else what there is. */
export function guessLink(
  interfaces: readonly (readonly string[] | "*")[],
): { readonly link: string; readonly isGuess: boolean } {
  const names = interfaces.flatMap((list) => list === "*" ? [] : list).toSorted();
  if (names.includes(NODE_LINK)) return { link: NODE_LINK, isGuess: false };
  if (interfaces.includes("*") && names.length === 0) return { link: NODE_LINK, isGuess: false };
  return { link: names[0] ?? NODE_LINK, isGuess: names.length > 0 };
}

/** What a pod sends outside all pools leaves its node with the node's address. */
function asItLeaves(from: End, packet: Packet, parts: PathParts, notes: string[]): Packet {
  if (from.kind === "node" || from.node === undefined) return packet;
  const source = sourceOutside(parts.stateOf(from.node), packet, parts.addressesOf(from.node));
  if (source === packet.source) return packet;
  notes.push(
    `${from.node} sends it on with its own address ${formatAddress(source)}: the pool of ${
      formatAddress(packet.source)
    } has natOutgoing`,
  );
  return { ...packet, source };
}

/** The source address that others see. */
export function sourceOutside(
  { masquerade }: Pick<DesiredState, "masquerade">,
  { source, destination }: Pick<Packet, "source" | "destination">,
  nodeAddresses: readonly Address[],
): Address {
  const within = (nets: typeof masquerade.sources, address: Address) => nets.some((net) => cidrContains(net, address));
  if (!within(masquerade.sources, source) || within(masquerade.inside, destination)) return source;
  const family: Family = addressFamily(source);
  return nodeAddresses.find((address) => addressFamily(address) === family) ?? source;
}
