import { addressFamily, AddressSyntaxError, parseAddress, parseCidr } from "../model/address.ts";
import { isName } from "./environment.ts";
import { CniError, CniErrorCode } from "./errors.ts";
import { type CniVersion, negotiate } from "./version.ts";

export const DEFAULT_SOCKET = "/run/manx/manx.sock";

/** A network configuration, read: CNI SPEC section 1, "Plugin configuration objects", and our own keys. */
export interface NetworkConfig {
  readonly version: CniVersion;
  readonly name: string;
  readonly socket: string;
  readonly mtu?: number;
  readonly pools?: readonly string[];
  readonly families?: readonly (4 | 6)[];
  readonly routes?: readonly { readonly dst: string; readonly gw?: string }[];
  readonly dns: Dns;
  readonly labels: Readonly<Record<string, string>>;
  /** From `runtimeConfig` before `args.cni`: CONVENTIONS.md, "Dynamic Plugin specific fields". */
  readonly ips?: readonly string[];
  readonly mac?: string;
  readonly prevResult?: Json;
  /** `cni.dev/valid-attachments`; undefined where no list came at all. */
  readonly validAttachments?: readonly { readonly containerId: string; readonly ifName: string }[];
}

export interface Dns {
  readonly nameservers?: readonly string[];
  readonly domain?: string;
  readonly search?: readonly string[];
  readonly options?: readonly string[];
}

export type Json = { readonly [key: string]: unknown };

/** Set by runtimes and the specification, whether we have a use for them or not. */
const STANDARD_KEYS: ReadonlySet<string> = new Set([
  "cniVersion",
  "cniVersions",
  "name",
  "type",
  "ipMasq",
  "ipam",
  "dns",
  "args",
  "runtimeConfig",
  "capabilities",
  "prevResult",
  "disableCheck",
  "disableGC",
  "loadOnlyInlinedPlugins",
]);
const OWN_KEYS = ["socket", "mtu", "pools", "families", "routes"] as const;

/** @throws {CniError} 6 where `text` is no JSON object */
export function decodeObject(text: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const found = text.trim() === "" ? "nothing" : (cause as Error).message;
    throw new CniError(CniErrorCode.DecodeFailure, `network configuration on stdin: found ${found}, wanted JSON`);
  }
  if (!isObject(value)) {
    throw new CniError(
      CniErrorCode.DecodeFailure,
      `network configuration on stdin: found ${describe(value)}, wanted a JSON object`,
    );
  }
  return value;
}

/** @throws {CniError} 1, 2, 6 or 7 naming the key */
export function readNetworkConfig(raw: Json): NetworkConfig {
  const version = negotiate(raw.cniVersion);
  const name = raw.name;
  if (typeof name !== "string" || !isName(name)) {
    throw wrong("name", name, 'a letter or digit, then letters, digits, "_", "." and "-"');
  }
  for (const key of Object.keys(raw)) {
    if (STANDARD_KEYS.has(key) || key.startsWith("cni.dev/") || (OWN_KEYS as readonly string[]).includes(key)) continue;
    throw unsupported(key, raw[key], `one of ${OWN_KEYS.join(", ")} besides the specification's keys`);
  }
  if (raw.ipMasq === true) throw unsupported("ipMasq", true, "masquerade set for the pool, in the datastore");
  const ipam = optionalObject("ipam", raw.ipam);
  if (ipam.type !== undefined && ipam.type !== "") {
    throw unsupported("ipam.type", ipam.type, "no ipam: addresses come from the daemon's own pools");
  }
  const runtime = optionalObject("runtimeConfig", raw.runtimeConfig);
  const conventions = optionalObject("args.cni", optionalObject("args", raw.args).cni);
  return {
    version,
    name,
    socket: readSocket(raw.socket),
    // 0 is how configurations of other plugins say "the default".
    mtu: raw.mtu === undefined || raw.mtu === 0 ? undefined : readMtu(raw.mtu),
    pools: raw.pools === undefined ? undefined : strings("pools", raw.pools),
    families: raw.families === undefined ? undefined : readFamilies(raw.families),
    routes: raw.routes === undefined ? undefined : readRoutes(raw.routes),
    dns: readDns(raw.dns, runtime.dns),
    labels: readLabels(conventions.labels),
    ips: given(runtime.ips)
      ? readIps("runtimeConfig.ips", runtime.ips)
      : given(conventions.ips)
      ? readIps("args.cni.ips", conventions.ips)
      : undefined,
    mac: given(runtime.mac)
      ? readMac("runtimeConfig.mac", runtime.mac)
      : given(conventions.mac)
      ? readMac("args.cni.mac", conventions.mac)
      : undefined,
    prevResult: given(raw.prevResult) ? object("prevResult", raw.prevResult) : undefined,
    validAttachments: readValidAttachments(raw),
  };
}

/** Addresses without their prefix lengths: a pod has its address alone, whatever net a runtime believes it in.
 * @throws {CniError} 7 naming `path`; at most one a family */
export function readIps(path: string, raw: unknown): readonly string[] {
  const families = new Set<number>();
  return strings(path, raw).map((text, i) => {
    try {
      const slash = text.indexOf("/");
      const address = slash < 0 ? text : text.slice(0, slash);
      if (slash >= 0) parseCidr(text);
      const family = addressFamily(parseAddress(address));
      if (families.has(family)) throw wrong(`${path}[${i}]`, text, `at most one IPv${family} address`);
      families.add(family);
      return address;
    } catch (cause) {
      if (!(cause instanceof AddressSyntaxError)) throw cause;
      throw wrong(`${path}[${i}]`, text, cause.wanted);
    }
  });
}

/** Lower case, colons. @throws {CniError} 7 unless it can be the address of one interface: IEEE 802, individual, not zero */
export function readMac(path: string, raw: unknown): string {
  const text = typeof raw === "string" ? raw.toLowerCase().replaceAll("-", ":") : "";
  if (!/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/.test(text)) throw wrong(path, raw, "a MAC address such as 0a:58:0a:00:00:05");
  if (parseInt(text.slice(0, 2), 16) & 1) throw wrong(path, raw, "a unicast MAC address: the first byte is even");
  if (text === "00:00:00:00:00:00") throw wrong(path, raw, "a MAC address that is not all zero");
  return text;
}

/** Addresses, with prefix lengths, that a result gives to `ifName`. @throws {CniError} 7 naming the key */
export function addressesOf(prevResult: Json, ifName: string): readonly string[] {
  const interfaces = given(prevResult.interfaces) ? objects("prevResult.interfaces", prevResult.interfaces) : [];
  const mine = (index: unknown) => {
    if (!given(index)) return true;
    const found = typeof index === "number" ? interfaces[index] : undefined;
    if (found === undefined) throw wrong("prevResult.ips[].interface", index, "an index of prevResult.interfaces");
    return found.name === ifName && typeof found.sandbox === "string" && found.sandbox !== "";
  };
  const ips = given(prevResult.ips) ? objects("prevResult.ips", prevResult.ips) : [];
  return ips.filter((ip) => mine(ip.interface)).map((ip) => {
    if (typeof ip.address === "string") return ip.address;
    throw wrong("prevResult.ips[].address", ip.address, "an address with its prefix length");
  });
}

function readSocket(raw: unknown): string {
  if (raw === undefined) return DEFAULT_SOCKET;
  // sockaddr_un.sun_path holds 108 bytes, the last one zero.
  if (typeof raw !== "string" || !raw.startsWith("/") || raw.length > 107 || raw.includes("\0")) {
    throw wrong("socket", raw, "the absolute path of the daemon's socket, at most 107 characters");
  }
  return raw;
}

function readMtu(raw: unknown): number {
  if (typeof raw === "number" && Number.isInteger(raw) && raw >= 68 && raw <= 65535) return raw;
  throw wrong("mtu", raw, "bytes, from 68 to 65535");
}

function readFamilies(raw: unknown): readonly (4 | 6)[] {
  const families = list("families", raw);
  if (families.length === 0 || families.some((family) => family !== 4 && family !== 6)) {
    throw wrong("families", raw, "[4], [6] or [4, 6]");
  }
  return [...new Set(families as (4 | 6)[])];
}

function readRoutes(raw: unknown): readonly { readonly dst: string; readonly gw?: string }[] {
  return objects("routes", raw).map((route, i) => {
    for (const key of Object.keys(route)) {
      if (key !== "dst" && key !== "gw") throw unsupported(`routes[${i}].${key}`, route[key], "dst and gw");
    }
    const { dst, gw } = route;
    try {
      if (typeof dst !== "string" || !dst.includes("/")) {
        throw wrong(`routes[${i}].dst`, dst, "a prefix such as 10.0.0.0/8");
      }
      const destination = parseCidr(dst);
      if (!given(gw)) return { dst };
      if (typeof gw !== "string") throw wrong(`routes[${i}].gw`, gw, "an address");
      if (parseAddress(gw).length !== destination.length - 1) {
        throw wrong(`routes[${i}].gw`, gw, "an address of the family of dst");
      }
      return { dst, gw };
    } catch (cause) {
      if (!(cause instanceof AddressSyntaxError)) throw cause;
      throw wrong(`routes[${i}]`, cause.found, cause.wanted);
    }
  });
}

/** CONVENTIONS.md: `args.cni.labels` is a list of `{ "key": …, "value": … }`. */
function readLabels(raw: unknown): Readonly<Record<string, string>> {
  const labels = new Map<string, string>();
  if (!given(raw)) return {};
  for (const [i, { key, value }] of objects("args.cni.labels", raw).entries()) {
    if (typeof key !== "string" || key === "") throw wrong(`args.cni.labels[${i}].key`, key, "text");
    if (typeof value !== "string") throw wrong(`args.cni.labels[${i}].value`, value, "text");
    if (labels.has(key)) throw wrong(`args.cni.labels[${i}].key`, key, "each key once");
    labels.set(key, value);
  }
  return Object.fromEntries(labels);
}

/** The configuration's own, or the runtime's (`servers`, `searches`, `options`) where the capability `dns` is declared. */
function readDns(raw: unknown, runtimeRaw: unknown): Dns {
  const dns = optionalObject("dns", raw);
  const runtime = optionalObject("runtimeConfig.dns", runtimeRaw);
  const of = (path: string, value: unknown) => given(value) ? strings(path, value) : undefined;
  const domain = given(dns.domain) ? dns.domain : undefined;
  if (domain !== undefined && typeof domain !== "string") throw wrong("dns.domain", domain, "text");
  return {
    nameservers: of("runtimeConfig.dns.servers", runtime.servers) ?? of("dns.nameservers", dns.nameservers),
    domain,
    search: of("runtimeConfig.dns.searches", runtime.searches) ?? of("dns.search", dns.search),
    options: of("runtimeConfig.dns.options", runtime.options) ?? of("dns.options", dns.options),
  };
}

/** The key had another name in the text of 1.1.0 at its tag; runtimes send both. A Go runtime writes an empty list as null. */
function readValidAttachments(raw: Json): NetworkConfig["validAttachments"] {
  const key = ["cni.dev/valid-attachments", "cni.dev/attachments"].find((name) => Object.hasOwn(raw, name));
  if (key === undefined) return undefined;
  if (raw[key] === null) return [];
  return objects(key, raw[key]).map(({ containerID, ifname }, i) => {
    if (typeof containerID !== "string" || containerID === "") {
      throw wrong(`${key}[${i}].containerID`, containerID, "text");
    }
    if (typeof ifname !== "string" || ifname === "") throw wrong(`${key}[${i}].ifname`, ifname, "text");
    return { containerId: containerID, ifName: ifname };
  });
}

const given = (value: unknown) => value !== undefined && value !== null;
const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function object(path: string, value: unknown): Json {
  if (isObject(value)) return value;
  throw wrong(path, value, "an object");
}
const optionalObject = (path: string, value: unknown): Json => given(value) ? object(path, value) : {};

function list(path: string, value: unknown): readonly unknown[] {
  if (Array.isArray(value)) return value;
  throw wrong(path, value, "a list");
}
const objects = (path: string, value: unknown): readonly Json[] =>
  list(path, value).map((item, i) => object(`${path}[${i}]`, item));
const strings = (path: string, value: unknown): readonly string[] =>
  list(path, value).map((item, i) => {
    if (typeof item === "string" && item !== "") return item;
    throw wrong(`${path}[${i}]`, item, "text");
  });

function describe(value: unknown): string {
  if (value === undefined) return "nothing";
  const text = JSON.stringify(value);
  return text.length <= 100 ? text : `${text.slice(0, 97)}...`;
}
const wrong = (path: string, found: unknown, wanted: string) =>
  new CniError(CniErrorCode.InvalidConfig, `${path}: found ${describe(found)}, wanted ${wanted}`);
/** CNI SPEC error 2: "must contain the key and value of the unsupported field". */
const unsupported = (path: string, value: unknown, wanted: string) =>
  new CniError(
    CniErrorCode.UnsupportedField,
    `${path}: found ${describe(value)}, which is not supported; wanted ${wanted}`,
  );
