/** One entry of a list of ports. */
import type { Holder } from "./holder.ts";
import { type Packet, portOf, type Side } from "./rule.ts";

/** `candidates`: who has the address on that side, and is selected there. */
export type PortMatch = (packet: Packet, side: Side, candidates: readonly Holder[]) => boolean;

/** Both inclusive. */
export const portRange = (first: number, last: number): PortMatch => (packet, side) => {
  const port = portOf(packet, side);
  return port !== undefined && first <= port && port <= last;
};

/** Stands for a set of (address, protocol, port): what those who have the address call so. */
export const namedPort = (name: string): PortMatch => (packet, side, candidates) =>
  candidates.some(({ ports }) =>
    ports.some((port) => port.name === name && port.protocol === packet.protocol && port.port === portOf(packet, side))
  );
