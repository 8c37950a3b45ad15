/** Whether two dataplanes decide alike, asked packet by packet. */
import { formatAddress } from "../../model/address.ts";
import type { DesiredState } from "../../model/desired.ts";
import { judgePath, type Path } from "../../model/evaluate.ts";
import { formatProtocol } from "../../model/rule_format.ts";
import type { PacketJudge } from "../../sdk/dataplane.ts";
import { explainError, UnavailableError } from "../../sdk/errors.ts";
import type { Clock } from "../../sdk/plugin.ts";
import { WorkSlice } from "../work_slice.ts";
import { tellingPackets } from "./packets.ts";

const PACKETS_MAX = 20_000;
const LONGEST_MS = 5_000;

export interface NamedJudge {
  readonly name: string;
  /** Absent: it cannot tell, and the model's reading of policy speaks in its place. */
  readonly judge: PacketJudge | undefined;
}

export interface Compared {
  readonly packets: number;
  /** Everything that was worth asking was asked; else there was more than there are packets or time for. */
  readonly isComplete: boolean;
}

/**
 * Asks both about the packets that would tell them apart. Others have their turn meanwhile.
 * @throws {UnavailableError} with the first packet about which they differ, or which one of them cannot judge
 */
export async function compareJudges(
  state: DesiredState,
  judges: readonly [NamedJudge, NamedJudge],
  clock: Clock,
  signal: AbortSignal,
): Promise<Compared> {
  if (judges.every(({ judge }) => judge === undefined)) return { packets: 0, isComplete: false };
  const untilMs = clock.nowMs() + LONGEST_MS;
  const slice = new WorkSlice(clock);
  let packets = 0;
  for (const path of tellingPackets(state)) {
    if (packets === PACKETS_MAX || clock.nowMs() >= untilMs) return { packets, isComplete: false };
    const [one, other] = judges.map((named) => verdictOf(state, named, path));
    if (one !== other) throw disagreement(state, judges, path, [one!, other!]);
    packets++;
    if (!slice.isOver()) continue;
    await slice.next();
    signal.throwIfAborted();
  }
  return { packets, isComplete: true };
}

type Verdict = ReturnType<PacketJudge>;

function verdictOf(state: DesiredState, { name, judge }: NamedJudge, path: Path): Verdict {
  if (judge === undefined) return judgePath(state, path).verdict;
  try {
    return judge(path);
  } catch (cause) {
    throw new UnavailableError(
      `switch: found that dataplane ${name} cannot judge ${pathText(path)} (${explainError(cause)}), ` +
        "wanted a verdict of each dataplane: nothing was changed",
      { cause },
    );
  }
}

function disagreement(
  state: DesiredState,
  judges: readonly [NamedJudge, NamedJudge],
  path: Path,
  verdicts: readonly [Verdict, Verdict],
): UnavailableError {
  const said = judges.map(({ name, judge }, i) =>
    `${judge === undefined ? `policy, in the place of dataplane ${name},` : `dataplane ${name}`} to ${
      verdicts[i] === "allow" ? "allow" : "deny"
    }`
  ).join(" and ");
  const meant = judges.some(({ judge }) => judge === undefined)
    ? ""
    : ` (policy says ${judgePath(state, path).verdict})`;
  return new UnavailableError(
    `switch: found ${said} ${pathText(path)}${meant}, wanted both to decide alike: nothing was changed`,
  );
}

/** `tcp from 10.0.0.1 port 40000 to 10.0.0.2 port 80, mxa to mxb`. */
export function pathText({ packet, inInterface = "the node", outInterface = "the node" }: Path): string {
  const { protocol, source, destination, sourcePort, destinationPort, icmp } = packet;
  const end = (address: typeof source, port: number | undefined) =>
    `${formatAddress(address)}${port === undefined ? "" : ` port ${port}`}`;
  const what = `${formatProtocol(protocol)}${icmp === undefined ? "" : ` type ${icmp.type} code ${icmp.code}`}`;
  return `${what} from ${end(source, sourcePort)} to ${
    end(destination, destinationPort)
  }, ${inInterface} to ${outInterface}`;
}
