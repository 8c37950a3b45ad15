/**
 * The kernel as a judge: the product's dataplane brings a node's rules to a state, packets are sent, and where they arrive is held
 * against what is expected. Beside it a second namespace starts from nothing each time: rules that grew must read back as those.
 */
import { type Probe, Prober } from "../../../src/lab/prober.ts";
import type { DesiredState } from "../../../src/model/desired.ts";
import { formatAddress, parseAddress } from "../../../src/model/address.ts";
import { PROTOCOLS } from "../../../src/model/ports.ts";
import type { Dataplane } from "../../../src/sdk/dataplane.ts";
import type { NetlinkSocket, NetworkNamespace } from "../../../src/sdk/kernel_door.ts";
import { NETLINK_NETFILTER, openNetlink } from "../../../src/kernel/netlink/socket.ts";
import { createNamespace } from "../../../src/kernel/netns.ts";
import { printRuleset } from "../../../dataplanes/nftables/print.ts";
import { readTable } from "../../../dataplanes/nftables/read.ts";
import { openDataplane } from "../../../dataplanes/nftables/testdata/open.ts";
import { flowText, type FuzzPacket, packetText } from "../packet.ts";
import { linkTo, NODE_ADDRESSES, OUTSIDE, SLOTS } from "../plan.ts";
import { cutOf, newRenderer } from "../product.ts";
import { type Arrival, AT_NODE, isSendable, KernelNode } from "./node.ts";

/** What the kernel did with a packet, and what was expected of it. */
export interface Surprise {
  readonly packet: FuzzPacket;
  readonly expected: "allow" | "deny";
  /** Where it was seen; undefined: nowhere. */
  readonly arrival: Arrival | undefined;
}

/** The dataplane that the kernel is judged with. */
export interface JudgedDataplane {
  open(namespace: NetworkNamespace): Promise<Dataplane>;
  /** The rules in a namespace: equal rules, equal text. */
  rules(namespace: NetworkNamespace): string;
  /** The rules that a state is rendered to, in the same words; `cut`: as the kernel can do it. Absent: only `Dataplane.diff` tells. */
  rendered?(desired: DesiredState, cut: ReturnType<typeof cutOf>): string;
}

const NFTABLES: JudgedDataplane = {
  open: (namespace) => openDataplane(namespace),
  rules: rulesOf,
  rendered: (desired, cut) => printRuleset(newRenderer("flat", cut).render(desired).ruleset),
};

export class KernelJudge implements AsyncDisposable {
  readonly #open: AsyncDisposableStack;
  readonly #judged: JudgedDataplane;
  readonly #node: KernelNode;
  readonly #dataplane: Dataplane;
  readonly #fresh: NetworkNamespace;
  readonly #cut: ReturnType<typeof cutOf>;
  #generation = 1;

  private constructor(
    open: AsyncDisposableStack,
    judged: JudgedDataplane,
    node: KernelNode,
    dataplane: Dataplane,
    fresh: NetworkNamespace,
  ) {
    this.#open = open;
    this.#judged = judged;
    this.#node = node;
    this.#dataplane = dataplane;
    this.#fresh = fresh;
    using socket = openNetlink(NETLINK_NETFILTER, { namespace: fresh });
    this.#cut = cutOf(socket);
  }

  /** @throws {KernelError} EPERM without CAP_SYS_ADMIN */
  static async open(judged = NFTABLES): Promise<KernelJudge> {
    await using building = new AsyncDisposableStack();
    const node = building.use(new KernelNode());
    const fresh = building.use(createNamespace("fresh node of the fuzzer"));
    const dataplane = building.use(await judged.open(node.namespace));
    const judge = new KernelJudge(building.move(), judged, node, dataplane, fresh);
    return judge;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#open.disposeAsync();
  }

  /** Brings the node's rules to the state. What went wrong, one line each. */
  async apply(desired: DesiredState): Promise<readonly string[]> {
    const report = await this.#dataplane.apply({ ...desired, generation: this.#generation++ });
    return report.converged ? await this.#dataplane.diff?.() ?? [] : report.problems;
  }

  /** The node's rules as the kernel has them. */
  rules(): string {
    return this.#judged.rules(this.#node.namespace);
  }

  /** The rules that were meant. */
  renderedRules(desired: DesiredState): string {
    return this.#judged.rendered?.(desired, this.#cut) ?? this.rules();
  }

  /** The rules of a node that starts with this state, as the kernel has them. What went wrong instead, where something did. */
  async freshRules(desired: DesiredState): Promise<string> {
    await using dataplane = await this.#judged.open(this.#fresh);
    await dataplane.sweep();
    const report = await dataplane.apply({ ...desired, generation: 1 });
    return report.converged ? this.#judged.rules(this.#fresh) : `not applied: ${report.problems.join("; ")}`;
  }

  /** Sends each flow once, after every old flow is forgotten. `expected`: what becomes of a packet. */
  async send(
    packets: readonly FuzzPacket[],
    expected: (packet: FuzzPacket) => "allow" | "deny",
    graceMs?: number,
  ): Promise<{ readonly sent: number; readonly surprises: readonly Surprise[]; readonly late: readonly string[] }> {
    const flows = new Map(packets.filter(isSendable).map((packet) => [flowText(packet), packet]));
    const wanted = new Map([...flows.values()].map((packet) => [packet, expected(packet)] as const));
    this.#node.forgetFlows();
    const awaited = new Set([...wanted].filter(([, verdict]) => verdict === "allow").map(([packet]) => packet));
    const { seen, late } = await this.#node.send([...wanted.keys()], awaited, graceMs);
    const surprises = [...wanted].flatMap(([packet, expected]): Surprise[] => {
      const arrival = seen.get(packet);
      const place = expected === "allow" ? packet.outInterface ?? AT_NODE : undefined;
      return arrival === place ? [] : [{ packet, expected, arrival }];
    });
    return { sent: wanted.size, surprises, late };
  }

  /** What arrived after everything had been looked at. */
  finish(): Promise<readonly string[]> {
    return this.#node.finish();
  }

  /**
   * Tries real connections in the state that was applied: where the first packet is expected to pass, the answer has to come back
   * too. Only flows between addresses that somebody has, and whose answers connection tracking knows. What did not hold, one line each.
   */
  async probe(
    packets: readonly FuzzPacket[],
    desired: DesiredState,
    expected: (packet: FuzzPacket) => "allow" | "deny",
  ): Promise<{ readonly probes: number; readonly failures: readonly string[] }> {
    this.#node.forgetFlows();
    const probes = new Map<string, { readonly probe: Probe; readonly packet: FuzzPacket }>();
    for (const packet of packets) {
      const probe = answers(packet, desired) ? this.#probeOf(packet, expected) : undefined;
      if (probe !== undefined) probes.set(`${packetText({ ...packet, sourcePort: undefined })}`, { probe, packet });
    }
    const tried = [...probes.values()];
    // A new one each time: it keeps a socket for every port that was ever tried.
    using prober = new Prober();
    const results = await prober.run(tried.map(({ probe }) => probe));
    const failures = results.flatMap(({ holds, probe, observed, detail }, index) =>
      holds ? [] : [`${packetText(tried[index]!.packet)}: expected ${probe.expect}, observed ${observed} ${detail}`]
    );
    return { probes: tried.length, failures };
  }

  #probeOf(packet: FuzzPacket, expected: (packet: FuzzPacket) => "allow" | "deny"): Probe | undefined {
    const { source, destination, inInterface, outInterface, icmp, beforeDnat } = packet;
    const protocol = PROBED[packet.protocol];
    const port = packet.destinationPort ?? 0;
    // A probe's source port is one of these, and so must not be what is served.
    const served = port < 32_768 || port > 60_767;
    const isEcho = icmp === undefined || icmp.code === 0 && [8, 128].includes(icmp.type);
    if (protocol === undefined || !served || !isEcho || !HELD.has(source) || !HELD.has(destination)) return undefined;
    const isOwn = linkTo(parseAddress(source)) === inInterface;
    if (!isOwn || inInterface === outInterface || beforeDnat !== undefined) return undefined;
    return {
      from: this.#node.end(inInterface),
      source: parseAddress(source),
      to: parseAddress(destination),
      protocol,
      port,
      target: { end: this.#node.end(outInterface), address: parseAddress(destination), port },
      expect: expected(packet.sourcePort === undefined ? packet : { ...packet, sourcePort: 40_000 }),
    };
  }
}

/** A workload answers from its own addresses only. */
function answers({ destination, outInterface }: FuzzPacket, { workloads }: DesiredState): boolean {
  if (outInterface === undefined || !SLOTS.some(({ link }) => link === outInterface)) return true;
  const address = parseAddress(destination);
  const isOurs = (name: string) => outInterface === name;
  if ([...workloads.values()].some(({ interfaceName }) => isOurs(interfaceName))) {
    return [...workloads.values()].some((one) => isOurs(one.interfaceName) && one.addresses.includes(address));
  }
  return !outInterface.startsWith("mx");
}

const PROBED: Readonly<Record<number, Probe["protocol"] | undefined>> = {
  [PROTOCOLS.TCP]: "tcp",
  [PROTOCOLS.UDP]: "udp",
  [PROTOCOLS.SCTP]: "sctp",
  [PROTOCOLS.ICMP]: "icmp",
  [PROTOCOLS.ICMPv6]: "icmpv6",
};
/** As text: what some place of the plan can send from. */
const HELD: ReadonlySet<string> = new Set(
  [...SLOTS.flatMap(({ addresses }) => addresses), ...NODE_ADDRESSES, ...OUTSIDE].map(formatAddress),
);

export function rulesOf(namespace: NetworkNamespace): string {
  using socket: NetlinkSocket = openNetlink(NETLINK_NETFILTER, { namespace });
  const { ruleset } = readTable(socket);
  return ruleset === undefined ? "no table" : printRuleset(ruleset);
}
