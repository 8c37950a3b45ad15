import { expect, test } from "bun:test";
import * as net from "node:net";
import {
  addressBytes,
  addressFamily,
  addressFromBigInt,
  addressFromBytes,
  AddressSyntaxError,
  addressToBigInt,
  cidrAddress,
  cidrContains,
  cidrFamily,
  cidrLast,
  cidrPrefix,
  cidrsOverlap,
  familyBits,
  formatAddress,
  formatCidr,
  hostCidr,
  makeCidr,
  maskAddress,
  parseAddress,
  parseCidr,
  parseCidrStrict,
} from "./address.ts";
import type { Address, Family } from "./address.ts";

/** RFC 5952 section 4 and its neighbours: as written, as it should be. */
const CANONICAL: readonly [string, string][] = [
  ["0.0.0.0", "0.0.0.0"],
  ["255.255.255.255", "255.255.255.255"],
  ["::", "::"],
  ["::1", "::1"],
  ["1::", "1::"],
  ["0:0:0:0:0:0:0:0", "::"],
  ["2001:0db8:0000:0000:0000:0000:0002:0001", "2001:db8::2:1"],
  ["2001:DB8::ABCD", "2001:db8::abcd"],
  ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
  ["2001:0:0:1:0:0:0:1", "2001:0:0:1::1"],
  ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
  ["1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"],
  ["::2:3:4:5:6:7:8", "0:2:3:4:5:6:7:8"],
  ["::ffff:192.0.2.1", "::ffff:192.0.2.1"],
  ["::ffff:c000:201", "::ffff:192.0.2.1"],
  ["::192.0.2.1", "::c000:201"],
  ["64:ff9b::192.0.2.33", "64:ff9b::c000:221"],
];
test.each(CANONICAL)("%s is written %s", (text, canonical) => {
  expect(formatAddress(parseAddress(text))).toBe(canonical);
  expect(parseAddress(canonical)).toBe(parseAddress(text));
});

const REFUSED = [
  ...[
    "",
    " ",
    "1",
    "1.2.3",
    "1.2.3.4.5",
    "1.2.3.256",
    "01.2.3.4",
    "1.2.3.4 ",
    "1.2.3.-4",
    "0x1.2.3.4",
    "1..2.3",
    "1.2.3.4e0",
  ],
  ...[
    ":",
    ":::",
    "1:2",
    "1:2:3:4:5:6:7",
    "1:2:3:4:5:6:7:8:9",
    "1:2:3:4:5:6:7:8::",
    "1::2::3",
    "12345::",
    "g::",
    "::1%eth0",
    "1:",
    ":1",
  ],
  ...["::1.2.3", "1.2.3.4::", "::1.2.3.4:5", "::256.1.1.1", "[::1]", "1:2:3:4:5:6:7:1.2.3.4", "::ffff:01.2.3.4", "٣::"],
];
test.each(REFUSED)("the text %j is no address", (text) => {
  expect(() => parseAddress(text)).toThrow(AddressSyntaxError);
  expect(net.isIP(text.includes("%") ? "" : text)).toBe(0);
});

const REFUSED_PREFIXES = [
  "1.2.3.4/",
  "1.2.3.4/33",
  "::/129",
  "1.2.3.4/08",
  "1.2.3.4/-1",
  "1.2.3.4/+1",
  "/8",
  "1.2.3/8",
  "1.2.3.4/8/8",
  "::/1e1",
  "1.2.3.4/ 8",
];
test.each(REFUSED_PREFIXES)("the text %j is no prefix", (text) => {
  expect(() => parseCidr(text)).toThrow(AddressSyntaxError);
});

test("errors say what was found and what is wanted", () => {
  expect(() => parseCidr("10.0.0.0/40")).toThrow('found "10.0.0.0/40", wanted a prefix length from 0 to 32');
  expect(() => parseCidrStrict("10.0.0.1/8")).toThrow('found "10.0.0.1/8", wanted the network itself, 10.0.0.0/8');
  expect(() => addressFromBytes(new Uint8Array(5))).toThrow("5 bytes");
});

test("a prefix loses its host bits, or is refused for them where asked", () => {
  expect(formatCidr(parseCidr("10.1.2.3/12"))).toBe("10.0.0.0/12");
  expect(formatCidr(parseCidr("fd00:1234::1/18"))).toBe("fd00::/18");
  expect(formatCidr(parseCidr("192.0.2.1"))).toBe("192.0.2.1/32");
  expect(formatCidr(parseCidr("::1"))).toBe("::1/128");
  expect(parseCidrStrict("10.0.0.0/8")).toBe(parseCidr("10.9.9.9/8"));
});

/** Numbers that spread over both families, the same at each run. */
function* someAddresses(): Generator<Address> {
  let state = 0x9e3779b97f4a7c15n;
  for (let i = 0; i < 300; i++) {
    state = BigInt.asUintN(128, state * 0xda942042e4dd58b5n + 0x1234567n ^ state >> 61n);
    const family: Family = i % 2 === 0 ? 4 : 6;
    const bits = BigInt(familyBits(family));
    // Every third has a run of zeros somewhere.
    const masked = i % 3 === 0 ? state & ~(0xffffffffn << state % bits) : state;
    yield addressFromBigInt(BigInt.asUintN(Number(bits), masked), family);
  }
}

test("numbers, bytes and text hold the same address", () => {
  for (const address of someAddresses()) {
    const family = addressFamily(address);
    expect(addressFromBigInt(addressToBigInt(address), family)).toBe(address);
    expect(addressFromBytes(addressBytes(address))).toBe(address);
    expect(parseAddress(formatAddress(address))).toBe(address);
    expect(net.isIP(formatAddress(address))).toBe(family);
    // The platform's URL parser writes IPv6 canonically too, but for mapped IPv4.
    if (family === 6 && !formatAddress(address).includes(".")) {
      expect(new URL(`http://[${formatAddress(address)}]/`).hostname).toBe(`[${formatAddress(address)}]`);
    }
  }
});

test("masks, containment, overlap and last address agree with plain arithmetic", () => {
  const addresses = [...someAddresses()];
  addresses.forEach((address, i) => {
    const family = addressFamily(address), bits = familyBits(family);
    const other = addresses[(i + 2) % addresses.length]!;
    const near = addressFromBigInt(addressToBigInt(address) ^ 1n << BigInt(i % bits), family);
    const network = (of: Address, prefix: number) => addressToBigInt(of) >> BigInt(bits - prefix);
    for (let prefix = 0; prefix <= bits; prefix++) {
      const cidr = makeCidr(address, prefix);
      expect(cidrFamily(cidr)).toBe(family);
      expect(cidrPrefix(cidr)).toBe(prefix);
      expect(cidrAddress(cidr)).toBe(maskAddress(address, prefix));
      expect(addressToBigInt(cidrAddress(cidr))).toBe(network(address, prefix) << BigInt(bits - prefix));
      expect(addressToBigInt(cidrLast(cidr))).toBe((network(address, prefix) + 1n << BigInt(bits - prefix)) - 1n);
      for (const one of [address, near, other]) {
        expect(cidrContains(cidr, one)).toBe(network(address, prefix) === network(one, prefix));
        const shorter = Math.min(prefix, 20);
        expect(cidrsOverlap(cidr, makeCidr(one, 20))).toBe(network(address, shorter) === network(one, shorter));
      }
    }
  });
});

test("the families never meet", () => {
  const v4 = parseCidr("0.0.0.0/0"), v6 = parseCidr("::/0");
  expect(cidrContains(v4, parseAddress("::"))).toBe(false);
  expect(cidrContains(v6, parseAddress("0.0.0.0"))).toBe(false);
  expect(cidrsOverlap(v4, v6)).toBe(false);
  expect(hostCidr(parseAddress("0.0.0.0"))).not.toBe(hostCidr(parseAddress("::")));
});
