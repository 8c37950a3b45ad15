import { type ApplyReply, type ManifestRequest, PATHS, type ResourceOutcome, type WaitReply } from "../api/protocol.ts";
import { call, CommandError } from "./client.ts";
import { readManifests } from "./manifests.ts";
import { createPaint, hasColour, print } from "./output.ts";

/** Seconds that `--wait` means without a number. */
const WAIT_DEFAULT_SECONDS = 30;

export const waitMs = (wait: number | true | undefined): number =>
  wait === undefined ? 0 : (wait === true ? WAIT_DEFAULT_SECONDS : wait) * 1000;

/** `manx apply`. @returns the exit status */
export async function runApply(
  options: { file: readonly string[]; dryRun?: boolean; wait?: number | true; socket: string },
): Promise<number> {
  return await sendManifests(options.file, PATHS.apply, options);
}

/** Several files are tried dry first, so that a fault in the last one keeps the first one out as well. */
export async function sendManifests(
  files: readonly string[],
  path: typeof PATHS.apply | typeof PATHS.delete,
  options: { dryRun?: boolean; wait?: number | true; ignoreNotFound?: boolean; socket: string },
): Promise<number> {
  const manifests = readManifests(files);
  const send = (manifest: { file: string; text: string }, dryRun: boolean) =>
    call<ApplyReply>(options.socket, "POST", path, { ...manifest, dryRun } satisfies ManifestRequest);
  if (manifests.length > 1 && !options.dryRun) { for (const manifest of manifests) await send(manifest, true); }
  const results: ResourceOutcome[] = [];
  for (const manifest of manifests) {
    const reply = await send(manifest, options.dryRun ?? false);
    results.push(...reply.results);
    print(renderOutcomes(reply.results, options.dryRun ?? false));
  }
  await awaitInForce(results, options.dryRun ? undefined : options.wait, options.socket);
  return outcomeStatus(results, options.ignoreNotFound ?? path === PATHS.apply);
}

/** @throws {CommandError} where it is not in force in time */
export async function awaitInForce(
  results: readonly ResourceOutcome[],
  wait: number | true | undefined,
  socket: string,
): Promise<void> {
  const deadlineMs = waitMs(wait);
  if (deadlineMs === 0 || results.length === 0) return;
  try {
    const { waitedMs } = await call<WaitReply>(socket, "POST", PATHS.wait, { keys: results, deadlineMs });
    print(`in force after ${waitedMs} ms`);
  } catch (error) {
    if (error instanceof CommandError && error.code === "deadline") {
      throw new CommandError(`stored, but not in force: ${error.message}`);
    }
    throw error;
  }
}

export const outcomeStatus = (results: readonly ResourceOutcome[], ignoreNotFound: boolean): number =>
  !ignoreNotFound && results.some((result) => result.outcome === "absent") ? 1 : 0;

/** `networkpolicy.networking.k8s.io/web created`. */
export function renderOutcomes(results: readonly ResourceOutcome[], dryRun: boolean): string {
  const paint = createPaint(hasColour());
  return results.map(({ kind, namespace, name, outcome }) => {
    const [head, ...group] = kind.split(".");
    const title = `${[head!.toLowerCase(), ...group].join(".")}/${name}`;
    const place = namespace === "" || namespace === "default" ? "" : ` in ${namespace}`;
    const word = outcome === "absent"
      ? paint.bad("not found")
      : outcome === "unchanged"
      ? paint.dim(outcome)
      : paint.good(outcome);
    return `${title}${place} ${word}${dryRun ? " (dry run)" : ""}\n`;
  }).join("");
}
