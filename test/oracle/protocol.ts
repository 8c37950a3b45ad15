/** Protocol numbers, and the names that manifests have for them (IANA protocol-numbers). */
import { refuse } from "./manifest.ts";

export const PROTOCOLS = { ICMP: 1, TCP: 6, UDP: 17, ICMPv6: 58, SCTP: 132, UDPLite: 136 } as const;

const WITH_PORTS: readonly number[] = [PROTOCOLS.TCP, PROTOCOLS.UDP, PROTOCOLS.SCTP, PROTOCOLS.UDPLite];

export const hasPorts = (protocol: number): boolean => WITH_PORTS.includes(protocol);

/** A name, a number from 1 to 255, or such a number as text. */
export function readProtocol(value: unknown, where: string): number {
  const named = PROTOCOLS[value as keyof typeof PROTOCOLS];
  if (named !== undefined) return named;
  const number = typeof value === "string" && /^\d+$/.test(value) ? Number(value) : value;
  if (typeof number === "number" && Number.isInteger(number) && number >= 1 && number <= 255) return number;
  return refuse(where, value, `${Object.keys(PROTOCOLS).join(", ")}, or 1 to 255`);
}

/** The three that Kubernetes and the ports of endpoints know. */
export function readPortProtocol(value: unknown, where: string): number {
  return value === "TCP" || value === "UDP" || value === "SCTP"
    ? PROTOCOLS[value]
    : refuse(where, value, "TCP, UDP or SCTP");
}

export function readPortNumber(value: unknown, where: string): number {
  return typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= 65535
    ? value
    : refuse(where, value, "a port from 1 to 65535");
}
