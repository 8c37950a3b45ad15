import { describe, expect, test } from "bun:test";
import { type Cidr, cidrsOverlap, formatCidr, parseCidrStrict } from "../../../src/model/address.ts";
import { claimSalt, planBlock } from "./plan.ts";
import { parseConfig, type Pool } from "./pools.ts";

const pool = (cidr: string, blockSize: number): Pool =>
  parseConfig({ pools: [{ name: "p", cidr, blockSize }] }).pools[0]!;
const plan = (of: Pool, taken: readonly string[], salt = 0) => {
  const found = planBlock(of, taken.map(parseCidrStrict), salt);
  return found === undefined ? undefined : `${formatCidr(found.cidr)} ${found.claimed}/${found.total}`;
};

describe("planBlock", () => {
  test.each([
    ["10.0.0.0/24", 26, [], "10.0.0.0/26 0/4"],
    ["10.0.0.0/24", 26, ["10.0.0.0/26"], "10.0.0.64/26 1/4"],
    ["10.0.0.0/24", 26, ["10.0.0.0/26", "10.0.0.128/26"], "10.0.0.64/26 2/4"],
    ["10.0.0.0/24", 26, ["10.0.0.0/25", "10.0.0.128/28"], "10.0.0.192/26 3/4"],
    ["10.0.0.0/24", 26, ["10.0.0.4/30", "10.0.0.8/30"], "10.0.0.64/26 1/4"],
    ["10.0.0.0/24", 26, ["10.0.0.0/24"], undefined],
    ["10.0.0.0/24", 26, ["10.0.0.0/8"], undefined],
    ["10.0.0.0/24", 26, ["10.0.1.0/26", "fd00::/122"], "10.0.0.0/26 0/4"],
    ["10.0.0.0/26", 26, [], "10.0.0.0/26 0/1"],
    ["10.0.0.0/30", 32, [], "10.0.0.1/32 0/2"],
    ["10.0.0.0/30", 32, ["10.0.0.1/32", "10.0.0.2/32"], undefined],
    ["10.0.0.0/30", 32, ["10.0.0.0/32", "10.0.0.1/32"], "10.0.0.2/32 1/2"],
    ["10.0.0.4/32", 32, [], "10.0.0.4/32 0/1"],
    ["fd00::/64", 122, ["fd00::/122"], `fd00::40/122 1/${2n ** 58n}`],
  ])("of %s in /%i, with %p claimed: %p", (cidr, size, taken, wanted) => {
    expect(plan(pool(cidr, size), taken as string[])).toBe(wanted as string);
  });

  test("any salt finds a block that is free while there is one, and the salts spread", () => {
    const of = pool("10.0.0.0/22", 26);
    const taken: Cidr[] = [];
    const starts = new Set<string>();
    for (let attempt = 1; attempt <= 30; attempt++) {
      starts.add(formatCidr(planBlock(of, [], claimSalt("alpha", attempt))!.cidr));
    }
    expect(starts.size).toBeGreaterThan(8);
    for (let i = 0; i < 16; i++) {
      const found = planBlock(of, taken, claimSalt("alpha", i))!;
      expect(taken.some((cidr) => cidrsOverlap(cidr, found.cidr))).toBe(false);
      expect(found.claimed).toBe(BigInt(i));
      taken.push(found.cidr);
    }
    expect(planBlock(of, taken, 7)).toBeUndefined();
  });
});
