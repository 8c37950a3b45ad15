/** The command line. Each command's code is loaded when it runs. */
import { Command, CommanderError, InvalidArgumentError } from "commander";
import { DEFAULT_CONFIG_FILE } from "../host/defaults.ts";
import { DEFAULT_SOCKET } from "../api/protocol.ts";
import { VERSION } from "../version.ts";
import { DIFF_HELP, SWEEP_HELP, SWITCH_HELP } from "./help_texts.ts";
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

  program.command("explain").description(
    "whether a packet gets from one end to another, and why; exit status 0 whatever the verdict",
  )
    .argument("[from]", "[NAMESPACE/]POD, node/NAME, wep/NAME, an address, or host for this node; node/NAME@LINK")
    .argument("[to]", "as from, or service/[NAMESPACE/]NAME")
    .argument("[protocol]", "tcp/80, tcp/http, udp/53, sctp/9, icmp, icmp/8/0, icmpv6/128, or a protocol's number")
    .option("-n, --namespace <name>", "of names that say none", "default")
    .option("-4, --ipv4", "over IPv4")
    .option("-6, --ipv6", "over IPv6")
    .option("--what-if", "as if -f were applied and --without deleted: also lists every pair that changes")
    .option("-f, --file <file>", "with --what-if: as for apply; nothing is stored", collect)
    .option("--without <kind/name>", "with --what-if: KIND/[NAMESPACE/]NAME; repeatable", collect)
    .option("--expect <verdict>", "allow or deny: exit status 2 where it is the other", choice("allow", "deny"))
    .option("-o, --output <form>", "text or json", choice("text", "json"), "text")
    .action((
      from: string | undefined,
      to: string | undefined,
      protocol: string | undefined,
      options: {
        namespace: string;
        ipv4?: boolean;
        ipv6?: boolean;
        whatIf?: boolean;
        file?: readonly string[];
        without?: readonly string[];
        expect?: "allow" | "deny";
        output: "text" | "json";
      },
    ) =>
      run(async ({ socket }) =>
        (await import("./explain.ts")).runExplain({
          ...options,
          ...from === undefined ? {} : { from },
          ...to === undefined ? {} : { to },
          ...protocol === undefined ? {} : { protocol },
          socket,
        })
      )()
    );

  program.command("policies").description("what applies to a pod, an endpoint or a node, in order").argument(
    "<endpoint>",
    "[NAMESPACE/]POD, wep/NAME, node/NAME, hep/NAME, or host for this node",
  )
    .option("-n, --namespace <name>", "of names that say none", "default")
    .option("-o, --output <form>", "table, wide, yaml or json", choice("table", "wide", "yaml", "json"), "table")
    .action((endpoint: string, options: { namespace: string; output: "table" | "wide" | "yaml" | "json" }) =>
      run(async ({ socket }) => (await import("./policies.ts")).runPolicies({ ...options, endpoint, socket }))()
    );

  program.command("validate").description(
    "hold manifests against their APIs, without a daemon; exit status 1 if refused",
  )
    .requiredOption("-f, --file <file>", "as for apply", collect)
    .option("-c, --config <file>", "know the kinds of this configuration's policy plugins")
    .option("-o, --output <form>", "text or json", choice("text", "json"), "text")
    .action((options: { file: readonly string[]; config?: string; output: "text" | "json" }) =>
      run(async () => (await import("./validate.ts")).runValidate(options))()
    );

  program.command("status").description("how the daemon is; exit status 1 where policy is not in force")
    .option("-o, --output <form>", "text or json", choice("text", "json"), "text")
    .action((options: { output: "text" | "json" }) =>
      run(async ({ socket }) => (await import("./status.ts")).runStatus({ ...options, socket }))()
    );

  program.command("logs").description("packets that policy logged: by Log rules, or denied where that is to be logged")
    .option("-f, --follow", "go on with what comes, until interrupted")
    .option("--since <time>", "only the last 90s, 5m, 2h …", ago)
    .option("--limit <lines>", "of what is kept, the last so many lines", wholeNumber)
    .option("--pod <pod>", "only from or to [NAMESPACE/]POD")
    .option("--verdict <verdict>", "only log or deny", choice("log", "deny"))
    .option("-o, --output <form>", "table or json (a line each)", choice("table", "json"), "table")
    .action((
      options: {
        follow?: boolean;
        since?: number;
        limit?: number;
        pod?: string;
        verdict?: "log" | "deny";
        output: "table" | "json";
      },
    ) => run(async ({ socket }) => (await import("./logs.ts")).runLogs({ ...options, socket }))());

  program.command("ipam").description("address pools and their use")
    .option("-o, --output <form>", "table or json", choice("table", "json"), "table")
    .action((options: { output: "table" | "json" }) =>
      run(async ({ socket }) => (await import("./ipam.ts")).runIpam({ ...options, socket }))()
    );

  const dataplane = program.command("dataplane").description("what enforces policy in this node's kernel");
  dataplane.command("diff").description("what the kernel has otherwise than wanted; exit status 0 nothing, 1 something")
    .option("-o, --output <form>", "text or json", choice("text", "json"), "text")
    .addHelpText("after", DIFF_HELP)
    .action((options: { output: "text" | "json" }) =>
      run(async ({ socket }) => (await import("./dataplane.ts")).runDataplaneDiff({ ...options, socket }))()
    );
  dataplane.command("switch").description("exchange the dataplane of a running node for another, without a gap")
    .argument(
      "<name>",
      "a built-in dataplane",
    )
    .option("-c, --config <file>", "the dataplane's own configuration, YAML; else as the daemon's names it, or none")
    .addHelpText("after", SWITCH_HELP)
    .option("-o, --output <form>", "text or json", choice("text", "json"), "text")
    .action((name: string, options: { config?: string; output: "text" | "json" }) =>
      run(async ({ socket }) => (await import("./dataplane.ts")).runDataplaneSwitch({ ...options, name, socket }))()
    );

  program.command("sweep").description("remove everything of manx from this node's kernel, and nothing else")
    .option("-c, --config <file>", `configuration file (default ${DEFAULT_CONFIG_FILE}, where there is one)`)
    .option("--links", "pods' links as well: pods that still run lose their network")
    .option("--force", "even while a daemon runs")
    .addHelpText("after", SWEEP_HELP)
    .option("-o, --output <form>", "text or json", choice("text", "json"), "text")
    .action((options: { config?: string; links?: boolean; force?: boolean; output: "text" | "json" }) =>
      run(async ({ socket }) => {
        const isGiven = program.getOptionValueSource("socket") === "cli";
        return (await import("./sweep.ts")).runSweep({ ...options, ...isGiven ? { socket } : {} });
      })()
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
    .option("--dataplane <name>", "a built-in one (default nftables), or the absolute path of a plugin file")
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

/** `90s` → milliseconds. */
function ago(text: string): number {
  const match = /^(\d{1,9})(ms|s|m|h|d)$/.exec(text);
  if (match === null) throw new InvalidArgumentError("wanted a time such as 90s, 5m, 2h or 1d");
  return Number(match[1]) * { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }[match[2] as "ms"]!;
}

function wholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError("wanted a whole number");
  return Number(text);
}

const choice = <T extends string>(...choices: readonly T[]) => (text: string): T => {
  if (!choices.includes(text as T)) throw new InvalidArgumentError(`wanted one of ${choices.join(", ")}`);
  return text as T;
};
