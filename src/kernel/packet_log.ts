/** Packets that our rules logged, read from their NFLOG group: what every dataplane does alike whose rules log there. */
import type { PrefixResolver } from "../model/log_prefix.ts";
import { readPacketHeader } from "../model/packet_header.ts";
import type { LoggedPacket, LostPackets } from "../sdk/dataplane.ts";
import type { NetlinkMessage, NetlinkSocket } from "../sdk/kernel_door.ts";
import type { Host } from "../sdk/plugin.ts";
import { DecodeError, isErrno } from "./errors.ts";
import {
  bindLogGroup,
  type GroupPacket,
  NFULNL_MSG_PACKET,
  parseGroupPacket,
  unbindLogGroup,
} from "./netlink/schema/nflog.ts";
import { NETLINK_NETFILTER } from "./netlink/schema/nftables.ts";
import { findLink } from "./rtnetlink.ts";

/** NETLINK_ROUTE, include/uapi/linux/netlink.h. */
const NETLINK_ROUTE = 0;
/** Network and transport headers, with room for IPv4 options and a few IPv6 extension headers. */
const COPY_BYTES = 160;
/** The kernel holds a packet back for at most so long: what people see is fresh, and a burst shares its datagrams. */
const LATENCY_MS = 50;
const QUEUE_PACKETS = 64;
/** Some 2,000 packets: more is told as lost, not as news of long ago. */
const BUFFER_BYTES = 1024 * 1024;
/** NF_INET_LOCAL_OUT of include/uapi/linux/netfilter.h: from here on a packet leaves. */
const HOOK_OUTPUT = 3;
/** Links hardly ever change their names; those that are gone are asked for again as well. */
const NAMES_KEPT_MS = 10_000;
const NAMES_MAX = 4_096;

/** What arrives in `group`, until `signal` aborts. */
export type PacketLogReader = (
  host: Pick<Host, "kernel" | "clock">,
  group: number,
  prefixes: PrefixResolver,
  signal: AbortSignal,
) => AsyncGenerator<LoggedPacket | LostPackets, void, undefined>;

/**
 * `unavailable` makes the plugin contract's error of a group that somebody else reads: this room knows only the contract's types.
 * The reader throws it, and {KernelError}.
 */
export const packetLogReader = (unavailable: (message: string, cause: unknown) => Error): PacketLogReader =>
  async function* (host, group, prefixes, signal) {
    let socket: NetlinkSocket;
    try {
      socket = openLogGroup(host, group);
    } catch (cause) {
      throw isErrno(cause, "EPERM") ? unavailable(groupTaken(group), cause) : cause;
    }
    yield* readPackets(socket, host, prefixes, signal);
  };

/**
 * The socket is closed at the end.
 * @throws {KernelError}
 */
async function* readPackets(
  group: NetlinkSocket,
  host: Pick<Host, "kernel" | "clock">,
  prefixes: PrefixResolver,
  signal: AbortSignal,
): AsyncGenerator<LoggedPacket | LostPackets, void, undefined> {
  using socket = group;
  using links = host.kernel.netlink(NETLINK_ROUTE);
  const nameOf = linkNames(links, () => host.clock.nowMs());
  let expected = 0;
  while (!signal.aborted) {
    try {
      for await (const messages of socket.events(signal)) {
        for (const message of messages) {
          if (message.type !== NFULNL_MSG_PACKET) continue;
          const found = read(message);
          if (found === undefined) {
            yield { lost: 1 };
            continue;
          }
          const { sequence = expected } = found;
          const lost = sequence - expected >>> 0;
          expected = sequence + 1 >>> 0;
          if (lost > 0) yield { lost };
          yield describe(found, prefixes, nameOf, host.clock.wallMs()) ?? { lost: 1 };
        }
      }
    } catch (error) {
      // Some were lost; the next one's number says how many.
      if (!isErrno(error, "ENOBUFS")) throw error;
    }
  }
}

/** @throws {KernelError} EPERM where the group is another socket's */
const openLogGroup = ({ kernel }: Pick<Host, "kernel">, group: number): NetlinkSocket =>
  kernel.netlink(NETLINK_NETFILTER, {
    subscriptions: [{
      begin: bindLogGroup({ group, copyBytes: COPY_BYTES, timeoutMs: LATENCY_MS, queueLength: QUEUE_PACKETS }),
      end: unbindLogGroup(group),
    }],
    eventBufferBytes: BUFFER_BYTES,
  });

const groupTaken = (group: number): string =>
  `read logged packets of NFLOG group ${group}: found that another program reads this group (/proc/net/netfilter/nfnetlink_log ` +
  "names its netlink port), wanted it for this daemon alone: end that program, or set another logGroup for the dataplane";

/** Undefined: not to be read. */
function read(message: NetlinkMessage): GroupPacket | undefined {
  try {
    return parseGroupPacket(message);
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    return undefined;
  }
}

/** Undefined: not a packet of IP, which only a rule of somebody else can log. */
function describe(
  { payload, prefix, hook, inIndex, outIndex, timestampMs }: GroupPacket,
  prefixes: PrefixResolver,
  nameOf: (index: number) => string | undefined,
  nowMs: number,
): LoggedPacket | undefined {
  const header = readPacketHeader(payload);
  if (header === undefined) return undefined;
  const { verdict, direction, decision } = prefixes.resolve(prefix) ?? {
    verdict: "log",
    direction: hook !== undefined && hook >= HOOK_OUTPUT ? "egress" : "ingress",
    decision: undefined,
  };
  const inInterface = inIndex === undefined ? undefined : nameOf(inIndex);
  const outInterface = outIndex === undefined ? undefined : nameOf(outIndex);
  return {
    atMs: timestampMs ?? nowMs,
    verdict,
    direction,
    decision,
    prefix,
    ...header,
    ...inInterface === undefined ? {} : { inInterface },
    ...outInterface === undefined ? {} : { outInterface },
  };
}

/** Names of links by index, asked for once in a while. */
function linkNames(socket: NetlinkSocket, nowMs: () => number): (index: number) => string | undefined {
  const names = new Map<number, { readonly name: string | undefined; readonly untilMs: number }>();
  return (index) => {
    const now = nowMs();
    const known = names.get(index);
    if (known !== undefined && known.untilMs > now) return known.name;
    if (names.size >= NAMES_MAX) names.clear();
    const name = findLink(socket, { index })?.name;
    names.set(index, { name, untilMs: now + NAMES_KEPT_MS });
    return name;
  };
}
