/**
 * Removes what manx has in the kernel of this network namespace, without a daemon: that of every built-in dataplane and routing, and of those that
 * the configuration or an earlier daemon names. Everything is recognised by its name or number (ARCHITECTURE.md, invariant 4); the rest is not
 * touched.
 */
import { delLink, getLinks, parseLink } from "../../kernel/netlink/schema/rt_link.ts";
import type { Report } from "../../sdk/dataplane.ts";
import { explainError, ManxError } from "../../sdk/errors.ts";
import type { KernelDoor } from "../../sdk/kernel_door.ts";
import type { Host, Log } from "../../sdk/plugin.ts";
import { BUILTIN } from "../builtin.ts";
import { systemClock } from "../clock.ts";
import type { Config, Slot } from "../config.ts";
import { DataplaneRecord } from "./record.ts";
import { importPlugin, openPlugin, parsePluginConfig } from "../loader.ts";

const NETLINK_ROUTE = 0;
/** Of each part. */
const DEADLINE_MS = 60_000;
/** The node's ends of pods' links. */
const POD_LINK = /^mx[0-9a-f]{11}$/;

export interface SweptPart {
  /** `dataplane nftables`, `routing direct`, `pod links`. */
  readonly name: string;
  /** Removals that the kernel was asked for; 0: there was nothing. */
  readonly messages: number;
  /** What is still there, a line each. */
  readonly problems: readonly string[];
  /** Why it could not be looked at, where nothing says that it was ever used: most likely the kernel has no such thing. */
  readonly unavailable?: string;
}

export interface SweepOptions {
  readonly kernel: KernelDoor;
  readonly log: Log;
  /** Pods' links as well: pods that still run have no network then. */
  readonly links: boolean;
}

/** A part that fails does not keep the others from being swept. Never rejects. */
export async function sweepNode(config: Config, options: SweepOptions): Promise<readonly SweptPart[]> {
  const parts: SweptPart[] = [];
  const noting = <T>(body: () => T): T | undefined => {
    try {
      return body();
    } catch (error) {
      parts.push({ name: "record of dataplanes", messages: 0, problems: [explainError(error)] });
      return undefined;
    }
  };
  const record = noting(() => DataplaneRecord.read(config.stateDirectory));
  for (const slot of slotsOf("dataplane", [...record?.written ?? [], ...config.dataplanes])) {
    const part = await sweepPlugin("dataplane", slot, config, options);
    parts.push(part);
    if (part.problems.length === 0 && part.unavailable === undefined) noting(() => record?.swept(slot.use));
  }
  for (const slot of slotsOf("routing", [config.routing])) {
    parts.push(await sweepPlugin("routing", slot, config, options));
  }
  if (options.links) parts.push(sweepLinks(options.kernel));
  return parts;
}

/** Names of pods' links in this network namespace. @throws {KernelError} */
export function podLinks(kernel: KernelDoor): readonly string[] {
  using socket = kernel.netlink(NETLINK_ROUTE);
  return socket.dump("list links", getLinks({ kind: "veth" })).map((message) => parseLink(message).name)
    .filter((name) => POD_LINK.test(name)).sort();
}

interface NamedSlot extends Slot {
  /** Somebody has named it: it cannot be missing. */
  readonly isNamed: boolean;
}

/** Built-in ones as the last of `slots` that names them says, else without configuration of their own; then the others. */
function slotsOf(
  kind: "dataplane" | "routing",
  named: readonly { readonly use: string; readonly config?: unknown; readonly sha256?: string }[],
): readonly NamedSlot[] {
  const slots = new Map<string, NamedSlot>();
  for (const use of Object.keys(BUILTIN[kind])) slots.set(use, { use, config: undefined, path: kind, isNamed: false });
  for (const slot of named) slots.set(slot.use, { ...slot, config: slot.config, path: kind, isNamed: true });
  return [...slots.values()];
}

async function sweepPlugin(
  kind: "dataplane" | "routing",
  slot: NamedSlot,
  config: Config,
  { kernel, log }: SweepOptions,
): Promise<SweptPart> {
  const name = `${kind} ${slot.use}`;
  const signal = AbortSignal.timeout(DEADLINE_MS);
  const stateDirectory = `${config.stateDirectory}/${kind}/${slot.use.replaceAll("/", "_")}`;
  const host: Host = {
    node: config.node,
    log,
    clock: systemClock,
    kernel,
    get datastore(): never {
      throw new ManxError("plugin", `${name}: there is no datastore while the node is swept`);
    },
    stateDirectory,
  };
  let instance;
  try {
    const imported = await importPlugin(slot, kind, `${config.stateDirectory}/loading`);
    instance = await openPlugin(parsePluginConfig(imported, config.file), host, signal);
  } catch (error) {
    if (!slot.isNamed) return { name, messages: 0, problems: [], unavailable: explainError(error) };
    return { name, messages: 0, problems: [explainError(error)] };
  }
  try {
    const { converged, messages, problems }: Report = await instance.sweep(signal);
    return { name, messages, problems: converged || problems.length > 0 ? problems : ["not all of it is removed"] };
  } catch (error) {
    return { name, messages: 0, problems: [explainError(error)] };
  } finally {
    await instance[Symbol.asyncDispose]();
  }
}

function sweepLinks(kernel: KernelDoor): SweptPart {
  const name = "pod links";
  try {
    const links = podLinks(kernel);
    if (links.length === 0) return { name, messages: 0, problems: [] };
    using socket = kernel.netlink(NETLINK_ROUTE);
    const errors = socket.attempt("remove pod links", links.map((link) => delLink({ name: link })));
    const problems = errors.flatMap((error, i) =>
      error === undefined ? [] : [`remove ${links[i]}: ${explainError(error)}`]
    );
    return { name, messages: links.length - problems.length, problems };
  } catch (error) {
    return { name, messages: 0, problems: [explainError(error)] };
  }
}
