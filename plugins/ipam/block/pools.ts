/** Address pools: read from the config and from stored IPPool resources, checked, chosen. Pure. */
import {
  AddressSyntaxError,
  type Cidr,
  cidrFamily,
  cidrPrefix,
  cidrsOverlap,
  type Family,
  familyBits,
  formatCidr,
  parseCidrStrict,
} from "../../../src/model/address.ts";
import type { Problem, Resource, ResourceKey } from "../../../src/model/resource.ts";
import type { Labels, Selector } from "../../../src/model/selector.ts";
import { matches } from "../../../src/model/selector_match.ts";
import { parseSelector } from "../../../src/model/selector_parse.ts";
import { ConfigError } from "../../../src/sdk/errors.ts";

/** Calico API, IPPool: https://docs.tigera.io/calico/latest/reference/resources/ippool */
export const POOL_KIND = "IPPool.projectcalico.org";
/** On pools made from the config: the node whose config made them. */
export const CONFIGURED_BY = "ipam.manx/configured-by";

export interface Pool {
  readonly name: string;
  readonly cidr: Cidr;
  /** Prefix length of its blocks, as in the API's `blockSize`. */
  readonly blockPrefix: number;
  /** The text, and what it means. */
  readonly nodeSelector: string;
  readonly selects: Selector;
  readonly natOutgoing: boolean;
  readonly disabled: boolean;
  /** allowedUses has Workload. */
  readonly forWorkloads: boolean;
}

/** IPPoolSpec.blockSize: default and bounds. */
const BLOCK_PREFIX = {
  4: { default: 26, min: 20, max: 32 },
  6: { default: 122, min: 116, max: 128 },
} as const;

export const poolKey = (name: string): ResourceKey => ({ kind: POOL_KIND, namespace: "", name });

/** What is wrong with one field of a pool. */
interface Fault {
  readonly path: string;
  readonly found: string;
  readonly wanted: string;
}

const show = (value: unknown): string => JSON.stringify(value) ?? String(value);

/** `fields` as in IPPoolSpec. Returns the pool, or all that is wrong with it. */
function readPool(name: string, fields: Readonly<Record<string, unknown>>): Pool | readonly Fault[] {
  const faults: Fault[] = [];
  const fault = (path: string, wanted: string, found = show(fields[path])) => {
    faults.push({ path, found: fields[path] === undefined && found === "undefined" ? "nothing" : found, wanted });
  };
  const flag = (path: string): boolean => {
    const value = fields[path] ?? false;
    if (typeof value !== "boolean") fault(path, "true or false");
    return value === true;
  };

  let cidr: Cidr | undefined;
  if (typeof fields.cidr !== "string") fault("cidr", "a prefix such as 10.244.0.0/16 or fd00:10:244::/64");
  else {
    try {
      if (!fields.cidr.includes("/")) throw new AddressSyntaxError(fields.cidr, "a prefix with its length");
      cidr = parseCidrStrict(fields.cidr);
    } catch (error) {
      fault("cidr", error instanceof AddressSyntaxError ? error.wanted : "a prefix");
    }
  }

  let blockPrefix = 0;
  const given = fields.blockSize ?? undefined;
  if (cidr !== undefined) {
    const limits = BLOCK_PREFIX[cidrFamily(cidr)];
    const prefix = cidrPrefix(cidr);
    blockPrefix = given === undefined ? Math.max(limits.default, prefix) : given as number;
    if (!Number.isInteger(blockPrefix) || blockPrefix < limits.min || blockPrefix > limits.max) {
      fault("blockSize", `a prefix length from ${limits.min} to ${limits.max}`);
    } else if (blockPrefix < prefix) {
      fault("blockSize", `${prefix} or more: a block is a part of ${formatCidr(cidr)}`);
    }
  }

  const nodeSelector = fields.nodeSelector ?? "all()";
  let selects: Selector = { op: "all" };
  if (typeof nodeSelector !== "string") fault("nodeSelector", "a selector such as all() or zone == 'a'");
  else {
    try {
      selects = parseSelector(nodeSelector === "" ? "all()" : nodeSelector);
    } catch (error) {
      fault("nodeSelector", `a selector such as all() or zone == 'a' (${(error as Error).message})`);
    }
  }

  const uses = fields.allowedUses ?? ["Workload", "Tunnel"];
  if (!Array.isArray(uses) || uses.some((use) => !["Workload", "Tunnel", "LoadBalancer"].includes(use))) {
    fault("allowedUses", "a list of Workload, Tunnel, LoadBalancer");
  }
  const natOutgoing = flag("natOutgoing");
  const disabled = flag("disabled");
  if (faults.length > 0) return faults;
  return {
    name,
    cidr: cidr!,
    blockPrefix,
    nodeSelector: nodeSelector as string,
    selects,
    natOutgoing,
    disabled,
    forWorkloads: (uses as string[]).length === 0 || (uses as string[]).includes("Workload"),
  };
}

/** What keeps `pool` from standing beside `others`: it shares addresses with one of them. */
export const overlapping = (pool: Pool, others: Iterable<Pool>): Pool | undefined =>
  [...others].find((other) => other.name !== pool.name && cidrsOverlap(other.cidr, pool.cidr));

export interface BlockIpamConfig {
  readonly pools: readonly Pool[];
  /** How long a released address rests, where others are free. */
  readonly cooldownSeconds: number;
}

const COOLDOWN_SECONDS = 30;
const COOLDOWN_SECONDS_MAX = 86_400;
const POOL_FIELDS = ["name", "cidr", "blockSize", "nodeSelector", "natOutgoing", "disabled"];

function readMapping(raw: unknown, path: string, keys: readonly string[]): Readonly<Record<string, unknown>> {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw)) {
    throw new ConfigError(path, show(raw), `a mapping with ${keys.join(", ")}`);
  }
  for (const key of Object.keys(raw)) {
    if (!keys.includes(key)) {
      throw new ConfigError(path === "" ? key : `${path}.${key}`, "an unknown key", keys.join(", "));
    }
  }
  return raw as Readonly<Record<string, unknown>>;
}

/** @throws {ConfigError} naming the key: an unknown one, a bad prefix or block size, pools that overlap */
export function parseConfig(raw: unknown): BlockIpamConfig {
  const config = readMapping(raw ?? {}, "", ["pools", "cooldownSeconds"]);
  const cooldownSeconds = config.cooldownSeconds ?? COOLDOWN_SECONDS;
  if (typeof cooldownSeconds !== "number" || !(cooldownSeconds >= 0 && cooldownSeconds <= COOLDOWN_SECONDS_MAX)) {
    throw new ConfigError("cooldownSeconds", show(cooldownSeconds), `seconds from 0 to ${COOLDOWN_SECONDS_MAX}`);
  }
  const list = config.pools ?? [];
  if (!Array.isArray(list)) throw new ConfigError("pools", show(list), "a list of pools");
  const pools: Pool[] = [];
  for (const [i, entry] of list.entries()) {
    const path = `pools[${i}]`;
    const fields = readMapping(entry, path, POOL_FIELDS);
    const { name } = fields;
    // RFC 1123 section 2.1 subdomain, as Kubernetes object names.
    if (
      typeof name !== "string" || name.length > 253 ||
      !/^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/.test(name)
    ) throw new ConfigError(`${path}.name`, show(name) ?? "nothing", "a name of lower case letters, digits, - and .");
    if (pools.some((other) => other.name === name)) {
      throw new ConfigError(`${path}.name`, `${name} a second time`, "a name for each pool");
    }
    const pool = readPool(name, fields);
    if (isFaults(pool)) throw new ConfigError(`${path}.${pool[0]!.path}`, pool[0]!.found, pool[0]!.wanted);
    const other = overlapping(pool, pools);
    if (other !== undefined) {
      throw new ConfigError(
        `${path}.cidr`,
        `${formatCidr(pool.cidr)}, which overlaps pool ${other.name} (${formatCidr(other.cidr)})`,
        "pools that share no address",
      );
    }
    pools.push(pool);
  }
  return { pools, cooldownSeconds };
}

const isFaults = (read: Pool | readonly Fault[]): read is readonly Fault[] => Array.isArray(read);

/** A stored IPPool. Fields of the API that are not ours to act on (ipipMode, vxlanMode, …) are left alone. */
export function readPoolResource(key: ResourceKey, resource: Resource): Pool | readonly Problem[] {
  const spec = resource.spec;
  const problem = (path: string, message: string): Problem => ({ subject: key, path, message, effect: "ignored" });
  if (typeof spec !== "object" || spec === null || Array.isArray(spec)) {
    return [problem("spec", `found ${show(spec)}, wanted a mapping with cidr`)];
  }
  const pool = readPool(key.name, spec as Record<string, unknown>);
  if (!isFaults(pool)) return pool;
  return pool.map(({ path, found, wanted }) => problem(`spec.${path}`, `found ${found}, wanted ${wanted}`));
}

/** As it is stored, so that everything that reads IPPools knows the configured ones too. */
export function poolResource(pool: Pool, node: string): Resource {
  return {
    apiVersion: "projectcalico.org/v3",
    kind: "IPPool",
    metadata: { name: pool.name, annotations: { [CONFIGURED_BY]: node } },
    spec: {
      cidr: formatCidr(pool.cidr),
      blockSize: pool.blockPrefix,
      nodeSelector: pool.nodeSelector,
      natOutgoing: pool.natOutgoing,
      disabled: pool.disabled,
    },
  };
}

/** Whether both hand out the same addresses to the same nodes in the same way. */
export const samePool = (a: Pool, b: Pool): boolean =>
  a.cidr === b.cidr && a.blockPrefix === b.blockPrefix && a.nodeSelector === b.nodeSelector &&
  a.natOutgoing === b.natOutgoing && a.disabled === b.disabled && a.forWorkloads === b.forWorkloads;

/** Those that can stand together, sorted by name; of two that overlap, the first by name. */
export function planPools(
  stored: Iterable<Pool>,
): { readonly pools: readonly Pool[]; readonly problems: readonly Problem[] } {
  const pools: Pool[] = [];
  const problems: Problem[] = [];
  for (const pool of [...stored].sort((a, b) => a.name < b.name ? -1 : a.name > b.name ? 1 : 0)) {
    const other = overlapping(pool, pools);
    if (other === undefined) pools.push(pool);
    else {
      problems.push({
        subject: poolKey(pool.name),
        path: "spec.cidr",
        message: `found ${formatCidr(pool.cidr)}, which overlaps pool ${other.name} (${formatCidr(other.cidr)}); ` +
          "wanted pools that share no address",
        effect: "ignored",
      });
    }
  }
  return { pools, problems };
}

/** Whether a workload may get an address of it at all. */
export const servesWorkloads = (pool: Pool): boolean => !pool.disabled && pool.forWorkloads;

/**
 * The pools that may serve `family` on a node with `labels`. `wanted` (names or prefixes) stands above the pools' own
 * node selectors, as Calico's annotations do, and sets the order.
 */
export function choosePools(
  pools: readonly Pool[],
  family: Family,
  labels: Labels,
  wanted?: readonly string[],
): readonly Pool[] {
  const usable = pools.filter((pool) => servesWorkloads(pool) && cidrFamily(pool.cidr) === family);
  if (wanted === undefined || wanted.length === 0) return usable.filter((pool) => matches(pool.selects, labels));
  return wanted.flatMap((text) => usable.filter((pool) => poolIsCalled(pool, text)));
}

/** Whether `text` is the pool's name or prefix. */
export function poolIsCalled(pool: Pool, text: string): boolean {
  if (pool.name === text) return true;
  try {
    return text.includes("/") && parseCidrStrict(text) === pool.cidr;
  } catch {
    return false;
  }
}

/** Addresses of a pool that are never handed out: an IPv4 pool's network and broadcast address, an IPv6 pool's subnet-router anycast
 * address (RFC 4291 section 2.6.1). Pools of one or two addresses use all. */
export function reservedCount(pool: Pool): bigint {
  const bits = familyBits(cidrFamily(pool.cidr)) - cidrPrefix(pool.cidr);
  if (bits < 2) return 0n;
  return cidrFamily(pool.cidr) === 4 ? 2n : 1n;
}

/** Addresses that can be handed out. */
export const poolCapacity = (pool: Pool): bigint =>
  (1n << BigInt(familyBits(cidrFamily(pool.cidr)) - cidrPrefix(pool.cidr))) - reservedCount(pool);
