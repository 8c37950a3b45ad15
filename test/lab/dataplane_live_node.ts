/** For tests: a node whose daemon is killed and started as the test likes, with three pods, one policy and every tool to look at its kernel. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { inNamespace } from "../../src/kernel/netns.ts";
import { Sandbox } from "../../src/lab/sandbox.ts";
import { parseWorld } from "../../src/lab/scenario_parser.ts";
import { childEnvironment, type SelfCommand } from "../../src/lab/self.ts";
import type { Address } from "../../src/model/address.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";

const DEADLINE_MS = 15_000;
const LOOK_MS = 10;
export const ALLOWED = 8080, DENIED = 8081;

const WORLD = `
families: [4, 6]
nodes: [ { name: node } ]
pods:
  - { name: client, labels: { app: client } }
  - { name: server, labels: { app: server } }
  - { name: late, labels: { app: client } }
`;
/** Of `server`: from `client` at that port alone. */
export const policy = (port: number) =>
  JSON.stringify({
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name: "server", namespace: "default" },
    spec: {
      podSelector: { matchLabels: { app: "server" } },
      policyTypes: ["Ingress"],
      ingress: [{ from: [{ podSelector: { matchLabels: { app: "client" } } }], ports: [{ protocol: "TCP", port }] }],
    },
  });

export class LiveNode implements AsyncDisposable {
  readonly #open = new AsyncDisposableStack();

  private constructor(readonly sandbox: Sandbox, readonly directory: string, readonly binary: string) {
    this.#open.defer(() => rmSync(directory, { recursive: true, force: true }));
    this.#open.use(sandbox);
  }

  /** Two of its pods are attached: `client` and `server`. `settings`: of the dataplane, besides those of the lab. */
  static async open(
    binary: string,
    dataplane = "nftables",
    settings?: Readonly<Record<string, unknown>>,
  ): Promise<LiveNode> {
    const directory = mkdtempSync("/tmp/manx-switch-");
    try {
      const world = parseWorld("switch.yaml", WORLD);
      const sandbox = await Sandbox.open({ ...world, pods: world.pods.slice(0, 2) }, {
        directory,
        self: [binary],
        dataplane,
      });
      const node = new LiveNode(sandbox, directory, binary);
      await sandbox.change("apply", policy(ALLOWED), "policy.json");
      if (settings !== undefined) await node.#configure(settings);
      return node;
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  async #configure(settings: Readonly<Record<string, unknown>>): Promise<void> {
    await this.kill();
    this.configure(({ dataplane }) => ({ dataplane: { ...dataplane, config: { ...dataplane.config, ...settings } } }));
    await this.start();
  }

  /** Changes the configuration file, for the next start. */
  configure(change: (config: { dataplane: { use: string; config?: object } }) => object): void {
    const config = JSON.parse(readFileSync(this.configFile, "utf8"));
    writeFileSync(this.configFile, JSON.stringify({ ...config, ...change(config) }));
  }

  get namespace(): NetworkNamespace {
    return this.sandbox.nodes.get("node")!.namespace;
  }
  readonly pod = (name: string): NetworkNamespace => this.sandbox.pods.get(`default/${name}`)!.namespace;
  get server(): readonly Address[] {
    return this.sandbox.podAddresses("default/server");
  }
  get configFile(): string {
    return join(this.directory, "n0", "manx.yaml");
  }
  get recordFile(): string {
    return join(this.directory, "n0", "state", "dataplanes.json");
  }
  /** A pod that is not attached yet. */
  readonly late = parseWorld("node.yaml", WORLD).pods[2]!;
  status = async () => (await this.sandbox.statuses())[0]!;

  async manx(...args: readonly string[]): Promise<{ status: number; output: string; errors: string }> {
    const child = inNamespace(this.namespace, () =>
      Bun.spawn({
        cmd: [this.binary, "--socket", join(this.directory, "n0", "manx.sock"), ...args],
        env: childEnvironment(),
        stdin: "ignore",
        stdout: "pipe",
        stderr: "pipe",
      }));
    const [output, errors, status] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    return { status, output, errors };
  }

  run(...cmd: readonly string[]): string {
    const ran = inNamespace(this.namespace, () => Bun.spawnSync({ cmd: [...cmd] }));
    if (!ran.success) throw new Error(`${cmd.join(" ")}: ${ran.stderr.toString()}`);
    return ran.stdout.toString();
  }

  /** Which dataplanes have something in the kernel. */
  there(): readonly string[] {
    const tables = this.run("nft", "list", "tables").includes("table inet manx") ? ["nftables"] : [];
    // Legacy iptables, and the tables of nf_tables that iptables-nft shows.
    const rules = ["iptables", "ip6tables"].map((tool) => this.run(`${tool}-legacy-save`)).join("") +
      this.run("nft", "list", "chains");
    return rules.includes("manx-") || this.run("ipset", "list", "-n").includes("manx-")
      ? [...tables, "iptables"]
      : tables;
  }

  /** kill -9, and another daemon; returns when it has everything in force. */
  async restart(): Promise<void> {
    await this.kill();
    await this.start();
  }

  async kill(): Promise<void> {
    const { pid } = await this.status();
    process.kill(pid, "SIGKILL");
    await until("the daemon is gone", () => !existsSync(`/proc/${pid}`));
  }

  /** Returns when it has everything in force. `self`, `environment`: another program than the binary, and variables of its own. */
  async start(self?: SelfCommand, environment?: Readonly<Record<string, string>>): Promise<void> {
    const daemon = this.spawn(self, environment);
    await until("the restarted daemon has everything in force", async () => {
      const status = await this.status().catch(() => undefined);
      return status?.pid === daemon.pid && status.dataplane.converged && status.generation.applied >= 1 &&
        status.generation.applied === status.generation.wanted;
    });
  }

  /** As `start`, and does not wait for it. */
  spawn(
    self: SelfCommand = [this.binary],
    environment: Readonly<Record<string, string>> = {},
  ): { readonly pid: number } {
    const daemon = inNamespace(this.namespace, () =>
      Bun.spawn({
        cmd: [...self, "daemon", "--config", this.configFile, "--die-with-parent"],
        detached: true,
        env: childEnvironment(environment),
        stdin: "ignore",
        stdout: "ignore",
        stderr: "ignore",
      }));
    this.#open.defer(async () => {
      daemon.kill("SIGTERM");
      await daemon.exited;
    });
    return daemon;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#open.disposeAsync();
  }
}

export async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (const endMs = performance.now() + DEADLINE_MS; !await holds();) {
    if (performance.now() > endMs) throw new Error(`after ${DEADLINE_MS} ms it is still not so that ${what}`);
    await Bun.sleep(LOOK_MS);
  }
}
