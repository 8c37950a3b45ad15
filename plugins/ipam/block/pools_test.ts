import { describe, expect, test } from "bun:test";
import { formatCidr } from "../../../src/model/address.ts";
import type { Problem } from "../../../src/model/resource.ts";
import { ConfigError } from "../../../src/sdk/errors.ts";
import { parseConfig, planPools, type Pool, poolKey, poolResource, readPoolResource, samePool } from "./pools.ts";

const pool = (fields: Record<string, unknown>) => ({ pools: [{ name: "p", cidr: "10.0.0.0/16", ...fields }] });

describe("config", () => {
  test("nothing is no pool and 30 seconds of rest", () => {
    for (const raw of [undefined, null, {}]) expect(parseConfig(raw)).toEqual({ pools: [], cooldownSeconds: 30 });
  });

  test.each([
    ["10.0.0.0/16", 26],
    ["10.0.0.0/28", 28],
    ["fd00::/64", 122],
    ["fd00::/124", 124],
  ])("a pool %s has blocks of /%i where none is given", (cidr, wanted) => {
    expect(parseConfig(pool({ cidr })).pools[0]!.blockPrefix).toBe(wanted);
  });

  test.each([
    [[], "config: found [], wanted a mapping with pools, cooldownSeconds"],
    [{ pool: [] }, "pool: found an unknown key, wanted pools, cooldownSeconds"],
    [{ pools: {} }, "pools: found {}, wanted a list of pools"],
    [{ cooldownSeconds: -1 }, "cooldownSeconds: found -1"],
    [{ cooldownSeconds: "30" }, 'cooldownSeconds: found "30"'],
    [pool({ name: "A" }), 'pools[0].name: found "A"'],
    [pool({ name: undefined }), "pools[0].name: found undefined"],
    [pool({ size: 3 }), "pools[0].size: found an unknown key"],
    [pool({ cidr: undefined }), "pools[0].cidr: found nothing, wanted a prefix such as"],
    [pool({ cidr: "10.0.0.1" }), 'pools[0].cidr: found "10.0.0.1", wanted a prefix with its length'],
    [pool({ cidr: "10.0.0.1/16" }), 'pools[0].cidr: found "10.0.0.1/16", wanted the network itself, 10.0.0.0/16'],
    [pool({ cidr: "10.0.0.0/33" }), "wanted a prefix length from 0 to 32"],
    [pool({ cidr: "ten/8" }), 'pools[0].cidr: found "ten/8"'],
    [pool({ blockSize: 19 }), "pools[0].blockSize: found 19, wanted a prefix length from 20 to 32"],
    [pool({ blockSize: 26.5 }), "pools[0].blockSize: found 26.5"],
    [pool({ blockSize: "26" }), 'pools[0].blockSize: found "26"'],
    [
      pool({ cidr: "10.0.0.0/28", blockSize: 26 }),
      "pools[0].blockSize: found 26, wanted 28 or more: a block is a part of",
    ],
    [pool({ cidr: "fd00::/64", blockSize: 64 }), "wanted a prefix length from 116 to 128"],
    [pool({ nodeSelector: "zone ==" }), 'pools[0].nodeSelector: found "zone =="'],
    [pool({ natOutgoing: "yes" }), 'pools[0].natOutgoing: found "yes", wanted true or false'],
    [pool({ disabled: 1 }), "pools[0].disabled: found 1"],
    [
      { pools: [{ name: "a", cidr: "10.0.0.0/16" }, { name: "a", cidr: "10.1.0.0/16" }] },
      "pools[1].name: found a a second time",
    ],
    [
      { pools: [{ name: "a", cidr: "10.0.0.0/16" }, { name: "b", cidr: "10.0.128.0/24" }] },
      "pools[1].cidr: found 10.0.128.0/24, which overlaps pool a (10.0.0.0/16), wanted pools that share no address",
    ],
  ])("case %# is refused with its key path", (raw, wanted) => {
    expect(() => parseConfig(raw)).toThrow(ConfigError);
    expect(() => parseConfig(raw)).toThrow(wanted);
  });
});

test("a configured pool is read back from its resource as it was", () => {
  const [made] =
    parseConfig(pool({ nodeSelector: "zone == 'a'", natOutgoing: true, disabled: true, blockSize: 27 })).pools;
  const read = readPoolResource(poolKey("p"), JSON.parse(JSON.stringify(poolResource(made!, "alpha"))));
  expect(samePool(read as Pool, made!)).toBe(true);
});

test("a stored pool keeps fields of its API that are not ours to act on, and says all that is wrong with it", () => {
  const stored = (spec: Record<string, unknown>) =>
    readPoolResource(poolKey("p"), {
      apiVersion: "projectcalico.org/v3",
      kind: "IPPool",
      metadata: { name: "p" },
      spec,
    });
  const fine = stored({ cidr: "10.0.0.0/16", ipipMode: "Never", vxlanMode: "Always", allowedUses: ["Tunnel"] }) as Pool;
  expect([formatCidr(fine.cidr), fine.forWorkloads, fine.natOutgoing]).toEqual(["10.0.0.0/16", false, false]);
  const problems = stored({ cidr: "x", natOutgoing: 1, allowedUses: ["Fun"] }) as readonly Problem[];
  expect(problems.map(({ path }) => path)).toEqual([
    "spec.cidr",
    "spec.allowedUses",
    "spec.natOutgoing",
  ]);
});

test("of stored pools that overlap the first by name stands, in whatever order they come", () => {
  const { pools: [a] } = parseConfig({ pools: [{ name: "a", cidr: "10.0.0.0/16" }] });
  const { pools: [b] } = parseConfig({ pools: [{ name: "b", cidr: "10.0.1.0/24" }] });
  const { pools: [c] } = parseConfig({ pools: [{ name: "c", cidr: "10.1.0.0/16" }] });
  for (const order of [[a, b, c], [c, b, a]]) {
    const plan = planPools(order as Pool[]);
    expect(plan.pools.map(({ name }) => name)).toEqual(["a", "c"]);
    expect(plan.problems.map(({ subject }) => subject.name)).toEqual(["b"]);
  }
});
