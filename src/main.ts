/** Picks a personality: CNI_COMMAND set → a CNI plugin, else the command line (the daemon is a command). */
import { VERSION } from "./version.ts";

function main(): void {
  const args = process.argv.slice(2);
  if (process.env.CNI_COMMAND !== undefined) {
    // Nothing else is loaded: the start of this process is most of what a pod waits for.
    void import("./cni/mod.ts").then(({ readStdin, runCni, writeStdout }) =>
      runCni(process.env, readStdin, writeStdout)
    ).then(process.exit, fail);
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
