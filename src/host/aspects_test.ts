/** Which dataplanes may stand beside one another. */
import { expect, test } from "bun:test";
import type { Aspect, Dataplane } from "../sdk/dataplane.ts";
import { parseConfig } from "./config.ts";
import { checkAspects } from "./aspects.ts";

const slot = (name: string, aspects: readonly Aspect[], marks: Partial<Dataplane> = {}) => ({
  name,
  instance: {
    capabilities: { aspects: new Set(aspects), families: new Set([4, 6] as const), atomicity: "all" },
    ...marks,
  } as Dataplane,
});

const refusal = (...slots: readonly ReturnType<typeof slot>[]): string => {
  try {
    checkAspects(slots, parseConfig("{}", "manx.yaml"));
    return "taken";
  } catch (error) {
    return (error as Error).message;
  }
};

test("a slot without policy is fine beside one that has it, and none with policy at all is refused", () => {
  expect(refusal(slot("one", ["policy", "nat"]), slot("other", ["services"]))).toBe("taken");
  expect(refusal(slot("other", ["services"]))).toContain("found nobody for policy");
  expect(refusal(slot("one", ["policy", "services"]), slot("other", ["services"]))).toContain(
    "found one and other both for services",
  );
});

test("what forwards packets past FORWARD stands only beside policy that judges them by the same mark", () => {
  const ipvs = slot("ipvs", ["services"], { forwardMark: 0x40 });
  expect(refusal(slot("policy", ["policy"], { judgesForwardMark: 0x40 }), ipvs)).toBe("taken");
  for (const marks of [{}, { judgesForwardMark: 0x80 }]) {
    expect(refusal(ipvs, slot("policy", ["policy"], marks))).toContain(
      "found ipvs, which forwards packets past policy with the mark 0x40, and policy, which does not judge those",
    );
  }
});
