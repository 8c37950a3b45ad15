/** The way of a switch from the question to the answer, with dataplanes that do as they are told; on the kernel: test/lab/dataplane_*_test.ts. */
import { expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createKernelDoor } from "../../kernel/door.ts";
import { judgePath } from "../../model/evaluate.ts";
import { CLOSED, state, workload } from "../../model/testdata/small_states.ts";
import type { PacketJudge } from "../../sdk/dataplane.ts";
import { ManxError } from "../../sdk/errors.ts";
import { systemClock } from "../clock.ts";
import { parseConfig } from "../config.ts";
import { silentLog } from "../log.ts";
import { DataplaneRecord } from "./record.ts";
import { createDataplaneSwitch, type SwitchDataplane } from "./run.ts";
import { SwitchableDataplane } from "./switch.ts";
import { Told } from "./testdata/told.ts";

const DESIRED = state({ generation: 7, workloads: [workload("a", "mxa", ["10.0.0.1"], { ingress: CLOSED })] });
const meant: PacketJudge = (path) => judgePath(DESIRED, path).verdict;

class Begun implements AsyncDisposable {
  readonly diary: string[] = [];
  readonly old = new Told("old", this.diary);
  readonly fresh = new Told("fresh", this.diary);
  readonly directory = mkdtempSync(join(tmpdir(), "manx-switch-run-"));
  readonly record = DataplaneRecord.read(this.directory);
  readonly dataplane = new SwitchableDataplane(this.old.open, silentLog);
  /** Where each was opened: in a trial, or for good. */
  readonly openings: string[] = [];
  readonly switch: SwitchDataplane;

  constructor() {
    this.old.judge = this.fresh.judge = meant;
    this.switch = createDataplaneSwitch({
      config: parseConfig("dataplane: { use: old }", "manx.yaml"),
      record: this.record,
      dataplanes: [this.dataplane],
      kernel: createKernelDoor(),
      clock: systemClock,
      log: silentLog,
      isInForce: () => true,
      open: async ({ use }, _signal, kernel) => {
        if (use !== "fresh") throw new ManxError("config", `dataplane.use: found ${use}, wanted one of fresh, old`);
        this.openings.push(kernel === undefined ? "for good" : "in a trial");
        return this.fresh.open;
      },
      checkAspects: () => {},
    }, { isDone: () => true });
  }

  static async new(): Promise<Begun> {
    const begun = new Begun();
    begun.record.willWrite([{ use: "old" }]);
    await begun.dataplane.apply(DESIRED);
    return begun;
  }

  async refusal(use: string, config?: unknown): Promise<string> {
    const before = [JSON.stringify(this.record.written), ...this.old.calls];
    const refused = await this.switch({ use, config }).then(() => "none", (error: Error) => error.message);
    expect([JSON.stringify(this.record.written), ...this.old.calls]).toEqual(before);
    expect(this.dataplane.name).toBe("old");
    expect(this.openings).not.toContain("for good");
    return refused;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    rmSync(this.directory, { recursive: true, force: true });
  }
}

test("both are asked about packets before anything changes, and then it goes its way", async () => {
  await using begun = await Begun.new();
  const view = await begun.switch({ use: "fresh" });
  expect(view).toMatchObject({ from: "old", to: "fresh", generation: 7, left: [], configured: "old" });
  expect(view.compared.complete).toBe(true);
  expect(view.compared.packets).toBeGreaterThan(5);
  expect(begun.openings).toEqual(["in a trial", "for good"]);
  expect(begun.record.written.map(({ use }) => use)).toEqual(["old", "fresh"]);
  expect(await begun.switch({ use: "fresh" })).toMatchObject({
    from: "fresh",
    to: "fresh",
    messages: 0,
    configured: "old",
  });
});

test("one packet about which they differ is enough: refused with its name, and nothing was changed", async () => {
  await using begun = await Begun.new();
  begun.fresh.judge = (path) => path.outInterface === "mxa" && path.inInterface !== undefined ? "allow" : meant(path);
  expect(await begun.refusal("fresh")).toBe(
    "switch: found dataplane old to deny and dataplane fresh to allow tcp from 198.51.100.7 port 40000 to 10.0.0.1 port 80, eth0 to mxa " +
      "(policy says deny), wanted both to decide alike: nothing was changed",
  );
  expect(begun.openings).toEqual(["in a trial"]);
  begun.fresh.judge = undefined;
  expect((await begun.switch({ use: "fresh" })).compared.packets).toBeGreaterThan(5);
});

test("an unknown name, other settings for the one in force, one that the kernel refuses: refused, and nothing was changed", async () => {
  await using begun = await Begun.new();
  expect(await begun.refusal("frsh")).toBe("dataplane.use: found frsh, wanted one of fresh, old");
  expect(await begun.refusal("old", {})).toContain("found old in force already, wanted another dataplane");
  expect(await begun.refusal("/etc/x.ts")).toContain("wanted the name of a built-in dataplane");
  expect(begun.openings).toEqual([]);
  begun.fresh.converges = false;
  expect(await begun.refusal("fresh")).toBe(
    "switch: found dataplane fresh not in force, wanted it to be: fresh cannot",
  );
  expect(await begun.switch({ use: "old" })).toMatchObject({ from: "old", to: "old", messages: 0, generation: 7 });
  expect(readdirSync(begun.directory)).toEqual(["dataplanes.json"]);
});

test("two at a time: the second is told to wait", async () => {
  await using begun = await Begun.new();
  const { promise, resolve } = Promise.withResolvers<void>();
  begun.fresh.gate = promise;
  const first = begun.switch({ use: "fresh" });
  await expect(begun.switch({ use: "fresh" })).rejects.toThrow("found another one under way");
  resolve();
  expect((await first).to).toBe("fresh");
});
