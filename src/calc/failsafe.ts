import type { Failsafe, ProtocolPort } from "../model/desired.ts";
import { PROTOCOLS } from "../model/ports.ts";

const of = (protocol: number, ports: readonly number[]): readonly ProtocolPort[] =>
  ports.map((port) => ({ protocol, port }));

/** Ports that stay open on host endpoints whatever policy says (policy-semantics, "Host endpoints"). */
export const DEFAULT_FAILSAFE: Failsafe = {
  inbound: [...of(PROTOCOLS.TCP, [22, 179, 2379, 2380, 5473, 6443, 6666, 6667]), ...of(PROTOCOLS.UDP, [68])],
  outbound: [...of(PROTOCOLS.TCP, [179, 2379, 2380, 5473, 6443, 6666, 6667]), ...of(PROTOCOLS.UDP, [53, 67])],
};

/** What a node without host endpoints has. */
export const NO_FAILSAFE: Failsafe = { inbound: [], outbound: [] };
