/** The plugin contract. An external plugin default-exports a `Plugin`. */
import type { Dataplane, Routing } from "./dataplane.ts";
import type { Datastore } from "./datastore.ts";
import type { Ipam } from "./ipam.ts";
import type { KernelDoor } from "./kernel_door.ts";
import type { PolicySource } from "./policy_source.ts";
import type { PodWiring } from "./wiring.ts";

/** Major: must be equal. Minor: a plugin's may not be newer than the host's. */
export const API_VERSION = "1.0";

export interface Instances {
  datastore: Datastore;
  ipam: Ipam;
  cni: PodWiring;
  policy: PolicySource;
  dataplane: Dataplane;
  routing: Routing;
}
export type PluginKind = keyof Instances;

export interface Log {
  debug(message: string, fields?: Readonly<Record<string, unknown>>): void;
  info(message: string, fields?: Readonly<Record<string, unknown>>): void;
  warn(message: string, fields?: Readonly<Record<string, unknown>>): void;
  error(message: string, fields?: Readonly<Record<string, unknown>>): void;
}

export interface Clock {
  /** Milliseconds, monotonic. */
  nowMs(): number;
  /** Milliseconds since 1970, for timestamps in stored objects. */
  wallMs(): number;
  /** Rejects with the signal's reason when aborted. */
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}

/** What a plugin may touch; nothing else of the house reaches it. */
export interface Host {
  readonly node: string;
  readonly log: Log;
  readonly clock: Clock;
  readonly kernel: KernelDoor;
  /** Open before every other kind; absent while the datastore itself opens. */
  readonly datastore: Datastore;
  /** A directory for the plugin's own files, made with mode 0700. */
  readonly stateDirectory: string;
}

export interface Plugin<K extends PluginKind = PluginKind, C = unknown> {
  /** `major.minor` of the contract it was written for. */
  readonly api: `${number}.${number}`;
  readonly kind: K;
  readonly name: string;
  /** Pure. `raw` is the `config` value of the plugin's slot, undefined where there is none. @throws {ConfigError} naming the key path */
  parseConfig(raw: unknown): C;
  open(config: C, host: Host, signal: AbortSignal): Promise<Instances[K]>;
}

/** Keeps the types of a plugin together: `export default definePlugin({ … })`. */
export const definePlugin = <K extends PluginKind, C>(plugin: Plugin<K, C>): Plugin<K, C> => plugin;
