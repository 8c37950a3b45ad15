/** The API on its unix socket. */
import { chmodSync, lstatSync, mkdirSync, unlinkSync } from "node:fs";
import { dirname } from "node:path";
import type { HostView } from "../host/view.ts";
import { ManxError } from "../sdk/errors.ts";
import type { Log } from "../sdk/plugin.ts";
import { createRoutes } from "./routes.ts";
import { isServed } from "./socket_probe.ts";

/** A manifest is read whole. */
const BODY_MAX_BYTES = 64 * 1024 * 1024;
/** Requests under way at the end may take as long. */
const STOP_DEADLINE_MS = 5_000;

/** @throws {ManxError} code `socket`, where another daemon answers there or the path holds something else */
export async function serveApi(view: HostView, socket: string, log: Log): Promise<AsyncDisposable> {
  await claimSocket(socket);
  const routes = createRoutes(view, log);
  // Only root may connect, from the first moment on.
  const mask = process.umask(0o177);
  let server: Bun.Server<undefined>;
  try {
    // The types know no idleTimeout for unix sockets; without it a wait of more than ten seconds is cut off.
    const options = {
      unix: socket,
      idleTimeout: 0,
      maxRequestBodySize: BODY_MAX_BYTES,
      fetch: (request: Request) => routes.fetch(request),
    };
    server = Bun.serve(options as unknown as Bun.Serve.Options<undefined>);
    chmodSync(socket, 0o600);
  } catch (cause) {
    throw new ManxError(
      "socket",
      `API socket ${socket}: cannot listen (${(cause as NodeJS.ErrnoException).code ?? (cause as Error).message})`,
      { cause },
    );
  } finally {
    process.umask(mask);
  }
  const own = lstatSync(socket).ino;
  return {
    async [Symbol.asyncDispose]() {
      let timer: ReturnType<typeof setTimeout> | undefined;
      const late = new Promise<void>((resolve) => timer = setTimeout(resolve, STOP_DEADLINE_MS));
      const isIdle = server.pendingRequests === 0;
      if (!isIdle) await Promise.race([server.stop(false), late]);
      clearTimeout(timer);
      await Promise.race([server.stop(true), new Promise((resolve) => setImmediate(resolve))]);
      try {
        if (lstatSync(socket).ino === own) unlinkSync(socket);
      } catch {
        // Somebody has removed it already.
      }
    },
  };
}

/** Leaves nothing at `path`, or refuses. */
async function claimSocket(path: string): Promise<void> {
  const refuse = (found: string, cause?: unknown) =>
    new ManxError(
      "socket",
      `API socket ${path}: found ${found}, wanted a free path (api.socket in the configuration)`,
      { cause },
    );
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
  } catch (cause) {
    throw refuse(`that its directory cannot be made (${(cause as NodeJS.ErrnoException).code})`);
  }
  let stats;
  try {
    stats = lstatSync(path);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return;
    throw refuse(`that it cannot be looked at (${(cause as NodeJS.ErrnoException).code})`);
  }
  if (!stats.isSocket()) throw refuse(stats.isDirectory() ? "a directory" : "something that is not a socket");
  if (await isServed(path)) throw refuse("another daemon that answers there");
  unlinkSync(path);
}
