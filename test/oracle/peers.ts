/** Peers and ports of the two Kubernetes dialects: any of the peers, and any of the ports. */
import type { Holder } from "./holder.ts";
import type { Population } from "./population.ts";
import type { PortMatch } from "./port_match.ts";
import type { Condition, Direction, Packet, Side } from "./rule.ts";

/** Whom of these, who have the other end's address, a peer means. Blocks, networks and nodes mean the address, whoever has it. */
export type Peer = (packet: Packet, holders: readonly Holder[]) => readonly Holder[] | "the address";

export const PEER_FIELD = { ingress: "from", egress: "to" } as const satisfies Record<Direction, string>;
export const PEER_SIDE = { ingress: "source", egress: "destination" } as const satisfies Record<Direction, Side>;

/** No peers: anyone. No ports: any protocol. */
export function peerConditions(
  { peers, ports, portField, direction, population, selects }: {
    readonly peers: readonly Peer[];
    readonly ports: readonly PortMatch[];
    readonly portField: string;
    readonly direction: Direction;
    readonly population: Population;
    /** Who may be at the policy's own end. */
    selects(holder: Holder): boolean;
  },
): Condition[] {
  const side = PEER_SIDE[direction];
  /** For each peer that matches, those who are meant. */
  const meant = (packet: Packet): readonly (readonly Holder[])[] => {
    const holders = population.holdersOf(packet[side]);
    if (peers.length === 0) return [holders];
    return peers.flatMap((peer) => {
      const found = peer(packet, holders);
      return found === "the address" ? [holders] : found.length > 0 ? [found] : [];
    });
  };
  return [
    { field: PEER_FIELD[direction], holds: (packet) => meant(packet).length > 0 },
    {
      field: portField,
      holds(packet) {
        if (ports.length === 0) return true;
        // A port has its name at the destination: the selected peer on the way out, the policy's own endpoint on the way in.
        const named = direction === "egress"
          ? meant(packet)
          : [population.holdersOf(packet.destination).filter(selects)];
        return named.some((holders) => ports.some((port) => port(packet, "destination", holders)));
      },
    },
  ];
}
