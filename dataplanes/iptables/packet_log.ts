/** Packets that our rules logged. */
import { groupTaken, openLogGroup, readPacketLog as readGroup } from "../../src/kernel/packet_log.ts";
import type { PrefixResolver } from "../../src/model/log_prefix.ts";
import type { LoggedPacket, LostPackets } from "../../src/sdk/dataplane.ts";
import { UnavailableError } from "../../src/sdk/errors.ts";
import type { NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import type { Host } from "../../src/sdk/plugin.ts";

/**
 * What arrives in `group`, until `signal` aborts.
 * @throws {UnavailableError} where the group is somebody else's; {KernelError}
 */
export async function* readPacketLog(
  host: Pick<Host, "kernel" | "clock">,
  group: number,
  prefixes: PrefixResolver,
  signal: AbortSignal,
): AsyncGenerator<LoggedPacket | LostPackets, void, undefined> {
  yield* readGroup(open(host, group), host, prefixes, signal);
}

function open(host: Pick<Host, "kernel">, group: number): NetlinkSocket {
  try {
    return openLogGroup(host, group);
  } catch (cause) {
    const taken = groupTaken(cause, group);
    throw taken === undefined ? cause : new UnavailableError(taken, { cause });
  }
}
