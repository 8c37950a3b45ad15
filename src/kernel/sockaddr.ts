/** Socket addresses as the kernel lays them out. */
import { type Address, addressFromBytes } from "../model/address.ts";
import { DecodeError } from "./errors.ts";
import { AF, buffer } from "./libc.ts";

/** An address and port (0 to 65535); `scopeId` is the interface index that a link-local IPv6 address needs. */
export interface InetEndpoint {
  readonly address: Address;
  readonly port: number;
  readonly scopeId?: number;
}

/** struct sockaddr_in or sockaddr_in6: ip(7), ipv6(7). For raw sockets `port` is 0. */
export function inetSockaddr({ address, port, scopeId = 0 }: InetEndpoint): Uint8Array<ArrayBuffer> {
  const v4 = address.length === 4;
  const bytes = buffer(v4 ? 16 : 28);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, v4 ? AF.INET : AF.INET6, true);
  view.setUint16(2, port, false);
  for (let i = 0; i < address.length; i++) bytes[(v4 ? 4 : 8) + i] = address.charCodeAt(i);
  if (!v4) view.setUint32(24, scopeId, true);
  return bytes;
}

/** @throws {DecodeError} where it is neither sockaddr_in nor sockaddr_in6 */
export function parseInetSockaddr(bytes: Uint8Array): InetEndpoint {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const family = bytes.length < 2 ? 0 : view.getUint16(0, true);
  if (family === AF.INET && bytes.length >= 8) {
    return { address: addressFromBytes(bytes.subarray(4, 8)), port: view.getUint16(2, false) };
  }
  if (family === AF.INET6 && bytes.length >= 24) {
    const scopeId = bytes.length >= 28 ? view.getUint32(24, true) : 0;
    const endpoint = { address: addressFromBytes(bytes.subarray(8, 24)), port: view.getUint16(2, false) };
    return scopeId === 0 ? endpoint : { ...endpoint, scopeId };
  }
  throw new DecodeError(0, `${bytes.length} bytes of family ${family}`, "a sockaddr_in or sockaddr_in6");
}

/** struct sockaddr_nl: netlink(7). Port 0 is the kernel, or lets the kernel choose when bound. */
export function netlinkSockaddr(portId = 0): Uint8Array<ArrayBuffer> {
  const bytes = buffer(12);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, AF.NETLINK, true);
  view.setUint32(4, portId, true);
  return bytes;
}
