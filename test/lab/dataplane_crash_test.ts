/**
 * `manx dataplane switch` and `kill -9` at each of its writes, right before it and right after: policy holds all the time, also while nobody is
 * there, and the next daemon is left with one dataplane, by whatever was recorded, and nothing of the other.
 */
import { beforeAll, expect, test } from "bun:test";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";
import { FAULTS, type Faults, FAULTY_DAEMON } from "./dataplane_faulty_daemon.ts";
import { DENIED, LiveNode, policy, until } from "./dataplane_live_node.ts";
import { Forbidden, Transfer } from "./dataplane_traffic.ts";

const TEST_DEADLINE_MS = 240_000;
/** Of either direction; each is a daemon's life. */
const STEPS_MIN = 10;
const UNHARMED = "before any harm";

let binary = "";
beforeAll(async () => void (binary = await buildBinary()), TEST_DEADLINE_MS);

class MortalNode {
  readonly #armed: string;

  constructor(readonly node: LiveNode) {
    this.#armed = join(node.directory, "armed");
  }

  /** Another daemon, which is to die so. */
  async restart(faults: Omit<Faults, "armed"> = {}): Promise<void> {
    rmSync(this.#armed, { force: true });
    rmSync(`${this.#armed}.count`, { force: true });
    await this.node.start(
      [process.execPath, "--no-install", FAULTY_DAEMON],
      { [FAULTS]: JSON.stringify({ ...faults, armed: this.#armed }) },
    );
  }

  async kill(): Promise<void> {
    const { pid } = await this.node.status();
    process.kill(pid, "SIGKILL");
    await until("the daemon is gone", () => !existsSync(`/proc/${pid}`));
  }

  /** With the fault that the daemon has; its pid before. */
  async switchArmed(...to: readonly string[]): Promise<{ readonly pid: number; readonly status: number }> {
    const { pid } = await this.node.status();
    writeFileSync(this.#armed, "");
    const { status } = await this.node.manx("dataplane", "switch", ...to);
    return { pid, status };
  }

  get writes(): number {
    return Number(readFileSync(`${this.#armed}.count`, "utf8"));
  }

  /** One dataplane in the kernel, in use and in the record. */
  async settled(): Promise<string> {
    const { node } = this;
    const { dataplane: { use } } = await node.status();
    await until(`${use} alone is there`, () => node.there().join() === use);
    await until(`${use} alone is recorded`, () => {
      const { written } = JSON.parse(readFileSync(node.recordFile, "utf8"));
      return written.length === 1 && written[0].use === use;
    });
    expect((await node.status()).problems).toEqual([]);
    expect(await node.manx("dataplane", "diff")).toEqual({ status: 0, output: "", errors: "" });
    return use;
  }
}

const SWITCHES = [
  ["nftables", "iptables", { variant: "legacy" }],
  ["iptables", "nftables", { variant: "legacy" }],
  ["nftables", "iptables", { variant: "nft" }],
] as const;
for (const [from, to, settings] of SWITCHES) {
  test(`killed at each write of a switch from ${from} to ${to}, iptables ${settings.variant}`, async () => {
    await using node = await LiveNode.open(binary, from, from === "iptables" ? settings : undefined);
    const file = join(node.directory, "settings.yaml");
    // The lock of the machine is not for tests.
    writeFileSync(file, JSON.stringify({ ...settings, lockFile: join(node.directory, "lock") }));
    const more = to === "iptables" ? ["-c", file] : [];
    const mortal = new MortalNode(node);
    using stack = new DisposableStack();
    const transfers = node.server.map((address) => stack.use(new Transfer(node, address)));
    const forbidden = node.server.map((address) => stack.use(new Forbidden(node, address)));
    const leaks: string[] = [];
    let at = UNHARMED, isOver = false;
    const traffic = (async () => {
      while (!isOver) {
        for (const transfer of transfers) transfer.pump();
        for (const one of forbidden) leaks.push(...one.pump().map((leak) => `${at}: ${leak}`));
        await new Promise((resolve) => setImmediate(resolve));
      }
    })();
    traffic.catch(() => {});
    const ended: string[] = [];
    try {
      await mortal.kill();
      await mortal.restart();
      expect((await mortal.switchArmed(to, ...more)).status).toBe(0);
      const steps = mortal.writes;
      expect(steps).toBeGreaterThanOrEqual(STEPS_MIN);
      expect(await mortal.settled()).toBe(to);
      const deaths: Omit<Faults, "armed">[] = Array.from(
        { length: steps },
        (_, i) => ({ dieAt: i + 1, dieWhen: "before" }),
      );
      deaths.push({ dieAt: steps, dieWhen: "after" });
      await mortal.kill();
      // Each daemon mends what the one before it left, and then dies in its own way.
      for (const death of deaths) {
        await mortal.restart(death);
        const found = await mortal.settled();
        expect(leaks).toEqual([]);
        if (at !== UNHARMED) ended.push(found);
        at = `${death.dieWhen} write ${death.dieAt} of ${steps}`;
        if (found !== from) {
          expect((await node.manx("dataplane", "switch", from)).status).toBe(0);
          await mortal.settled();
        }
        const { pid, status } = await mortal.switchArmed(to, ...more);
        expect(status, at).toBe(1);
        await until(`it has died ${at}`, () => !existsSync(`/proc/${pid}`));
        // Half of a record that was being written.
        writeFileSync(`${node.recordFile}.new`, '{ "version": 1, "wri');
      }
      await mortal.restart();
      ended.push(await mortal.settled());
      expect(leaks).toEqual([]);
    } finally {
      isOver = true;
    }
    await traffic;
    // It turns once, where the switch is recorded: from then on the new one is right.
    expect(ended).toEqual(ended.toSorted((a, b) => Number(a === to) - Number(b === to)));
    expect([ended[0], ended.at(-1)]).toEqual([from, to]);
    transfers.forEach((transfer) => expect(transfer.bytes).toBeGreaterThan(0));
    await node.sandbox.change("apply", policy(DENIED), "policy.json");
    for (const one of forbidden) await until("what is allowed is seen", () => one.pump().length > 0);
  }, TEST_DEADLINE_MS);
}
