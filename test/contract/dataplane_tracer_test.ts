/**
 * `Dataplane.tracer` of every dataplane that has one, in a real kernel: random nodes are brought in force, and what it says of the packets that would tell
 * two dataplanes apart is what policy says. (What the kernel itself does to packets: dataplane_packets.ts and dataplane_fuzz.ts.)
 */
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import iptables from "../../dataplanes/iptables/mod.ts";
import memory from "../../dataplanes/memory/mod.ts";
import nftables from "../../dataplanes/nftables/mod.ts";
import { systemClock } from "../../src/host/clock.ts";
import { silentLog } from "../../src/host/log.ts";
import { compareJudges } from "../../src/host/switch/compare.ts";
import { namespacedKernel } from "../../src/kernel/namespaced_door.ts";
import { createNamespace } from "../../src/kernel/netns.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { random, someList, someSets } from "../../src/model/testdata/random_lists.ts";
import { CLOSED, list, OPEN, state, workload } from "../../src/model/testdata/small_states.ts";
import type { Dataplane } from "../../src/sdk/dataplane.ts";
import { definePlugin, type Host } from "../../src/sdk/plugin.ts";

const NEVER = new AbortController().signal;
const STATES = 12;
const DEADLINE_MS = 60_000;

const PLUGINS = [
  ["nftables", nftables, {}],
  ["iptables legacy", iptables, { variant: "legacy" }],
  ["iptables nft", iptables, { variant: "nft" }],
  ["memory", memory, undefined],
] as const;

class Opened implements AsyncDisposable {
  readonly #open = new AsyncDisposableStack();
  dataplane!: Dataplane;

  static async new(plugin: ReturnType<typeof definePlugin>, config: Readonly<Record<string, unknown>> | undefined) {
    const opened = new Opened();
    const directory = mkdtempSync(join(tmpdir(), "manx-tracer-"));
    opened.#open.defer(() => rmSync(directory, { recursive: true, force: true }));
    const kernel = namespacedKernel(opened.#open.use(createNamespace("tracer")));
    const host: Host = {
      node: "node",
      log: silentLog,
      clock: systemClock,
      kernel,
      stateDirectory: directory,
      get datastore(): never {
        throw new Error("no datastore is needed");
      },
    };
    const settings = config?.variant === undefined ? config : { ...config, lockFile: join(directory, "lock") };
    opened.dataplane = opened.#open.use(await plugin.open(plugin.parseConfig(settings), host, NEVER) as Dataplane);
    return opened;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#open.disposeAsync();
  }
}

function someState(seed: number): DesiredState {
  const r = random(seed * 15_485_863);
  const lists = Array.from({ length: 4 }, () => someList(r, 5)).map(({ tiers, profiles }) => list(tiers, profiles));
  const one = () => r.pick(lists);
  const pod = (id: string, ...addresses: readonly string[]) =>
    workload(id, `mx${id}`, addresses, { ingress: one(), egress: one() });
  const host = { id: "h", interfaces: r.chance(0.3) ? "*" as const : ["eth0"], ingress: one(), egress: OPEN };
  return {
    ...state({
      generation: seed,
      workloads: [pod("a", "10.0.0.1", "fd00::1"), pod("b", "10.0.0.2"), pod("c", "fd00::2")].slice(0, 1 + r.below(3)),
      hostEndpoints: r.chance(0.5) ? [] : [{ ...host, ...r.chance(0.5) ? { forwardIngress: one() } : {} }],
      failsafe: { inbound: [{ protocol: 6, port: 22 }], outbound: [] },
    }),
    sets: someSets(r),
  };
}

for (const [name, plugin, config] of PLUGINS) {
  test(`${name}: its tracer says what policy says, of whatever is in force`, async () => {
    await using opened = await Opened.new(plugin as ReturnType<typeof definePlugin>, config);
    const { dataplane } = opened;
    for (let seed = 1; seed <= STATES; seed++) {
      const desired = someState(seed);
      const { converged, problems } = await dataplane.apply(desired);
      expect(converged, problems.join("; ")).toBe(true);
      const judges = [{ name, judge: await dataplane.tracer!() }, { name: "none", judge: undefined }] as const;
      const { packets } = await compareJudges(desired, judges, systemClock, NEVER).catch((error) => {
        throw new Error(`seed ${seed}: ${error.message}`);
      });
      expect(packets).toBeGreaterThan(20);
    }
  }, DEADLINE_MS);

  test(`${name}: later changes do not change what a tracer says`, async () => {
    await using opened = await Opened.new(plugin as ReturnType<typeof definePlugin>, config);
    const { dataplane } = opened;
    const at = (generation: number, ingress: typeof OPEN) =>
      state({ generation, workloads: [workload("a", "mxa", ["10.0.0.1"], { ingress })] });
    const closed = at(1, CLOSED), open = at(2, OPEN);
    const source = someState(1).workloads.get("a")!.addresses[0]!;
    const path = { packet: { protocol: 253, source, destination: source }, inInterface: "eth0", outInterface: "mxa" };
    await dataplane.apply(closed);
    const before = await dataplane.tracer!();
    expect(before(path)).toBe("deny");
    await dataplane.apply(open);
    expect([before(path), (await dataplane.tracer!())(path)]).toEqual(["deny", "allow"]);
  }, DEADLINE_MS);
}
