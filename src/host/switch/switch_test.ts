/** One dataplane beside another, with dataplanes that do as they are told; on the kernel: test/lab/dataplane_switch_test.ts. */
import { expect, test } from "bun:test";
import type { LoggedPacket } from "../../sdk/dataplane.ts";
import { silentLog } from "../log.ts";
import { SwitchableDataplane, tryOut } from "./switch.ts";
import { desiredAt, Told } from "./testdata/told.ts";

const DEADLINE = AbortSignal.timeout(60_000);

async function begun(): Promise<
  {
    old: Told;
    fresh: Told;
    diary: string[];
    swept: string[];
    dataplane: SwitchableDataplane;
    later: (ms: number) => void;
  }
> {
  let nowMs = 0;
  const diary: string[] = [], swept: string[] = [];
  const old = new Told("old", diary), fresh = new Told("fresh", diary);
  const dataplane = new SwitchableDataplane(old.open, silentLog, ({ loaded }) => swept.push(loaded.plugin.name), {
    nowMs: () => nowMs,
  });
  await dataplane.apply(desiredAt(1));
  return { old, fresh, diary, swept, dataplane, later: (ms) => void (nowMs += ms) };
}

test("what changes during the overlap goes to both, and counts once both have it", async () => {
  const { old, fresh, diary, swept, dataplane } = await begun();
  expect(await dataplane.overlap(fresh.open, DEADLINE)).toEqual({ generation: 1, messages: 1 });
  expect(dataplane.name).toBe("old");
  expect(await dataplane.apply(desiredAt(2))).toEqual({ generation: 2, converged: true, messages: 2, problems: [] });
  fresh.converges = false;
  expect(await dataplane.apply(desiredAt(3))).toEqual({
    generation: 3,
    converged: false,
    messages: 2,
    problems: ["fresh cannot"],
  });
  fresh.converges = true;
  const moved: string[] = [];
  expect(await dataplane.complete(() => void moved.push(dataplane.name))).toEqual([]);
  expect(moved).toEqual(["old"]);
  expect(dataplane.name).toBe("fresh");
  expect(swept).toEqual(["old"]);
  // Nothing of the old one goes before the new one has the state of the moment.
  expect(diary.slice(-3)).toEqual(["fresh apply 3", "old sweep", "old close"]);
  await dataplane.apply(desiredAt(4));
  expect(old.calls.at(-1)).toBe("close");
  expect(dataplane.isSettled).toBe(true);
});

for (
  const [what, spoil] of [
    ["cannot be brought in force", (fresh: Told) => void (fresh.converges = false)],
    ["reads back otherwise than it was written", (fresh: Told) => void (fresh.differs = ["- a rule"])],
  ] as const
) {
  test(`one that ${what} is not switched to, and nothing is left of it`, async () => {
    const { old, fresh, swept, dataplane } = await begun();
    spoil(fresh);
    await expect(dataplane.overlap(fresh.open, DEADLINE)).rejects.toThrow(/found dataplane fresh/);
    expect(await dataplane.abandon()).toEqual([]);
    expect(fresh.calls.slice(-2)).toEqual(["sweep", "close"]);
    expect(swept).toEqual(["fresh"]);
    expect([dataplane.name, dataplane.isSettled]).toEqual(["old", true]);
    expect(old.calls).toEqual(["apply 1"]);
  });
}

test("an old one that is not as wanted itself keeps the switch from going on", async () => {
  const { old, fresh, dataplane } = await begun();
  old.differs = ["+ a rule"];
  await expect(dataplane.overlap(fresh.open, DEADLINE)).rejects.toThrow(
    "found dataplane old otherwise in the kernel than wanted: + a rule",
  );
});

test("a switch that cannot be recorded is none", async () => {
  const { old, fresh, dataplane } = await begun();
  await dataplane.overlap(fresh.open, DEADLINE);
  await expect(dataplane.complete(() => {
    throw new Error("disk full");
  })).rejects.toThrow("disk full");
  await dataplane.abandon();
  expect(dataplane.name).toBe("old");
  expect(old.calls).toEqual(["apply 1"]);
});

test("what cannot be swept is a problem until it can, and is looked at without anybody's asking", async () => {
  const { old, fresh, swept, dataplane, later } = await begun();
  const stop = new AbortController();
  const drift = dataplane.drift(stop.signal)[Symbol.asyncIterator]();
  expect((await drift.next()).value).toBe("old drifts");
  old.sweeps = false;
  const next = drift.next();
  await dataplane.overlap(fresh.open, DEADLINE);
  expect([(await next).value, (await drift.next()).value]).toEqual(["old drifts", "fresh drifts"]);
  const after = drift.next();
  const problem = "what dataplane old left cannot be removed yet: old cannot";
  expect(await dataplane.complete(() => {})).toEqual([problem]);
  expect((await after).value).toBe("what was in force before is not wholly removed");
  expect(await dataplane.resync()).toEqual({ generation: 1, converged: false, messages: 0, problems: [problem] });
  expect([dataplane.isSettled, swept]).toEqual([false, []]);
  // It takes its time, and nobody who applies waits for it before that is over.
  const sweeps = () => old.calls.filter((call) => call === "sweep").length;
  expect(sweeps()).toBe(1);
  later(1_000);
  expect((await dataplane.apply(desiredAt(2))).problems).toEqual([problem]);
  expect(sweeps()).toBe(2);
  old.sweeps = true;
  later(1_999);
  expect((await dataplane.resync()).problems).toEqual([problem]);
  expect(sweeps()).toBe(2);
  later(1);
  expect(await dataplane.resync()).toMatchObject({ converged: true, problems: [] });
  expect([dataplane.isSettled, swept]).toEqual([true, ["old"]]);
  stop.abort();
});

test("logged packets are those of the active one, whichever that is", async () => {
  const { fresh, dataplane } = await begun();
  const stop = new AbortController();
  const logs = dataplane.followLogs(stop.signal)[Symbol.asyncIterator]();
  expect((await logs.next()).value).toEqual({ prefix: "old" } as LoggedPacket);
  const next = logs.next();
  await dataplane.overlap(fresh.open, DEADLINE);
  expect((await next).value).toEqual({ prefix: "old" } as LoggedPacket);
  const last = logs.next();
  await dataplane.complete(() => {});
  expect((await last).value).toEqual({ prefix: "fresh" } as LoggedPacket);
  const end = logs.next();
  stop.abort();
  expect((await end).done).toBe(true);
});

test("nobody sweeps while somebody applies", async () => {
  const { old, fresh, diary, dataplane } = await begun();
  await dataplane.overlap(fresh.open, DEADLINE);
  const { promise, resolve } = Promise.withResolvers<void>();
  old.gate = promise;
  const applied = dataplane.apply(desiredAt(2));
  const completed = dataplane.complete(() => {});
  for (let i = 0; i < 20; i++) await Promise.resolve();
  expect(diary.at(-1)).toBe("old apply 2");
  resolve();
  await Promise.all([applied, completed]);
  expect(diary.slice(-4)).toEqual(["fresh apply 2", "fresh apply 2", "old sweep", "old close"]);
});

test("one that writes where nothing differs does not pass its trial", async () => {
  const restless = new Told("restless", []);
  await tryOut(restless.open, desiredAt(1), DEADLINE);
  restless.resync = async () => ({ generation: 1, converged: true, messages: 3, problems: [] });
  await expect(tryOut(restless.open, desiredAt(1), DEADLINE)).rejects.toThrow(
    "to write 3 messages where nothing differs",
  );
});
