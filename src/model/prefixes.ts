/** Arithmetic on sets of prefixes. Prefixes are nested or disjoint, never anything between. */
import {
  type Address,
  type Cidr,
  cidrAddress,
  cidrContains,
  cidrFamily,
  cidrPrefix,
  familyBits,
  makeCidr,
} from "./address.ts";

/** One address. */
export const isHost = (cidr: Cidr): boolean => cidrPrefix(cidr) === familyBits(cidrFamily(cidr));

/** The prefixes that no other of them covers, sorted: the same addresses, without overlap. All of one family. */
export function maximalNets(nets: readonly Cidr[]): readonly Cidr[] {
  const sorted = [...new Set(nets)].sort();
  const kept: Cidr[] = [];
  for (const net of sorted) {
    // Sorted by address, then length: whoever covers `net` stands right before it among those kept.
    const last = kept[kept.length - 1];
    if (
      last === undefined || last.length !== net.length || !cidrContains(last, cidrAddress(net)) ||
      cidrPrefix(last) > cidrPrefix(net)
    ) {
      kept.push(net);
    }
  }
  return kept;
}

/** The addresses of `nets` that are in none of `holes`, all of one family, as prefixes without overlap. */
export function subtractNets(nets: readonly Cidr[], holes: readonly Cidr[]): readonly Cidr[] {
  const left: Cidr[] = [];
  const cut = (net: Cidr, inside: readonly Cidr[]): void => {
    const within = inside.filter((hole) =>
      cidrContains(net, cidrAddress(hole)) || cidrContains(hole, cidrAddress(net))
    );
    if (within.length === 0) {
      left.push(net);
      return;
    }
    if (within.some((hole) => cidrPrefix(hole) <= cidrPrefix(net))) return;
    const length = cidrPrefix(net) + 1;
    const low = makeCidr(cidrAddress(net), length);
    cut(low, within);
    cut(makeCidr(setBit(cidrAddress(net), length - 1), length), within);
  };
  const minimal = maximalNets(holes);
  for (const net of maximalNets(nets)) cut(net, minimal);
  return left;
}

function setBit(address: Address, bit: number): Address {
  const at = bit >> 3;
  const byte = address.charCodeAt(at) | 0x80 >> (bit & 7);
  return (address.slice(0, at) + String.fromCharCode(byte) + address.slice(at + 1)) as Address;
}
