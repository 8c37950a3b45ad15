import { ConfigError } from "../../src/sdk/errors.ts";
import type { ServiceMarks } from "./services_chains.ts";

export interface IptablesConfig {
  /** Which iptables of the kernel is written to; `auto`: that which everybody else uses. */
  readonly variant: "auto" | "legacy" | "nft";
  /** Where our jumps stand in the kernel's chains: before everything else, or after. */
  readonly position: "insert" | "append";
  /** NFLOG group that `Log` rules write to. */
  readonly logGroup: number;
  /** Bits of the packet mark and the connection mark that are ours: of the former the lowest and the third to fifth are used, of the latter the second. */
  readonly markMask: number;
  /** What `iptables` locks while it writes. */
  readonly lockFile: string;
  /** So long we wait for it, then the problem is reported and tried again later. */
  readonly lockWaitMs: number;
  /** Ip sets and legacy iptables tell nobody of changes: they are looked for so often. */
  readonly pollMs: number;
  /** Off: services are another dataplane's. */
  readonly services: boolean;
}

const DEFAULTS: IptablesConfig = {
  variant: "auto",
  position: "insert",
  logGroup: 86,
  markMask: 0xffff0000,
  lockFile: "/run/xtables.lock",
  lockWaitMs: 5_000,
  pollMs: 1_000,
  services: true,
};

/** The lowest bit of the mask. */
export const lowestBit = (mask: number): number => (mask & -mask) >>> 0;
/** The bit after it, 0 where there is none: not the same one, or who copies the one mark into the other would cut flows. */
export const secondBit = (mask: number): number => lowestBit((mask & mask - 1) >>> 0);
/** Those after it, three: undefined where there are not so many. */
export function serviceMarks(mask: number): ServiceMarks | undefined {
  const withoutLowest = (bits: number): number => (bits & bits - 1) >>> 0;
  const third = withoutLowest(withoutLowest(mask)), fourth = withoutLowest(third), fifth = withoutLowest(fourth);
  if (fifth === 0) return undefined;
  return { masquerade: lowestBit(third), refuse: lowestBit(fourth), drop: lowestBit(fifth) };
}

/** Bits of the packet mark that none of those uses. */
export function freeBits(mask: number): number {
  let bits = mask;
  for (let used = 0; used < 5; used++) bits = (bits & bits - 1) >>> 0;
  return bits;
}

/** @throws {ConfigError} naming the key path */
export function parseConfig(raw: unknown): IptablesConfig {
  if (raw === undefined || raw === null) return DEFAULTS;
  if (typeof raw !== "object" || Array.isArray(raw)) {
    throw new ConfigError("dataplane.config", JSON.stringify(raw), "a mapping");
  }
  const given = raw as Record<string, unknown>;
  const wrong = (key: keyof IptablesConfig, wanted: string) =>
    new ConfigError(`dataplane.config.${key}`, JSON.stringify(given[key]), wanted);
  for (const key of Object.keys(given)) {
    if (!(key in DEFAULTS)) {
      throw new ConfigError(`dataplane.config.${key}`, "an unknown key", `one of ${Object.keys(DEFAULTS).join(", ")}`);
    }
  }
  const number = (key: "logGroup" | "markMask" | "lockWaitMs" | "pollMs", low: number, high: number): number => {
    const value = given[key];
    if (value === undefined) return DEFAULTS[key];
    if (typeof value !== "number" || !Number.isInteger(value) || value < low || value > high) {
      throw wrong(key, `a whole number from ${low} to ${high}`);
    }
    return value;
  };
  const oneOf = <T extends string>(key: "position" | "variant", ...words: readonly T[]): T => {
    const value = given[key] ?? DEFAULTS[key];
    if (!(words as readonly unknown[]).includes(value)) throw wrong(key, `one of ${words.join(", ")}`);
    return value as T;
  };
  const lockFile = given.lockFile ?? DEFAULTS.lockFile;
  if (typeof lockFile !== "string" || !lockFile.startsWith("/") || lockFile.includes("\0")) {
    throw wrong("lockFile", "an absolute path");
  }
  const services = given.services ?? DEFAULTS.services;
  if (typeof services !== "boolean") throw wrong("services", "true or false");
  return {
    variant: oneOf("variant", "auto", "legacy", "nft"),
    position: oneOf("position", "insert", "append"),
    logGroup: number("logGroup", 1, 0xffff),
    markMask: number("markMask", 1, 0xffffffff),
    lockFile,
    lockWaitMs: number("lockWaitMs", 0, 60_000),
    pollMs: number("pollMs", 50, 600_000),
    services,
  };
}
