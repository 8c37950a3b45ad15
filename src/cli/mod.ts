/** The command line. Each command's code is loaded when it runs. */
import { Command, CommanderError, InvalidArgumentError } from "commander";
import { DEFAULT_CONFIG_FILE } from "../host/defaults.ts";
import { DEFAULT_SOCKET } from "../api/protocol.ts";
import { VERSION } from "../version.ts";
import { complain, createPaint, hasColour, print } from "./output.ts";

/** sysexits.h EX_USAGE: the command line cannot be understood. */
const USAGE_STATUS = 64;

interface Globals {
  readonly socket: string;
}

/** @returns the exit status */
export async function runCli(args: readonly string[]): Promise<number> {
  let status = 0;
  const program = createProgram((code) => status = code);
  try {
    await program.parseAsync([...args], { from: "user" });
    return status;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE_STATUS;
    // By its shape: a lazily loaded command may bring errors of any part of the house.
    const { name, code, reasons, lines, status } = error as {
      name?: unknown;
      code?: unknown;
      reasons?: unknown;
      lines?: unknown;
      status?: unknown;
    };
    if (!(error instanceof Error) || (typeof code !== "string" && name !== "KernelError")) throw error;
    const details = (Array.isArray(lines) ? lines : Array.isArray(reasons) && reasons.length > 1 ? reasons : []).map(
      String,
    );
    complain(`${createPaint(hasColour(2)).bad("manx:")} ${error.message}`);
    for (const line of details) if (!error.message.includes(line)) complain(`  ${line}`);
    if (args.includes("--debug") && error.stack !== undefined) complain(error.stack);
    return typeof status === "number" ? status : 1;
  }
}

function createProgram(setStatus: (status: number) => void): Command {
  const program = new Command("manx");
  const run = (body: (globals: Globals) => Promise<number>) => async () =>
    setStatus(await body(program.opts<Globals>()));
  const collect = (value: string, all: readonly string[] = []) => [...all, value];

  program.description("Container networking and network policy for this node")
    .version(`manx ${VERSION}`, "-V, --version", "print the version")
    .option("--socket <path>", "the daemon's API socket", DEFAULT_SOCKET)
    .option("--debug", "show where an unexpected error came from")
    .helpCommand(true).showHelpAfterError("(manx help shows the commands)").exitOverride()
    .configureOutput({ writeOut: print, writeErr: complain });

  program.command("daemon").description("run the node's daemon in the foreground")
    .option("-c, --config <file>", "configuration file", DEFAULT_CONFIG_FILE)
    .option("--check", "read the configuration and its plugins, say what is wrong, and end")
    .option("--die-with-parent", "end when the process that started it ends")
    .action((options: { config: string; check?: boolean; dieWithParent?: boolean }) =>
      run(async () => (await import("./daemon.ts")).runDaemonCommand(options))()
    );

  program.command("apply").description("store what manifests say: all of it or nothing")
    .requiredOption(
      "-f, --file <file>",
      "a file, a directory of .yaml, .yml and .json files, or - for standard input; repeatable",
      collect,
    )
    .option("--dry-run", "say what would change, change nothing")
    .option("--wait [seconds]", "wait until it is in force on this node (default 30)", seconds)
    .action((options: { file: readonly string[]; dryRun?: boolean; wait?: number | true }) =>
      run(async ({ socket }) => (await import("./apply.ts")).runApply({ ...options, socket }))()
    );

  program.command("delete").description("delete by manifest, or by kind and name").argument(
    "[kind]",
    "kind, or KIND/NAME",
  ).argument("[names...]")
    .option("-f, --file <file>", "as for apply", collect)
    .option("-n, --namespace <name>", "namespace", "default")
    .option("--ignore-not-found", "what is not there is no error")
    .option("--dry-run", "with -f: say what would be deleted, delete nothing")
    .option("--wait [seconds]", "wait until it is gone from this node (default 30)", seconds)
    .action((
      kind: string | undefined,
      names: readonly string[],
      options: {
        file?: readonly string[];
        namespace: string;
        ignoreNotFound?: boolean;
        dryRun?: boolean;
        wait?: number | true;
      },
    ) => run(async ({ socket }) => (await import("./delete.ts")).runDelete({ ...options, kind, names, socket }))());

  program.command("get").description("show resources").argument(
    "<kind>",
    "kind (pods, networkpolicies, wep …), or KIND/NAME",
  ).argument("[name]")
    .option("-n, --namespace <name>", "namespace", "default")
    .option("-A, --all-namespaces", "every namespace")
    .option("-o, --output <form>", "table, wide, yaml or json", choice("table", "wide", "yaml", "json"), "table")
    .action((
      kind: string,
      name: string | undefined,
      options: { namespace: string; allNamespaces?: boolean; output: "table" | "wide" | "yaml" | "json" },
    ) => run(async ({ socket }) => (await import("./get.ts")).runGet({ ...options, kind, name, socket }))());

  program.command("status").description("how the daemon is; exit status 1 where policy is not in force")
    .option("-o, --output <form>", "text or json", choice("text", "json"), "text")
    .action((options: { output: "text" | "json" }) =>
      run(async ({ socket }) => (await import("./status.ts")).runStatus({ ...options, socket }))()
    );

  program.command("ipam").description("address pools and their use")
    .option("-o, --output <form>", "table or json", choice("table", "json"), "table")
    .action((options: { output: "table" | "json" }) =>
      run(async ({ socket }) => (await import("./ipam.ts")).runIpam({ ...options, socket }))()
    );

  const plugins = program.command("plugins").description("plugins the daemon runs with")
    .option("-o, --output <form>", "table or json", choice("table", "json"), "table")
    .action((options: { output: "table" | "json" }) =>
      run(async ({ socket }) => (await import("./plugins.ts")).runPlugins({ ...options, socket }))()
    );
  plugins.command("check").description("hold a plugin file against the contract, without a daemon").argument(
    "<file>",
    "absolute path",
  )
    .action((file: string) => run(async () => (await import("./plugins.ts")).checkPlugin(file))());

  const lab = program.command("lab").description("try policies with real packets, in a sandbox");
  lab.command("run").description("run scenarios; exit status 0 only if every line holds").argument(
    "<scenarios...>",
    "scenario files",
  )
    .option("--dataplane <name>", "nftables, or the absolute path of a plugin file")
    .option("--keep", "leave the sandbox standing until interrupted")
    .option("--json", "one JSON document instead of text")
    .action((files: readonly string[], options: { dataplane?: string; keep?: boolean; json?: boolean }) =>
      run(async () =>
        (await import("../lab/mod.ts")).runLab({ ...options, files, color: hasColour() && options.json !== true })
      )()
    );

  program.command("version").description("print the version").action(() => print(`manx ${VERSION}`));
  return program;
}

function seconds(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !(value >= 0 && value <= 3600)) throw new InvalidArgumentError("wanted seconds, 0 to 3600");
  return value;
}

const choice = <T extends string>(...choices: readonly T[]) => (text: string): T => {
  if (!choices.includes(text as T)) throw new InvalidArgumentError(`wanted one of ${choices.join(", ")}`);
  return text as T;
};
