/**
 * IPVS at 10,000 services of two servers each, in the guest: everything from nothing beside `ipvsadm -R` of the same, and one service
 * changed among 1,000 and among 10,000. `npm run test:vm -- --bench ipvs`. Ratios are what counts: an emulated processor is 10 to 20 times slower.
 */
import { writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DesiredState } from "../../../src/model/desired.ts";
import type { ServiceFrontend } from "../../../src/model/services.ts";
import type { Dataplane } from "../../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../../src/sdk/kernel_door.ts";
import { formatAddress } from "../../../src/model/address.ts";
import { systemClock } from "../../../src/host/clock.ts";
import { findFamily, NETLINK_GENERIC } from "../../../src/kernel/netlink/generic.ts";
import { IPVS_FAMILY } from "../../../src/kernel/netlink/schema/ipvs.ts";
import { openNetlink } from "../../../src/kernel/netlink/socket.ts";
import { parseConfig } from "../../../dataplanes/ipvs/config.ts";
import { Renderer } from "../../../dataplanes/ipvs/render.ts";
import { Turns } from "../../../dataplanes/ipvs/turns.ts";
import { VirtualServers } from "../../../dataplanes/ipvs/virtual_servers.ts";
import { namespacePath } from "../../../src/kernel/netns.ts";
import { runIn } from "../../../src/kernel/testdata/tool_fixture.ts";
import { backends, bareNode, frontend, openIpvs, services } from "../service_node.ts";

const SERVICES = 10_000;
const ROUNDS = 3;
const CHANGES = 60;
/** The state applied last. */
let latest: DesiredState | undefined;

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;
const address = (first: string, i: number): string => `${first}.${i >> 8}.${i & 255}`;
const many = (count: number): ServiceFrontend[] =>
  Array.from({ length: count }, (_, i) =>
    frontend(
      `tcp ${address("10.96", i)}:80`,
      backends([`${address("10.0", i)}:8080`, `${address("10.1", i)}:8080`]),
    ));

async function ms(body: () => Promise<unknown>): Promise<number> {
  const startMs = performance.now();
  await body();
  return performance.now() - startMs;
}

async function apply(dataplane: Dataplane, frontends: readonly ServiceFrontend[]): Promise<number> {
  const wanted = latest = services(frontends);
  return await ms(async () => {
    const { converged, problems } = await dataplane.apply(wanted);
    if (!converged) throw new Error(problems.join("; "));
  });
}

const scratch = (name: string): string => join(tmpdir(), `ipvs-bench-${name}`);
const saved = { servers: scratch("servers"), addresses: scratch("addresses"), rules: scratch("rules") };
const all = many(SERVICES);
const time: Record<"ours" | "servers" | "theirs" | "restore", number[]> = {
  ours: [],
  servers: [],
  theirs: [],
  restore: [],
};

/** What there is, as the tools save it. */
function save(namespace: NetworkNamespace): void {
  writeFileSync(saved.servers, runIn(namespace, "ipvsadm", "-S", "-n"));
  writeFileSync(saved.rules, runIn(namespace, "nft", "list", "ruleset"));
  const addresses = all.map(({ address }) => `addr add ${formatAddress(address!)}/32 dev manx-ipvs0\n`);
  writeFileSync(saved.addresses, `link add manx-ipvs0 type dummy\nlink set manx-ipvs0 up\n${addresses.join("")}`);
}

function tool(namespace: NetworkNamespace, input: string | undefined, ...argv: readonly string[]): void {
  const stdin = input === undefined ? "ignore" as const : Bun.file(input);
  const child = Bun.spawnSync(["nsenter", `--net=${namespacePath(namespace)}`, ...argv], { stdin });
  if (!child.success) throw new Error(`${argv[0]}: ${child.stderr}`);
}

/** What is done each `resyncSeconds`, and how long it keeps others waiting. */
async function compareInTurns(servers: VirtualServers): Promise<void> {
  let longestMs = 0, lastMs = performance.now(), isOver = false;
  const others = () => {
    const nowMs = performance.now();
    longestMs = Math.max(longestMs, nowMs - lastMs);
    lastMs = nowMs;
    if (!isOver) setImmediate(others);
  };
  setImmediate(others);
  const wholeMs = await ms(async () => {
    const difference = await servers.difference(new AbortController().signal);
    if (difference !== undefined) throw new Error(difference);
  });
  isOver = true;
  console.log(`all compared: ${wholeMs.toFixed(0)} ms, others wait ${longestMs.toFixed(0)} ms at most`);
}

for (let round = 0; round < ROUNDS; round++) {
  {
    using namespace = bareNode("ours");
    await using dataplane = await openIpvs(namespace);
    time.ours.push(await apply(dataplane, all));
    if (round === 0) {
      save(namespace);
      await using again = await openIpvs(namespace);
      const ms = await apply(again, all);
      console.log(`restart, everything as wanted: ${ms.toFixed(0)} ms`);
    }
  }
  {
    using namespace = bareNode("servers");
    using socket = openNetlink(NETLINK_GENERIC, { namespace });
    const renderer = new Renderer(parseConfig(undefined));
    renderer.update(services(all), []);
    const servers = new VirtualServers(socket, {
      family: findFamily(socket, IPVS_FAMILY)!.id,
      open: () => openNetlink(NETLINK_GENERIC, { namespace }),
      turns: () => new Turns(systemClock),
    });
    time.servers.push(
      await ms(async () => {
        const { problems } = servers.write(renderer.services.keys(), renderer.services, 0);
        if (problems.length > 0) throw new Error(problems.join("; "));
      }),
    );
    if (round === ROUNDS - 1) await compareInTurns(servers);
  }
  {
    using namespace = bareNode("theirs");
    time.restore.push(await ms(async () => tool(namespace, saved.servers, "ipvsadm", "-R")));
    const rest = await ms(async () => {
      tool(namespace, undefined, "ip", "-batch", saved.addresses);
      tool(namespace, undefined, "nft", "-f", saved.rules);
    });
    time.theirs.push(time.restore.at(-1)! + rest);
  }
}
const compare = (what: string, ours: readonly number[], other: string, theirs: readonly number[], aim: string) => {
  const [a, b] = [median(ours), median(theirs)];
  console.log(`${what}: ${a.toFixed(0)} ms; ${other}: ${b.toFixed(0)} ms; ${(a / b).toFixed(2)} × (${aim})`);
};
console.log(`${SERVICES} services × 2 servers from nothing, medians of ${ROUNDS}`);
compare("  servers", time.servers, "ipvsadm -R", time.restore, "aim ≤ 0.50 ×");
compare("  with links, addresses and rules", time.ours, "ipvsadm -R", time.restore, "aim ≤ 0.50 ×");
compare("  the same", time.ours, "ipvsadm -R, ip -batch, nft -f", time.theirs, "no aim");

const p50: Record<number, number> = {};
for (const count of [1_000, SERVICES]) {
  using namespace = bareNode("changes");
  await using dataplane = await openIpvs(namespace);
  const frontends = many(count);
  await apply(dataplane, frontends);
  const times: number[] = [];
  for (let i = 0; i < CHANGES; i++) {
    const at = i * 7 % count;
    frontends[at] = frontend(
      `tcp ${address("10.96", at)}:80`,
      backends([`${address("10.2", i)}:8080`, `${address("10.1", at)}:8080`]),
    );
    times.push(await changed(dataplane, frontends[at]!));
  }
  p50[count] = median(times);
  console.log(`one service changed at ${count}: p50 ${p50[count]!.toFixed(2)} ms`);
}
console.log(`ratio ${(p50[SERVICES]! / p50[1_000]!).toFixed(2)} (aim ≤ 1.50)`);

/** As calc gives it: all but one frontend are the objects that they were. */
async function changed(dataplane: Dataplane, one: ServiceFrontend): Promise<number> {
  const last = latest!;
  const wanted = {
    ...last,
    generation: last.generation + 1,
    services: { ...last.services!, frontends: last.services!.frontends.set(one.key, one) },
  };
  latest = wanted;
  return await ms(async () => {
    const { converged, problems } = await dataplane.apply(wanted);
    if (!converged) throw new Error(problems.join("; "));
  });
}
