import { ConfigError } from "../../src/sdk/errors.ts";

export interface NftablesConfig {
  /** NFLOG group that `Log` rules write to. */
  readonly logGroup: number;
  /** Bits of the packet mark and the connection mark that are ours: of the former the lowest and the third are used, of the latter the second. */
  readonly markMask: number;
  /** `linear`: every rule by itself, in order; a packet's cost grows with the list. To compare with, and to look for faults. */
  readonly form: "flat" | "linear";
  /** Off: services are another dataplane's. */
  readonly services: boolean;
  /** One bit of the packet mark: what carries it another dataplane has forwarded past FORWARD (`ipvs`, `forwardMark`). Judged where services are another's. */
  readonly forwardMark: number;
  /** Packets of established TCP flows go past all rules, ours and others', from link to link. Not where services are another's. */
  readonly establishedFastPath: boolean;
  /** NFLOG group of the packets that say which flows are worth it. */
  readonly fastPathGroup: number;
}

const DEFAULTS: NftablesConfig = {
  logGroup: 86,
  markMask: 0xffff0000,
  form: "flat",
  services: true,
  forwardMark: 0x0040_0000,
  establishedFastPath: false,
  fastPathGroup: 87,
};
const FORMS = ["flat", "linear"] as const;

/** The lowest bit of the mask. */
export const lowestBit = (mask: number): number => (mask & -mask) >>> 0;
/** The bit after it, 0 where there is none: not the same one, or who copies the one mark into the other would cut flows. */
export const secondBit = (mask: number): number => lowestBit((mask & mask - 1) >>> 0);
/** The one after that, 0 where there is none. */
export const thirdBit = (mask: number): number => secondBit((mask & mask - 1) >>> 0);

/** @throws {ConfigError} naming the key path */
export function parseConfig(raw: unknown): NftablesConfig {
  if (raw === undefined || raw === null) return DEFAULTS;
  if (typeof raw !== "object" || Array.isArray(raw)) {
    throw new ConfigError("dataplane.config", JSON.stringify(raw), "a mapping");
  }
  const given = raw as Record<string, unknown>;
  const number = (
    key: "logGroup" | "markMask" | "forwardMark" | "fastPathGroup",
    low: number,
    high: number,
  ): number => {
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
  const form = FORMS.find((form) => form === (given.form ?? DEFAULTS.form));
  if (form === undefined) {
    throw new ConfigError("dataplane.config.form", JSON.stringify(given.form), `one of ${FORMS.join(", ")}`);
  }
  const isOn = (key: "services" | "establishedFastPath"): boolean => {
    const value = given[key] ?? DEFAULTS[key];
    if (typeof value === "boolean") return value;
    throw new ConfigError(`dataplane.config.${key}`, JSON.stringify(value), "true or false");
  };
  const services = isOn("services"), establishedFastPath = isOn("establishedFastPath");
  if (establishedFastPath && !services) {
    throw new ConfigError("dataplane.config.establishedFastPath", "true beside services: false", "services: true");
  }
  const logGroup = number("logGroup", 1, 0xffff), fastPathGroup = number("fastPathGroup", 1, 0xffff);
  if (establishedFastPath && logGroup === fastPathGroup) {
    throw new ConfigError("dataplane.config.fastPathGroup", `${fastPathGroup}`, "another group than logGroup");
  }
  const forwardMark = number("forwardMark", 1, 0xffffffff);
  if ((forwardMark & forwardMark - 1) !== 0) {
    throw new ConfigError("dataplane.config.forwardMark", `0x${forwardMark.toString(16)}`, "one bit");
  }
  return {
    logGroup,
    markMask: number("markMask", 1, 0xffffffff),
    form,
    services,
    forwardMark,
    establishedFastPath,
    fastPathGroup,
  };
}
