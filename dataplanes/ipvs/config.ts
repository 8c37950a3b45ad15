import { ConfigError } from "../../src/sdk/errors.ts";

/** Of the kernel's: who gets a new connection. Round robin, the same weighted, least connections, by source address (`mh` with few moved when servers change). */
export const SCHEDULERS = ["rr", "wrr", "lc", "sh", "mh"] as const;

export interface IpvsConfig {
  readonly scheduler: typeof SCHEDULERS[number];
  /** A removed server keeps the connections that it has for so long at most. */
  readonly drainSeconds: number;
  /** How often the whole of IPVS is compared with what it should be: it tells nobody of changes. */
  readonly resyncSeconds: number;
  /** One bit of the packet mark: a service has it, what IPVS forwards carries it on its way out. */
  readonly forwardMark: number;
  /** One bit of the packet mark: it leaves with the node's address. */
  readonly masqueradeMark: number;
}

const DEFAULTS: IpvsConfig = {
  scheduler: "rr",
  drainSeconds: 900,
  resyncSeconds: 30,
  forwardMark: 0x0040_0000,
  masqueradeMark: 0x0080_0000,
};

/** Lists of external traffic are told apart by these bits of the packet mark: 11, beside those that other parts use. */
export const LIST_MARK_SHIFTS = [19, 20, 21, 24, 25, 26, 27, 28, 29, 30, 31] as const;
const LIST_BITS = LIST_MARK_SHIFTS.reduce((all, shift) => (all | 1 << shift) >>> 0, 0);

/** @throws {ConfigError} naming the key path */
export function parseConfig(raw: unknown): IpvsConfig {
  if (raw === undefined || raw === null) return DEFAULTS;
  if (typeof raw !== "object" || Array.isArray(raw)) throw new ConfigError("", JSON.stringify(raw), "a mapping");
  const given = raw as Record<string, unknown>;
  for (const key of Object.keys(given)) {
    if (!(key in DEFAULTS)) {
      throw new ConfigError(key, "an unknown key", `one of ${Object.keys(DEFAULTS).join(", ")}`);
    }
  }
  const number = (key: "drainSeconds" | "resyncSeconds", low: number, high: number): number => {
    const value = given[key] ?? DEFAULTS[key];
    if (typeof value !== "number" || !Number.isInteger(value) || value < low || value > high) {
      throw new ConfigError(key, JSON.stringify(value), `a whole number from ${low} to ${high}`);
    }
    return value;
  };
  const bit = (key: "forwardMark" | "masqueradeMark"): number => {
    const value = given[key] ?? DEFAULTS[key];
    const isBit = typeof value === "number" && Number.isInteger(value) && value > 0 && value <= 0xffff_ffff &&
      (value & value - 1) === 0;
    if (!isBit || (value & LIST_BITS) !== 0) {
      const wanted = `one bit, none of 0x${LIST_BITS.toString(16)}`;
      throw new ConfigError(key, typeof value === "number" ? `0x${value.toString(16)}` : JSON.stringify(value), wanted);
    }
    return value;
  };
  const scheduler = SCHEDULERS.find((one) => one === (given.scheduler ?? DEFAULTS.scheduler));
  if (scheduler === undefined) {
    throw new ConfigError("scheduler", JSON.stringify(given.scheduler), `one of ${SCHEDULERS.join(", ")}`);
  }
  const forwardMark = bit("forwardMark"), masqueradeMark = bit("masqueradeMark");
  if (forwardMark === masqueradeMark) {
    throw new ConfigError("masqueradeMark", "the bit of forwardMark", "another one");
  }
  return {
    scheduler,
    drainSeconds: number("drainSeconds", 0, 86_400),
    resyncSeconds: number("resyncSeconds", 1, 3_600),
    forwardMark,
    masqueradeMark,
  };
}
