/** For tests: the real `iptables`, in a namespace, with a lock file of the test's own. */
import { mkdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Family } from "../../../src/model/address.ts";
import { namespacePath } from "../../../src/kernel/netns.ts";
import type { NetworkNamespace } from "../../../src/sdk/kernel_door.ts";

export type Variant = "legacy" | "nft";

export const toolName = (family: Family, variant: Variant = "legacy"): string =>
  `ip${family === 6 ? "6" : ""}tables-${variant}`;

const LOCKS = join(tmpdir(), `manx-xtables-${process.pid}`);
/** For `afterAll` of whoever opens a dataplane. */
export const removeLocks = (): void => rmSync(LOCKS, { recursive: true, force: true });

/** Not the machine's: other tests run beside this one. */
export function lockFileOf(namespace: NetworkNamespace): string {
  mkdirSync(LOCKS, { recursive: true });
  return join(LOCKS, `${namespace.fd}.lock`);
}

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export function tool(namespace: NetworkNamespace, argv: readonly string[], input?: string): Outcome {
  const child = Bun.spawnSync(["nsenter", `--net=${namespacePath(namespace)}`, ...argv], {
    env: { ...process.env, XTABLES_LOCKFILE: lockFileOf(namespace) },
    stdin: input === undefined ? null : new TextEncoder().encode(input),
  });
  return { code: child.exitCode, stdout: child.stdout.toString(), stderr: child.stderr.toString() };
}

function ran(namespace: NetworkNamespace, argv: readonly string[], input?: string): string {
  const { code, stdout, stderr } = tool(namespace, argv, input);
  if (code !== 0) throw new Error(`${argv.join(" ")}: ${stderr.trim()}`);
  return stdout;
}

/** Without comments and counters of chains, which count on. */
export const save = (
  namespace: NetworkNamespace,
  family: Family,
  { counters = false, variant = "legacy" }: { counters?: boolean; variant?: Variant } = {},
): string =>
  ran(namespace, [`${toolName(family, variant)}-save`, ...counters ? ["-c"] : []]).split("\n")
    .filter((line) => !line.startsWith("#"))
    .map((line) => counters ? line : line.replace(/ \[\d+:\d+\]$/, " [0:0]")).join("\n");

export const restore = (
  namespace: NetworkNamespace,
  family: Family,
  text: string,
  flags: readonly string[] = [],
  variant: Variant = "legacy",
): string => ran(namespace, [`${toolName(family, variant)}-restore`, "-w", ...flags], text);

export const iptables = (namespace: NetworkNamespace, family: Family, ...args: readonly string[]): string =>
  iptablesOf("legacy", namespace, family, ...args);

export const iptablesOf = (
  variant: Variant,
  namespace: NetworkNamespace,
  family: Family,
  ...args: readonly string[]
): string => ran(namespace, [toolName(family, variant), "-w", ...args]);
