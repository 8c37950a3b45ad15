/** Picks a personality: CNI_COMMAND set → a CNI plugin, else the command line (the daemon is a command). */
import { callDaemon, readStdin, runCni, unansweredExchange } from "./cni/mod.ts";
import { exchange, readAll, writeAll } from "./kernel/blocking_io.ts";
import { VERSION } from "./version.ts";

function main(): void {
  const args = process.argv.slice(2);
  if (process.env.CNI_COMMAND !== undefined) {
    // What the entry of the executable has left to us: src/cni/entry.
    const unanswered = process.env.MANX_CNI_UNANSWERED;
    const send = unanswered === undefined ? exchange : unansweredExchange(Number(unanswered));
    // Small and imported above, for a chunk of its own would cost 0.2 ms; everything else is loaded only where it runs.
    void runCni(process.env, {
      readStdin: () => readStdin((limitBytes) => readAll(0, limitBytes)),
      write: (line) => writeAll(1, new TextEncoder().encode(`${line}\n`)),
      ask: (socket, path, body) => callDaemon(send, socket, path, body),
    }).then(process.exit, fail);
  } else if (args.length === 1 && (args[0] === "version" || args[0] === "--version" || args[0] === "-V")) {
    console.log(`manx ${VERSION}`);
  } else {
    void import("./cli/mod.ts").then(({ runCli }) => runCli(args)).then(process.exit, fail);
  }
}

/** What nobody expected: one line, and the way to more. */
function fail(error: unknown): never {
  const shown = process.argv.includes("--debug") && error instanceof Error
    ? error.stack
    : `${error instanceof Error ? error.message : error}; --debug shows where`;
  console.error(`manx: unexpected: ${shown}`);
  process.exit(70);
}

main();
