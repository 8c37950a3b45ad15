/** Manifests held against their APIs, without a daemon and without a datastore. */
import { keyText } from "../../model/resource.ts";
import { ManxError } from "../../sdk/errors.ts";
import type { Host } from "../../sdk/plugin.ts";
import type { PolicySource } from "../../sdk/policy_source.ts";
import { systemClock } from "../clock.ts";
import type { Slot } from "../config.ts";
import { coreSource } from "./core_source.ts";
import { doubleClaims } from "../interface_claims.ts";
import { type KindRegistry, kindRegistry } from "./kinds.ts";
import { importPlugin, openPlugin, parsePluginConfig, refuseForeignConfig } from "../loader.ts";
import { silentLog } from "../log.ts";
import { readManifest } from "./manifest.ts";
import { overlappingPools } from "./pool_overlap.ts";

export interface FileValidation {
  readonly file: string;
  /** Resources without fault. */
  readonly resources: number;
  /** `FILE: document 2, line 14: spec.x: found …, wanted …`; none = it may be applied. */
  readonly refusals: readonly string[];
  /** What only the daemon can tell. */
  readonly notes: readonly string[];
}

/** All that is wrong, of every file. */
export function validateManifests(
  manifests: readonly { readonly file: string; readonly text: string }[],
  registry: KindRegistry,
): readonly FileValidation[] {
  const files = manifests.map(({ file, text }) => ({ file, ...readManifest(text, file, registry, true) }));
  const there = new Set(files.flatMap(({ entries }) => entries.map(({ key }) => keyText(key))));
  return files.map(({ file, entries, reasons }): FileValidation => {
    const empty = entries.length === 0 && reasons.length === 0;
    const refusals = [
      ...reasons,
      ...(empty ? [`${file}: found no resource, wanted at least one`] : []),
      ...overlappingPools(entries, []),
      ...doubleClaims(entries, []),
    ];
    const notes = entries.flatMap(({ key, resource, where }) =>
      (registry.byKind(key.kind)?.source.needs?.(resource) ?? []).filter((need) => !there.has(keyText(need.key)))
        .map((need) => `${where(need.path)}: ${need.path}: ${JSON.stringify(need.key.name)} has to be there already`)
    );
    return { file, resources: entries.length, refusals, notes };
  });
}

/** A configuration's policy plugins. */
export interface KindSources {
  readonly policy: readonly Slot[];
  /** For messages. */
  readonly file: string;
}

const BUILT_IN: KindSources = {
  policy: [
    { use: "kubernetes", config: undefined, path: "policy[0]" },
    { use: "calico", config: undefined, path: "policy[1]" },
  ],
  file: "the built-in configuration",
};

/**
 * The kinds that a daemon of this configuration would know; by default the built-in ones. `scratchDirectory` may be written to.
 * @throws {ManxError} where a plugin cannot be used, or asks for what only a daemon has
 */
export async function openKinds(scratchDirectory: string, sources: KindSources = BUILT_IN): Promise<KindRegistry> {
  if (sources.policy.some(({ use }) => use.startsWith("/"))) refuseForeignConfig(sources.file);
  const named: { name: string; source: PolicySource }[] = [];
  const signal = new AbortController().signal;
  for (const slot of sources.policy) {
    const plugin = parsePluginConfig(await importPlugin(slot, "policy", scratchDirectory), sources.file);
    named.push({
      name: plugin.plugin.name,
      source: await openPlugin(plugin, daemonlessHost(scratchDirectory), signal),
    });
  }
  return kindRegistry(named, coreSource);
}

/** A dialect is a pure translation: it needs nothing of a node. */
function daemonlessHost(stateDirectory: string): Host {
  const absent = (what: string): never => {
    throw new ManxError("plugin", `found no ${what}, wanted a daemon: there is none while manifests are validated`);
  };
  return {
    node: "validate",
    log: silentLog,
    clock: systemClock,
    stateDirectory,
    get kernel(): Host["kernel"] {
      return absent("kernel");
    },
    get datastore(): Host["datastore"] {
      return absent("datastore");
    },
  };
}
