/** Runs CNI plugins as a container runtime does: one process a call, configuration on stdin, result on stdout. */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export const PLUGIN_DIRECTORY = "/usr/lib/cni";

export interface CniCall {
  readonly command: "ADD" | "DEL" | "STATUS" | "VERSION";
  readonly containerId: string;
  readonly netns: string;
  /** CNI_ARGS. */
  readonly args?: string;
}

/** @throws {Error} with the plugin's own words where it fails */
export async function callPlugin(path: string, call: CniCall, config: unknown): Promise<string> {
  const child = Bun.spawn({
    cmd: [path],
    env: {
      PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
      CNI_PATH: PLUGIN_DIRECTORY,
      CNI_COMMAND: call.command,
      CNI_CONTAINERID: call.containerId,
      CNI_NETNS: call.netns,
      CNI_IFNAME: "eth0",
      ...(call.args === undefined ? {} : { CNI_ARGS: call.args }),
    },
    stdin: new TextEncoder().encode(JSON.stringify(config)),
    stdout: "pipe",
    stderr: "pipe",
  });
  const [output, status] = await Promise.all([new Response(child.stdout).text(), child.exited]);
  if (status !== 0) {
    throw new Error(`${path} ${call.command} failed: ${output}${await new Response(child.stderr).text()}`);
  }
  return output;
}

/** A network as its runtime drives it: one attachment is one ADD through all its plugins. */
export interface Network {
  readonly title: string;
  add(containerId: string, netns: string): Promise<void>;
  del(containerId: string, netns: string): Promise<void>;
}

/** `ptp` with `host-local`, and `firewall` behind them where asked for. Leases are files in `dataDirectory`. */
export function ptpNetwork(options: { readonly firewall: boolean; readonly dataDirectory: string }): Network {
  const ptp = {
    cniVersion: "1.0.0",
    name: "bench",
    type: "ptp",
    ipMasq: false,
    ipam: {
      type: "host-local",
      ranges: [[{ subnet: "10.80.0.0/16" }]],
      routes: [{ dst: "0.0.0.0/0" }],
      dataDir: options.dataDirectory,
    },
  };
  const firewall = { cniVersion: "1.0.0", name: "bench", type: "firewall", backend: "iptables" };
  const results = new Map<string, unknown>();
  return {
    title: options.firewall ? "ptp + host-local + firewall" : "ptp + host-local",
    async add(containerId, netns) {
      const call = { command: "ADD", containerId, netns } as const;
      const result = JSON.parse(await callPlugin(join(PLUGIN_DIRECTORY, "ptp"), call, ptp));
      if (!options.firewall) return;
      results.set(containerId, result);
      await callPlugin(join(PLUGIN_DIRECTORY, "firewall"), call, { ...firewall, prevResult: result });
    },
    async del(containerId, netns) {
      const call = { command: "DEL", containerId, netns } as const;
      if (options.firewall) {
        await callPlugin(join(PLUGIN_DIRECTORY, "firewall"), call, {
          ...firewall,
          prevResult: results.get(containerId),
        });
        results.delete(containerId);
      }
      await callPlugin(join(PLUGIN_DIRECTORY, "ptp"), call, ptp);
    },
  };
}

/** Leases as `host-local` keeps them: a file named by the address, holding the container and the interface. */
export function fillHostLocal(dataDirectory: string, count: number): void {
  const directory = join(dataDirectory, "bench");
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  for (let i = 0; i < count; i++) {
    const address = `10.80.${100 + (i >> 8)}.${i & 255}`;
    writeFileSync(join(directory, address), `held-${i}\r\neth0`);
  }
}

/** The compiled Manx, with policy in force when ADD returns. */
export function manxNetwork(binary: string, socket: string): Network {
  const config = { cniVersion: "1.0.0", name: "bench", type: "manx", socket };
  return {
    title: "manx",
    async add(containerId, netns) {
      await callPlugin(binary, {
        command: "ADD",
        containerId,
        netns,
        args: `K8S_POD_NAMESPACE=default;K8S_POD_NAME=${containerId}`,
      }, config);
    },
    async del(containerId, netns) {
      await callPlugin(binary, { command: "DEL", containerId, netns }, config);
    },
  };
}
