/** Leases with their endpoints in a stopped daemon's database, made by the code that the daemon itself uses. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import sqlite from "../../plugins/datastore/sqlite/mod.ts";
import block from "../../plugins/ipam/block/mod.ts";
import { endpointResource, planAttachment } from "../../src/host/endpoint.ts";
import { benchHost } from "./host.ts";

const AT_ONCE = 500;

/** `count` attached pods of the node that `startDaemon` runs, addresses from its pool; their links are not made. */
export async function fillManx(stateDirectory: string, count: number): Promise<void> {
  // Where the daemon gives each plugin its directory.
  const own = join(stateDirectory, "datastore", "sqlite");
  mkdirSync(own, { recursive: true, mode: 0o700 });
  const { signal } = new AbortController();
  await using datastore = await sqlite.open(sqlite.parseConfig(undefined), benchHost("bench", own), signal);
  const config = block.parseConfig({ pools: [{ name: "bench", cidr: "10.90.0.0/16" }] });
  await using ipam = await block.open(config, benchHost("bench", stateDirectory, datastore), signal);
  const attach = (index: number) => {
    const containerId = `held-${index}`;
    const args = { K8S_POD_NAMESPACE: "default", K8S_POD_NAME: containerId };
    const plan = planAttachment(
      { network: "bench", containerId, ifName: "eth0", netns: "", args, labels: {} },
      "bench",
    );
    return ipam.acquire({
      handle: plan.handle,
      node: "bench",
      families: [4],
      attributes: {},
      also: ({ addresses }) => [{ key: plan.key, value: endpointResource(plan, addresses, "bench", Date.now()) }],
    });
  };
  for (let from = 0; from < count; from += AT_ONCE) {
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, count - from) }, (_, i) => attach(from + i)));
  }
}
