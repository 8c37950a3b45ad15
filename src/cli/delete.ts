import { type ApplyReply, PATHS, type ResourceOutcome } from "../api/protocol.ts";
import { awaitInForce, outcomeStatus, renderOutcomes, sendManifests } from "./apply.ts";
import { call, CommandError } from "./client.ts";
import { splitKindName } from "./get.ts";
import { print } from "./output.ts";

export interface DeleteOptions {
  readonly kind: string | undefined;
  readonly names: readonly string[];
  readonly file?: readonly string[];
  readonly namespace: string;
  readonly ignoreNotFound?: boolean;
  readonly dryRun?: boolean;
  readonly wait?: number | true;
  readonly socket: string;
}

/** `manx delete`. @returns the exit status */
export async function runDelete(options: DeleteOptions): Promise<number> {
  const { file, kind, socket } = options;
  if (file !== undefined && kind !== undefined) {
    throw new CommandError("delete: found both -f and a kind, wanted one of them", [], 64);
  }
  if (file !== undefined) return await sendManifests(file, PATHS.delete, options);
  if (kind === undefined) {
    throw new CommandError("delete: found neither -f nor a kind, wanted -f FILE or KIND NAME", [], 64);
  }
  if (options.dryRun) throw new CommandError("delete: found --dry-run with a kind, wanted it with -f", [], 64);
  const [kindName, slashName] = splitKindName(kind);
  const names = slashName === undefined ? options.names : [slashName, ...options.names];
  if (names.length === 0) throw new CommandError(`delete ${kindName}: found no name, wanted at least one`, [], 64);
  const results: ResourceOutcome[] = [];
  for (const name of names) {
    const query = new URLSearchParams({ namespace: options.namespace });
    try {
      const path = `${PATHS.resources}/${encodeURIComponent(kindName)}/${encodeURIComponent(name)}?${query}`;
      results.push(...(await call<ApplyReply>(socket, "DELETE", path)).results);
    } catch (error) {
      if (!(error instanceof CommandError) || error.code !== "not-found" || !options.ignoreNotFound) throw error;
    }
  }
  print(renderOutcomes(results, false));
  await awaitInForce(results, options.wait, socket);
  return outcomeStatus(results, options.ignoreNotFound ?? false);
}
