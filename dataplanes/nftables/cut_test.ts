import { expect, test } from "bun:test";
import { createNamespace } from "../../src/kernel/netns.ts";
import { parseConfig, secondBit } from "./config.ts";
import { Renderer } from "./render.ts";
import { address, CLOSED, rule, rules, state, workload } from "../../src/model/testdata/small_states.ts";
import { openDataplane } from "./testdata/open.ts";
import type { Hook, TracedPacket } from "../../src/model/traced.ts";
import { traceHook } from "./trace.ts";
import type { DesiredState } from "../../src/model/desired.ts";

const MARK = 0x20000;
const rendered = (desired: DesiredState, resets = true) =>
  new Renderer({ logGroup: 86, passedMark: 0x10000, cut: { mark: MARK, resets } }).render(desired).ruleset;

const tcp: TracedPacket = {
  source: address("10.0.0.1"),
  destination: address("10.0.0.2"),
  protocol: 6,
  sourcePort: 1000,
  destinationPort: 80,
  inInterface: "mxa",
  outInterface: "mxb",
  state: "established",
};
const verdict = (desired: DesiredState, hook: Hook, packet: TracedPacket, resets = true): string => {
  const { verdict, steps } = traceHook(rendered(desired, resets), hook, packet);
  return steps.at(-1)?.text.endsWith("reject with tcp reset") ? "reset" : verdict;
};

const open = state({
  workloads: [workload("a", "mxa", ["10.0.0.1", "fd00::1"]), workload("b", "mxb", ["10.0.0.2", "fd00::2"])],
});
const hosted = state({
  hostEndpoints: [{
    id: "h",
    interfaces: ["eth0"],
    ingress: rules(rule("allow")),
    egress: rules(rule("allow")),
    forwardIngress: CLOSED,
  }],
});

test("no packet of a cut flow passes the node or reaches it, and TCP senders are told", () => {
  const cut = { ...tcp, flowMark: MARK | 0xffff };
  for (const desired of [open, hosted]) {
    // Without host endpoints, what does not concern a pod is not ours, whatever mark it carries.
    const others = desired === open ? "accept" : "reset";
    expect(verdict(desired, "forward", { ...cut, inInterface: "eth1", outInterface: "eth2" })).toBe(others);
    expect(verdict(desired, "input", { ...cut, inInterface: "eth0", outInterface: undefined })).toBe(others);
    expect(verdict(desired, "output", { ...cut, inInterface: undefined, outInterface: "eth0" })).toBe(others);
    expect(verdict(desired, "input", { ...cut, outInterface: undefined })).toBe("reset");
    expect(verdict(desired, "output", { ...cut, inInterface: undefined, outInterface: "mxa" })).toBe("reset");
    expect(verdict(desired, "forward", { ...cut, inInterface: "eth1", outInterface: "mxunknown" })).toBe("reset");
  }
  for (const state of ["established", "new"] as const) {
    expect(verdict(open, "forward", { ...cut, state })).toBe("reset");
  }
  expect(verdict(open, "forward", { ...cut, protocol: 17 })).toBe("drop");
  expect(verdict(open, "forward", { ...cut, source: address("fd00::1"), destination: address("fd00::2") })).toBe(
    "reset",
  );
  expect(verdict(open, "forward", cut, false)).toBe("drop");
  // Errors about it do not pass the node either.
  expect(verdict(open, "forward", { ...cut, protocol: 1, icmp: { type: 3, code: 1 }, state: "related" })).toBe("drop");
});

test("resets that the node makes itself pass, and so does everything of a flow without the bit", () => {
  const reset = { ...tcp, state: "related" as const, flowMark: MARK };
  for (const desired of [open, hosted]) {
    expect(verdict(desired, "output", { ...reset, inInterface: undefined, outInterface: "mxa" })).toBe("accept");
    expect(verdict(desired, "input", { ...reset, inInterface: "lo", outInterface: undefined })).toBe("accept");
    for (const hook of ["input", "output"] as const) {
      const packet = { ...tcp, flowMark: ~MARK >>> 0, inInterface: "eth0", outInterface: "eth0" };
      expect(verdict(desired, hook, packet)).toBe("accept");
    }
  }
  expect(verdict(open, "forward", { ...tcp, flowMark: ~MARK >>> 0 })).toBe("accept");
  // What belongs to no flow has no mark to look at.
  expect(verdict(open, "forward", { ...tcp, state: "untracked", flowMark: MARK })).toBe("accept");
});

test("the bit is the second of the mask, and without one nothing is cut", async () => {
  expect(secondBit(0xffff0000)).toBe(MARK);
  expect(secondBit(0x80000001)).toBe(0x80000000);
  expect(secondBit(0x10000)).toBe(0);
  expect(parseConfig({ markMask: 0x10000 }).markMask).toBe(0x10000);
  using namespace = createNamespace("cut");
  for (const [markMask, wanted] of [[undefined, MARK], [0xff00, 0x200], [0x100, undefined]] as const) {
    await using dataplane = await openDataplane(namespace, markMask === undefined ? undefined : { markMask });
    expect(dataplane.cutMark).toBe(wanted);
    await dataplane.sweep();
  }
  const plain = new Renderer({ logGroup: 86, passedMark: 0x10000 }).render(open).ruleset;
  expect([...plain.chains.keys()]).not.toContain("cut");
  expect([...plain.chains.keys()]).not.toContain("output");
});
