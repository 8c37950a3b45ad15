/** `tcp/80`, `udp/dns`, `icmp/8/0`, `47`: what a packet is asked about, as text. Pure. */
import type { Address, Family } from "../../model/address.ts";
import type { Packet } from "../../model/desired.ts";
import { hasPorts, type NamedPort, PROTOCOLS } from "../../model/ports.ts";
import { formatProtocol } from "../../model/rule_format.ts";
import { RefusedError } from "../../sdk/errors.ts";
import { describe } from "../config.ts";
import type { PacketView } from "./view.ts";

/** Where clients send from: within the range that Linux gives out (ip_local_port_range). */
export const CLIENT_PORT = 40_000;

const WANTED = "tcp/80, tcp/http, udp/53, sctp/9, icmp, icmp/8, icmp/8/0, icmpv6/128, or the number of a protocol";
const ICMP_DEFAULT_TYPE = { [PROTOCOLS.ICMP]: 8, [PROTOCOLS.ICMPv6]: 128 } as const;

/** What is asked, before the destination and so the meaning of a port's name is known. */
export interface ProtocolQuestion {
  readonly protocol: number;
  /** Absent: a protocol without ports. */
  readonly port?: number | string;
  readonly icmp?: { readonly type: number; readonly code: number };
  /** ICMP is IPv4's and ICMPv6 is IPv6's. */
  readonly family?: Family;
}

/** @throws {RefusedError} */
export function parseProtocol(text: string): ProtocolQuestion {
  const refuse = (found: string, wanted: string): never => {
    throw new RefusedError([`protocol: found ${found}, wanted ${wanted}`]);
  };
  const [name, ...rest] = text.split("/") as [string, ...string[]];
  const known = Object.entries(PROTOCOLS).find(([spelled]) => spelled.toLowerCase() === name.toLowerCase())?.[1];
  const protocol = known ?? (/^\d{1,3}$/.test(name) ? Number(name) : undefined);
  if (protocol === undefined || protocol < 1 || protocol > 255) return refuse(describe(text), WANTED);
  if (protocol === PROTOCOLS.ICMP || protocol === PROTOCOLS.ICMPv6) {
    const numbers = rest.map((part) => /^\d{1,3}$/.test(part) && Number(part) <= 255 ? Number(part) : undefined);
    if (numbers.length > 2 || numbers.includes(undefined)) {
      return refuse(describe(text), `${name}, ${name}/TYPE or ${name}/TYPE/CODE, each from 0 to 255`);
    }
    const [type = ICMP_DEFAULT_TYPE[protocol], code = 0] = numbers;
    return { protocol, icmp: { type: type!, code: code! }, family: protocol === PROTOCOLS.ICMP ? 4 : 6 };
  }
  if (!hasPorts(protocol)) {
    return rest.length === 0 ? { protocol } : refuse(describe(text), `${name} alone: it has no ports`);
  }
  const [port] = rest;
  if (rest.length !== 1 || port === "") return refuse(describe(text), `a port, such as ${name}/80`);
  if (!/^\d+$/.test(port!)) return { protocol, port: port! };
  const number = Number(port);
  return number >= 1 && number <= 65535 ? { protocol, port: number } : refuse(describe(text), "a port from 1 to 65535");
}

/** The number of a port that is asked by name: what the destination calls so. @throws {RefusedError} */
export function resolvePort(
  { protocol, port }: ProtocolQuestion,
  destination: { readonly name: string; readonly ports: readonly NamedPort[] },
): number | undefined {
  if (typeof port !== "string") return port;
  const found = destination.ports.filter((one) => one.name === port);
  const numbers = [...new Set(found.filter((one) => one.protocol === protocol).map((one) => one.port))];
  if (numbers.length === 1) return numbers[0]!;
  const list = (ports: readonly NamedPort[]) =>
    ports.map((one) => `${one.name} (${formatProtocol(one.protocol)}/${one.port})`).join(", ");
  const has = numbers.length > 1
    ? `several ports of that name: ${list(found)}`
    : destination.ports.length === 0
    ? `${destination.name} has no named ports`
    : `${destination.name} names ${list(destination.ports)}`;
  throw new RefusedError([
    `protocol: found the port ${describe(port)} of ${formatProtocol(protocol)}; ${has}; wanted one of them or a number`,
  ]);
}

export function packetOf(
  question: ProtocolQuestion,
  port: number | undefined,
  source: Address,
  destination: Address,
): Packet {
  const { protocol, icmp } = question;
  return {
    protocol,
    source,
    destination,
    ...port === undefined ? {} : { sourcePort: CLIENT_PORT, destinationPort: port },
    ...icmp === undefined ? {} : { icmp },
  };
}

export function packetView(question: ProtocolQuestion, packet: Packet): PacketView {
  const { destinationPort: port, sourcePort, icmp } = packet;
  const protocol = formatProtocol(packet.protocol);
  const name = typeof question.port === "string" ? question.port : undefined;
  const detail = port !== undefined ? `/${port}` : icmp !== undefined ? `/${icmp.type}/${icmp.code}` : "";
  return {
    family: packet.destination.length === 4 ? 4 : 6,
    protocol,
    protocolNumber: packet.protocol,
    ...port === undefined ? {} : { port },
    ...name === undefined ? {} : { portName: name },
    ...sourcePort === undefined ? {} : { sourcePort },
    ...icmp === undefined ? {} : { icmp },
    text: `${protocol}${detail}`,
  };
}
