/** Inclusive; 0 … 65535. */
export interface PortRange {
  readonly first: number;
  readonly last: number;
}

/** IANA protocol numbers that policy APIs name. */
export const PROTOCOLS = { ICMP: 1, TCP: 6, UDP: 17, ICMPv6: 58, SCTP: 132, UDPLite: 136 } as const;

/** Protocols whose headers carry ports where policy may match them. */
export const hasPorts = (protocol: number): boolean =>
  protocol === 6 || protocol === 17 || protocol === 132 || protocol === 136;

/** A port of a workload that rules may refer to by name. */
export interface NamedPort {
  readonly name: string;
  readonly protocol: number;
  readonly port: number;
}
