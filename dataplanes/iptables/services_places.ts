import type { Address, Family } from "../../src/model/address.ts";
import type { ServicePlace } from "../../src/kernel/service_flows.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { EXTENSION_HEADER_BYTES, EXTENSION_NAME_BYTES, LAYOUTS } from "./entry_layout.ts";
import { isLookupChain } from "./services.ts";

/** Of a table as it was read. */
interface FoundChain {
  readonly name: string;
  readonly rules: readonly { readonly bytes: Uint8Array }[];
}

/** The UDP services that a table nat was found with: after a restart, whoever follows their flows asks which there were. */
export function servicePlaces(family: Family, chains: readonly FoundChain[]): readonly ServicePlace[] {
  return chains.filter(({ name }) => isLookupChain(name)).flatMap(({ rules }) =>
    rules.flatMap(({ bytes }) => {
      const place = placeOf(family, bytes);
      return place === undefined ? [] : [place];
    })
  );
}

/** Of a rule for one port, of one address or of all. */
function placeOf(family: Family, bytes: Uint8Array): ServicePlace | undefined {
  const { addressBytes, headerBytes, invertFlags, protocol, targetOffset } = LAYOUTS[family];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.getUint16(protocol, true) !== PROTOCOLS.UDP || bytes[invertFlags] !== 0) return undefined;
  if (view.getUint16(targetOffset, true) === headerBytes) return undefined;
  const text = (at: number, length: number) => String.fromCharCode(...bytes.subarray(at, at + length));
  if (!text(headerBytes + 2, EXTENSION_NAME_BYTES).startsWith("udp\0")) return undefined;
  // struct xt_udp, after the source ports.
  const ports = headerBytes + EXTENSION_HEADER_BYTES + 4;
  const port = view.getUint16(ports, true);
  if (view.getUint16(ports + 2, true) !== port) return undefined;
  const place = { family, protocol: PROTOCOLS.UDP, port };
  const mask = bytes.subarray(3 * addressBytes, 4 * addressBytes);
  if (mask.every((byte) => byte === 0)) return place;
  return mask.every((byte) => byte === 0xff)
    ? { ...place, address: text(addressBytes, addressBytes) as Address }
    : undefined;
}
