/** A real daemon of the product in a node's namespace, and its API. */
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Address, formatAddress } from "../model/address.ts";
import { inNamespace } from "../kernel/netns.ts";
import {
  type ApplyReply,
  PATHS,
  type ResourceList,
  type ResourceOutcome,
  type StatusReply,
  type WaitKey,
  type WaitReply,
} from "../api/protocol.ts";
import type { ErrorReply } from "../sdk/attach.ts";
import { ManxError } from "../sdk/errors.ts";
import type { NetworkNamespace } from "../sdk/kernel_door.ts";
import { POOLS } from "./address_plan.ts";
import { dataplaneConfig, isForServices } from "./dataplanes.ts";
import { childEnvironment, type SelfCommand } from "./self.ts";

const READY_DEADLINE_MS = 20_000;
const READY_LOOK_MS = 10;
const STOP_DEADLINE_MS = 3_000;
const REQUEST_DEADLINE_MS = 30_000;
/** How long a change may take to be in force everywhere. */
const IN_FORCE_DEADLINE_MS = 20_000;
/** Of standard error, kept for messages. */
const STDERR_KEPT_CHARACTERS = 8_000;

export interface NodeDaemonOptions {
  readonly node: string;
  readonly namespace: NetworkNamespace;
  readonly addresses: readonly Address[];
  readonly families: readonly (4 | 6)[];
  /** A directory of the daemon's own; made here. */
  readonly directory: string;
  /** The datastore file that all nodes share. */
  readonly datastore: string;
  /** As `--dataplane` has it. */
  readonly dataplane: string;
  /** Whether it forwards for services. */
  readonly services?: boolean;
  readonly self: SelfCommand;
}

export class NodeDaemon implements AsyncDisposable {
  readonly node: string;
  readonly socket: string;
  readonly #process: Bun.Subprocess<"ignore", "ignore", "pipe">;
  readonly #stderrEnded: Promise<void>;
  #stderr = "";

  private constructor(options: NodeDaemonOptions, config: string) {
    this.node = options.node;
    this.socket = join(options.directory, "manx.sock");
    const cmd = [...options.self, "daemon", "--config", config, "--die-with-parent"];
    // Synchronous: the child is in whichever namespace this thread is in while it is made.
    this.#process = inNamespace(
      options.namespace,
      () =>
        Bun.spawn({
          cmd,
          cwd: options.directory,
          // A terminal's Ctrl-C is for us: we end the daemons, after what they are in the middle of.
          detached: true,
          env: childEnvironment(),
          stdin: "ignore",
          stdout: "ignore",
          stderr: "pipe",
        }),
    );
    this.#stderrEnded = this.#keepStderr();
  }

  /** Starts one and returns when it answers and has applied its first generation. @throws {ManxError} with its last words */
  static async start(options: NodeDaemonOptions, signal?: AbortSignal): Promise<NodeDaemon> {
    mkdirSync(options.directory, { recursive: true, mode: 0o700 });
    const config = join(options.directory, "manx.yaml");
    // JSON is YAML.
    writeFileSync(config, JSON.stringify(daemonConfig(options), null, 2), { mode: 0o600 });
    const daemon = new NodeDaemon(options, config);
    try {
      await daemon.#ready(signal);
      return daemon;
    } catch (error) {
      await daemon[Symbol.asyncDispose]();
      throw error;
    }
  }

  async status(): Promise<StatusReply> {
    return await this.#call("GET", PATHS.status) as StatusReply;
  }

  /** `file` and the lines of `text` are named in errors. @throws {ManxError} where it is refused: nothing is stored then */
  async apply(verb: "apply" | "delete", text: string, file: string): Promise<readonly ResourceOutcome[]> {
    const reply = await this.#call("POST", PATHS[verb], { text, file }) as ApplyReply;
    return reply.results;
  }

  /** Returns when `keys` are in force on this node, with the milliseconds it waited. @throws {ManxError} code `deadline` */
  async wait(keys: readonly WaitKey[]): Promise<number> {
    const reply = await this.#call("POST", PATHS.wait, { keys, deadlineMs: IN_FORCE_DEADLINE_MS }) as WaitReply;
    return reply.waitedMs;
  }

  async list(plural: string): Promise<readonly WaitKey[]> {
    const path = `${PATHS.resources}/${plural}?all=true`;
    const { groups } = await this.#call("GET", path) as ResourceList;
    return groups.flatMap(({ kind, items }) =>
      items.map(({ metadata }) => ({
        kind: kind.kind,
        namespace: metadata.namespace ?? "",
        name: metadata.name,
        revision: metadata.resourceVersion ?? "",
      }))
    );
  }

  async #call(method: "GET" | "POST", path: string, body?: unknown): Promise<unknown> {
    const what = `${method} ${path} of the daemon of ${this.node}`;
    let response: Response, text: string;
    try {
      response = await fetch(`http://manx${path}`, {
        unix: this.socket,
        method,
        headers: { "content-type": "application/json", "accept-encoding": "identity" },
        keepalive: false,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: AbortSignal.timeout(REQUEST_DEADLINE_MS),
      });
      text = await response.text();
    } catch (cause) {
      throw new ManxError(
        "unavailable",
        `${what}: ${this.#process.exitCode === null ? "no answer" : "it has ended"}${this.#lastWords()}`,
        { cause },
      );
    }
    let answer: unknown;
    try {
      answer = JSON.parse(text === "" ? "null" : text);
    } catch (cause) {
      throw new ManxError("unavailable", `${what}: an answer that is not JSON`, { cause });
    }
    if (response.ok) return answer;
    const { error } = answer as ErrorReply;
    throw new ManxError(
      error.code,
      error.details === undefined || error.details.length === 0 ? error.message : error.details.join("\n"),
    );
  }

  async #ready(signal?: AbortSignal): Promise<void> {
    const deadlineMs = performance.now() + READY_DEADLINE_MS;
    for (;;) {
      signal?.throwIfAborted();
      if (this.#process.exitCode !== null || this.#process.signalCode !== null) {
        await this.#stderrEnded;
        const how = this.#process.signalCode ?? `exit status ${this.#process.exitCode}`;
        throw new ManxError(
          "unavailable",
          `the daemon of ${this.node} ended at its start (${how})${this.#lastWords()}`,
        );
      }
      const status = existsSync(this.socket) ? await this.status().catch(() => undefined) : undefined;
      if (status?.datastore.inSync === true && status.dataplane.converged && status.generation.applied >= 1) return;
      if (performance.now() > deadlineMs) {
        const found = status === undefined
          ? "no answer"
          : `in sync: ${status.datastore.inSync}, converged: ${status.dataplane.converged}`;
        throw new ManxError(
          "deadline",
          `the daemon of ${this.node} is not ready after ${READY_DEADLINE_MS / 1_000} s (${found})${this.#lastWords()}`,
        );
      }
      await Bun.sleep(READY_LOOK_MS);
    }
  }

  async #keepStderr(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.#process.stderr) {
      this.#stderr = (this.#stderr + decoder.decode(chunk, { stream: true })).slice(-STDERR_KEPT_CHARACTERS);
    }
  }

  #lastWords(): string {
    const words = this.#stderr.trim();
    return words === "" ? "; it said nothing" : `; it said:\n${words}`;
  }

  /** SIGTERM, then SIGKILL. Repeatable. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGTERM");
    const patience = setTimeout(() => this.#process.kill("SIGKILL"), STOP_DEADLINE_MS);
    await this.#process.exited;
    clearTimeout(patience);
  }
}

function daemonConfig(options: NodeDaemonOptions): unknown {
  const pools = POOLS.filter(({ family }) => options.families.includes(family));
  return {
    node: options.node,
    addresses: options.addresses.map(formatAddress),
    stateDirectory: join(options.directory, "state"),
    datastore: { use: "sqlite", config: { path: options.datastore } },
    ipam: {
      use: "block",
      config: { pools: pools.map(({ family, text }) => ({ name: `lab-ipv${family}`, cidr: text })) },
    },
    cni: { use: "veth" },
    policy: [{ use: "kubernetes" }, { use: "calico" }],
    dataplane: dataplaneConfig(options.dataplane, options.directory),
    routing: { use: "direct" },
    ...options.services || isForServices(options.dataplane) ? { services: { enabled: true } } : {},
    api: { socket: join(options.directory, "manx.sock") },
    // A daemon of a lab attaches a handful of pods in its life.
    rehearsal: false,
  };
}
