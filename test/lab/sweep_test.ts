/** `manx sweep` of the compiled binary: what is ours goes, what is not is the same byte for byte. */
import { beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";
import iptables from "../../dataplanes/iptables/mod.ts";
import nftables from "../../dataplanes/nftables/mod.ts";
import { createNamespace, inNamespace } from "../../src/kernel/netns.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { NodeDaemon } from "../../src/lab/node_daemon.ts";
import { childEnvironment } from "../../src/lab/self.ts";
import { parseAddress } from "../../src/model/address.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { addForeign, everythingIn, openSubject, world } from "../contract/dataplane.ts";

const TEST_DEADLINE_MS = 30_000;

let binary = "";
beforeAll(async () => void (binary = await buildBinary()), TEST_DEADLINE_MS);

class Place implements Disposable {
  readonly namespace: NetworkNamespace = createNamespace("a node to sweep");
  readonly directory = mkdtempSync("/tmp/manx-sweep-");
  readonly configFile = join(this.directory, "manx.yaml");
  readonly recordFile = join(this.directory, "dataplanes.json");

  constructor() {
    this.configure({});
  }

  configure(more: object): void {
    const config = { stateDirectory: this.directory, api: { socket: join(this.directory, "manx.sock") }, ...more };
    writeFileSync(this.configFile, JSON.stringify(config), { mode: 0o600 });
  }

  /** What daemons of before have left: rules of two dataplanes, routes in both families. */
  async fill(): Promise<void> {
    for (const plugin of [nftables, iptables]) {
      await using dataplane = await openSubject({ plugin }, this.namespace);
      expect((await dataplane.apply(world(3))).converged).toBe(true);
    }
    runIn(this.namespace, "ip", "route", "add", "blackhole", "10.77.0.0/26", "proto", "86");
    runIn(this.namespace, "ip", "-6", "route", "add", "blackhole", "fd77::/122", "proto", "86");
  }

  addPodLinks(): void {
    for (const name of ["mx00000000001", "mxabcdef01234"]) {
      runIn(this.namespace, "ip", "link", "add", name, "type", "veth", "peer", "name", `p${name.slice(-4)}`);
    }
  }

  everything(): string {
    return everythingIn(this.namespace);
  }

  async manx(...args: readonly string[]): Promise<{ status: number; output: string; errors: string }> {
    const child = inNamespace(
      this.namespace,
      () =>
        Bun.spawn({ cmd: [binary, ...args], env: childEnvironment(), stdin: "ignore", stdout: "pipe", stderr: "pipe" }),
    );
    const [output, errors, status] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    return { status, output, errors };
  }

  sweep = (...args: readonly string[]) => this.manx("sweep", "-c", this.configFile, ...args);

  [Symbol.dispose](): void {
    this.namespace[Symbol.dispose]();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

test(
  "everything of ours goes, of dataplanes that the configuration does not name as well; foreign things stay byte for byte",
  async () => {
    using place = new Place();
    addForeign(place.namespace);
    const theirs = place.everything();
    await place.fill();
    place.addPodLinks();
    writeFileSync(
      place.recordFile,
      JSON.stringify({ version: 1, written: [{ use: "nftables" }, { use: "iptables" }] }),
    );
    expect(place.everything()).not.toBe(theirs);

    const swept = await place.sweep("--links");
    expect(swept.status, swept.errors).toBe(0);
    for (const part of ["dataplane nftables", "dataplane iptables", "routing direct", "pod links"]) {
      expect(swept.output).toContain(`${part}: removed\n`);
    }
    expect(place.everything()).toBe(theirs);
    expect(JSON.parse(readFileSync(place.recordFile, "utf8")).written).toEqual([]);

    const again = await place.sweep("-o", "json");
    expect(again.status).toBe(0);
    const { clean, parts } = JSON.parse(again.output);
    expect(clean).toBe(true);
    expect(parts.every(({ messages }: { messages: number }) => messages === 0)).toBe(true);
    expect((await place.sweep()).output).toContain("nothing of manx was there");
    expect(place.everything()).toBe(theirs);
  },
  TEST_DEADLINE_MS,
);

test("pods' links stay unless asked for, and who is left without policy is told of", async () => {
  using place = new Place();
  place.addPodLinks();
  const links = place.everything();
  await place.fill();
  const { status, errors } = await place.sweep();
  expect(status).toBe(0);
  expect(errors).toContain("2 pods are still attached; nothing filters their traffic now");
  expect(place.everything().split("== ip -o link show")[1]).toBe(links.split("== ip -o link show")[1]!);
}, TEST_DEADLINE_MS);

test("a running daemon is not swept under, but for --force, and then it puts back what was removed", async () => {
  using place = new Place();
  runIn(place.namespace, "ip", "link", "set", "lo", "up");
  const directory = join(place.directory, "n");
  await using daemon = await NodeDaemon.start({
    node: "node",
    namespace: place.namespace,
    addresses: [parseAddress("127.0.0.1")],
    families: [4, 6],
    directory,
    datastore: join(place.directory, "datastore.db"),
    dataplane: "nftables",
    self: [binary],
  });
  const before = place.everything();
  expect(before).toContain("table inet manx");
  const refused = await place.manx("sweep", "-c", join(directory, "manx.yaml"));
  expect(refused.status).toBe(1);
  expect(refused.errors).toContain(`found a daemon at ${daemon.socket}, wanted none`);
  // By another configuration, whose socket nobody serves.
  const elsewhere = await place.sweep();
  expect(elsewhere.status).toBe(1);
  expect(elsewhere.errors).toMatch(/found a daemon in this network namespace, process \d+, wanted none/);
  expect(place.everything()).toBe(before);
  const forced = await place.manx("sweep", "-c", join(directory, "manx.yaml"), "--force");
  expect(forced.status).toBe(0);
  expect(forced.errors).toContain("puts back what is removed");
  for (const endMs = performance.now() + 5_000; !place.everything().includes("table inet manx");) {
    if (performance.now() > endMs) throw new Error("the daemon has not put its table back");
    await Bun.sleep(10);
  }
}, TEST_DEADLINE_MS);

test("what cannot be swept is named, the rest is swept, and a configuration that cannot be read says so", async () => {
  using place = new Place();
  await place.fill();
  place.configure({ dataplane: { use: "/nonexistent/plugin.ts" } });
  const { status, output } = await place.sweep();
  expect(status).toBe(1);
  expect(output).toContain("dataplane /nonexistent/plugin.ts: not all of it is removed");
  expect(place.everything()).not.toContain("table inet manx");
  expect(place.everything()).not.toContain("manx-");

  await place.fill();
  writeFileSync(place.recordFile, "{");
  const broken = await place.sweep();
  expect(broken.status).toBe(1);
  expect(broken.output).toContain(`state file ${place.recordFile}: found no JSON`);
  expect(place.everything()).not.toContain("table inet manx");
  expect((await place.manx("sweep", "-c", "/nonexistent.yaml")).errors).toContain("no such file");
}, TEST_DEADLINE_MS);
