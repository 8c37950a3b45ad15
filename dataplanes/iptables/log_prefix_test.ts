import { expect, test } from "bun:test";
import type { Decision } from "../../src/model/evaluate.ts";
import { LOG_PREFIX_MAX_BYTES, logPrefix } from "./log_prefix.ts";

const ruleOf = (policy: string, index: number, tier?: string): Decision => ({
  by: "rule",
  ...tier === undefined ? {} : { tier },
  policy,
  origin: { policy, direction: "ingress", index },
});

test("a prefix says verdict, direction and decision; what does not fit ends in a digest of the whole", () => {
  expect(logPrefix({ by: "no profile" }, "egress", "deny")).toBe("manx deny egress no profile");
  expect(logPrefix({ by: "tier default", tier: "default" }, "ingress", "deny")).toBe(
    "manx deny ingress tier default no match",
  );
  expect(logPrefix(ruleOf("NetworkPolicy/a/b", 3, "default"), "ingress", "log")).toBe(
    "manx log ingress tier default rule 3 NetworkPolicy/a/b",
  );
  const long = [0, 1].map((index) =>
    logPrefix(ruleOf(`NetworkPolicy/${"n".repeat(60)}/p`, index, "default"), "ingress", "deny")
  );
  for (const prefix of long) {
    expect(prefix.length).toBeLessThanOrEqual(LOG_PREFIX_MAX_BYTES);
    expect(prefix).toMatch(/^manx deny ingress tier default rule [01].*~[a-z2-7]{16}$/);
  }
  expect(long[0]).not.toBe(long[1]!);
  expect(logPrefix(ruleOf("é", 0), "ingress", "log")).toMatch(/^manx log ingress profile rule 0 \?~[a-z2-7]{16}$/);
});
