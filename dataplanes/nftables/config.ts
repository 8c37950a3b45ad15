import { ConfigError } from "../../src/sdk/errors.ts";

export interface NftablesConfig {
  /** NFLOG group that `Log` rules write to. */
  readonly logGroup: number;
  /** Bits of the packet mark that are ours; the lowest one is used. */
  readonly markMask: number;
}

const DEFAULTS: NftablesConfig = { logGroup: 86, markMask: 0xffff0000 };

/** The lowest bit of the mask. */
export const lowestBit = (mask: number): number => (mask & -mask) >>> 0;

/** @throws {ConfigError} naming the key path */
export function parseConfig(raw: unknown): NftablesConfig {
  if (raw === undefined || raw === null) return DEFAULTS;
  if (typeof raw !== "object" || Array.isArray(raw)) {
    throw new ConfigError("dataplane.config", JSON.stringify(raw), "a mapping");
  }
  const given = raw as Record<string, unknown>;
  const number = (key: keyof NftablesConfig, low: number, high: number): number => {
    const value = given[key];
    if (value === undefined) return DEFAULTS[key];
    if (typeof value !== "number" || !Number.isInteger(value) || value < low || value > high) {
      throw new ConfigError(`dataplane.config.${key}`, JSON.stringify(value), `a whole number from ${low} to ${high}`);
    }
    return value;
  };
  for (const key of Object.keys(given)) {
    if (!(key in DEFAULTS)) {
      throw new ConfigError(`dataplane.config.${key}`, "an unknown key", `one of ${Object.keys(DEFAULTS).join(", ")}`);
    }
  }
  return { logGroup: number("logGroup", 1, 0xffff), markMask: number("markMask", 1, 0xffffffff) };
}
