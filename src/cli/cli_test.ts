import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parse } from "yaml";
import { parseConfig } from "../host/config.ts";
import type { AddReply } from "../sdk/attach.ts";
import { VERSION } from "../version.ts";

const MANX = [process.execPath, "--no-install", join(import.meta.dir, "../main.ts")];
const directory = mkdtempSync(join(tmpdir(), "manx-cli-"));
const SOCKET = join(directory, "manx.sock");
const CONFIG = join(directory, "manx.yaml");
const DEADLINE_MS = 20_000;

interface Run {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

function manx(args: readonly string[], stdin = "", env: Record<string, string> = {}): Run {
  const run = Bun.spawnSync([...MANX, ...args], {
    stdin: new TextEncoder().encode(stdin),
    env: { PATH: process.env.PATH!, HOME: "/root", ...env },
  });
  return { status: run.exitCode, out: run.stdout.toString(), err: run.stderr.toString() };
}
const cli = (...args: string[]) => manx(["--socket", SOCKET, ...args]);
const apply = (text: string, ...args: string[]) => manx(["--socket", SOCKET, "apply", "-f", "-", ...args], text);

async function until(what: string, holds: () => boolean): Promise<void> {
  const deadline = performance.now() + DEADLINE_MS;
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`${what}: not within ${DEADLINE_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

const children = new Set<Bun.Subprocess>();
/** A process in a network namespace of its own. */
function spawnApart(
  command: readonly string[],
  stderr: "pipe" | "inherit" = "pipe",
): Bun.Subprocess<"ignore", "pipe", "pipe" | "inherit"> {
  const child = Bun.spawn(["unshare", "-n", ...command], {
    stdin: "ignore",
    stdout: "pipe",
    stderr,
    env: { PATH: process.env.PATH!, HOME: "/root" },
  });
  children.add(child);
  void child.exited.then(() => children.delete(child));
  return child;
}

let daemon: ReturnType<typeof spawnApart>;
async function startDaemon(): Promise<void> {
  daemon = spawnApart([...MANX, "daemon", "--config", CONFIG]);
  await until("daemon", () => daemon.exitCode !== null || (existsSync(SOCKET) && cli("status").status === 0));
  if (daemon.exitCode !== null) {
    throw new Error(`the daemon ended: ${await new Response(daemon.stderr as ReadableStream).text()}`);
  }
}
async function stopDaemon(signal: NodeJS.Signals): Promise<void> {
  daemon.kill(signal);
  await daemon.exited;
}

beforeAll(async () => {
  writeFileSync(
    CONFIG,
    `node: kube-01\naddresses: [192.0.2.1]\nstateDirectory: ${directory}/state\napi: { socket: ${SOCKET} }\ndataplane: { use: memory }\n`,
  );
  await startDaemon();
}, DEADLINE_MS);
afterAll(async () => {
  for (const child of children) child.kill("SIGKILL");
  await Promise.all([...children].map((child) => child.exited));
  rmSync(directory, { recursive: true, force: true });
});

const WORLD = `apiVersion: projectcalico.org/v3
kind: IPPool
metadata: { name: v4 }
spec: { cidr: 10.244.0.0/16 }
---
apiVersion: v1
kind: Namespace
metadata: { name: prod, labels: { team: a } }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: web, namespace: prod }
spec: { podSelector: { matchLabels: { app: web } } }
`;

test("the version comes from package.json, however it is asked", () => {
  const version = JSON.parse(readFileSync(join(import.meta.dir, "../../package.json"), "utf8")).version;
  expect(VERSION).toBe(version);
  for (const args of [["version"], ["--version"], ["-V"], ["version", "--debug"]]) {
    expect(manx(args)).toEqual({ status: 0, out: `manx ${version}\n`, err: "" });
  }
});

test("a command line that cannot be understood is one complaint and status 64", () => {
  for (
    const [args, complaint] of [
      [["frobnicate"], "error: unknown command 'frobnicate'"],
      [["apply"], "error: required option '-f, --file <file>' not specified"],
      [["get"], "error: missing required argument 'kind'"],
      [["get", "pods", "-o", "xml"], "wanted one of table, wide, yaml, json"],
      [["delete"], "delete: found neither -f nor a kind, wanted -f FILE or KIND NAME"],
      [["delete", "pod"], "delete pod: found no name, wanted at least one"],
      [["get", "pod", "x", "-A"], "get pod x: found -A with a name, wanted -n NAMESPACE"],
      [["apply", "-f", "x", "--wait", "soon"], "wanted seconds, 0 to 3600"],
    ] as const
  ) {
    const { status, out, err } = manx(["--socket", SOCKET, ...args]);
    expect({ args, status, out }).toEqual({ args, status: 64, out: "" });
    expect(err).toContain(complaint);
    expect(err).not.toContain("    at ");
  }
});

test("a daemon that is away is named with its socket and how to start it", () => {
  const { status, out, err } = manx(["--socket", "/nowhere/manx.sock", "status"]);
  expect([status, out]).toEqual([1, ""]);
  expect(err).toBe(
    "manx: the manx daemon cannot be reached at /nowhere/manx.sock: no such socket; start it with `systemctl start manx` or `manx daemon --config /etc/manx/manx.yaml`; --socket names another one\n",
  );
});

test("apply stores, says what it did, and is repeatable; get shows it; delete takes it away", () => {
  expect(apply(WORLD, "--dry-run")).toEqual({
    status: 0,
    out:
      "ippool.projectcalico.org/v4 created (dry run)\nnamespace/prod created (dry run)\nnetworkpolicy.networking.k8s.io/web in prod created (dry run)\n",
    err: "",
  });
  expect(cli("get", "ns", "prod").status).toBe(1);
  const applied = apply(WORLD, "--wait");
  expect(applied.out).toMatch(
    /^ippool.projectcalico.org\/v4 created\nnamespace\/prod created\nnetworkpolicy.networking.k8s.io\/web in prod created\nin force after \d+ ms\n$/,
  );
  expect(apply(WORLD).out).toBe(
    "ippool.projectcalico.org/v4 unchanged\nnamespace/prod unchanged\nnetworkpolicy.networking.k8s.io/web in prod unchanged\n",
  );
  expect(apply(WORLD.replace("app: web", "app: db")).out).toContain(
    "networkpolicy.networking.k8s.io/web in prod configured",
  );
  expect(cli("get", "netpol", "-n", "prod").out).toMatch(
    /^NAME {3}POD-SELECTOR {3}TYPES {5}AGE\nweb {4}app=db {9}Ingress {3}\d+s\n$/,
  );
  expect(cli("get", "networkpolicies", "-A").out).toMatch(/^NAMESPACE {3}NAME {3}POD-SELECTOR/);
  expect(cli("get", "netpol").err).toBe("No resources found in namespace default\n");
  expect(cli("get", "ippools", "-o", "wide").out).toContain("10.244.0.0/16");
  expect(cli("delete", "netpol/web", "-n", "prod", "--wait").out).toMatch(
    /^networkpolicy.networking.k8s.io\/web in prod deleted\nin force after \d+ ms\n$/,
  );
  expect(cli("delete", "netpol", "web", "-n", "prod")).toMatchObject({
    status: 1,
    err: 'manx: found no NetworkPolicy "web" in namespace prod\n',
  });
  expect(cli("delete", "netpol", "web", "-n", "prod", "--ignore-not-found").status).toBe(0);
  const rest = manx(["--socket", SOCKET, "delete", "-f", "-"], WORLD);
  expect(rest.status).toBe(1);
  expect(rest.out).toBe(
    "ippool.projectcalico.org/v4 deleted\nnamespace/prod deleted\nnetworkpolicy.networking.k8s.io/web in prod not found\n",
  );
});

test("what get prints as YAML or JSON can be applied again and changes nothing", () => {
  apply(WORLD);
  for (const form of ["yaml", "json"]) {
    for (const args of [["ns", "prod"], ["netpol", "-A"], ["nodes"]]) {
      const got = cli("get", ...args, "-o", form);
      expect(got.status).toBe(0);
      const again = apply(got.out);
      expect({
        args,
        form,
        err: again.err,
        words: [...new Set(again.out.trim().split("\n").map((line) => line.split(" ").at(-1)))],
      }).toEqual({ args, form, err: "", words: ["unchanged"] });
    }
  }
  expect(parse(cli("get", "node", "kube-01", "-o", "yaml").out)).toMatchObject({
    kind: "Node",
    status: { addresses: [{ type: "InternalIP", address: "192.0.2.1" }] },
  });
});

test("a Node applied without a status keeps its addresses", () => {
  expect(apply("apiVersion: v1\nkind: Node\nmetadata: { name: kube-01, labels: { zone: b } }").out).toBe(
    "node/kube-01 configured\n",
  );
  expect(JSON.parse(cli("get", "node", "kube-01", "-o", "json").out)).toMatchObject({
    metadata: { labels: { zone: "b" } },
    status: { addresses: [{ address: "192.0.2.1" }] },
  });
});

test("bad manifests are refused whole, with file, document, line and field", () => {
  for (
    const [text, expected] of [
      ["a: [", "standard input: document 1, line 1, column 5: broken YAML"],
      ["", "standard input: found no resource, wanted at least one"],
      [
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: x }",
        "standard input: document 1, line 2: kind: found Deployment of apps/v1, wanted kind",
      ],
      [
        "apiVersion: v1\nkind: Namespace\nmetadata: { name: new }\n---\napiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: { name: p }\nspec:\n  cidr: 10.300.0.0/16",
        'standard input: document 2, line 9: spec.cidr: found "10.300.0.0/16", wanted',
      ],
      [
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: { name: other }\nspec: { cidr: 10.244.128.0/20 }",
        "document 1, line 4: spec.cidr: found 10.244.128.0/20, which overlaps pool v4 (10.244.0.0/16), wanted a prefix of its own",
      ],
      [
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: { name: v4 }\nspec: { cidr: 10.245.0.0/16 }",
        'spec.cidr: found "10.245.0.0/16", wanted "10.244.0.0/16" as it is',
      ],
    ] as const
  ) {
    const { status, out, err } = apply(text);
    expect({ text, status, out }).toEqual({ text, status: 1, out: "" });
    expect(err).toContain(expected);
    expect(err).not.toContain("    at ");
  }
  expect(cli("get", "ns", "new").status).toBe(1);
});

test("of several files all are tried before the first is stored", () => {
  const good = join(directory, "1.yaml"), bad = join(directory, "2.yaml");
  writeFileSync(good, "apiVersion: v1\nkind: Namespace\nmetadata: { name: half }");
  writeFileSync(bad, "apiVersion: v1\nkind: Namespace\nmetadata: { name: Half }");
  expect(cli("apply", "-f", good, "-f", bad)).toMatchObject({ status: 1, out: "" });
  expect(cli("get", "ns", "half").status).toBe(1);
  expect(cli("apply", "-f", join(directory, "none.yaml")).err).toContain(
    "none.yaml: found no such file, wanted a manifest",
  );
});

test("status, plugins and ipam say what runs, for people and for programs", () => {
  const status = cli("status");
  expect(status.status).toBe(0);
  expect(status.out).toMatch(/^node {7}kube-01 \(192\.0\.2\.1\)\n/);
  expect(status.out).toMatch(/datastore {2}sqlite, in sync\npolicy {5}memory, generation \d+ in force/);
  expect(JSON.parse(cli("status", "-o", "json").out)).toMatchObject({
    node: "kube-01",
    datastore: { inSync: true },
    dataplane: { converged: true },
    problems: [],
  });
  expect(cli("plugins").out).toContain("datastore   sqlite       1.0   built-in");
  expect(cli("ipam").out).toMatch(/^POOL {3}CIDR {12}USED {3}FREE {4}BLOCKS\nv4 {5}10\.244\.0\.0\/16/);
  expect(manx(["--socket", SOCKET, "status"], "", { NO_COLOR: "", TERM: "xterm" }).out).not.toContain("\x1b");
});

test("an unknown kind names those there are; one name for two kinds is told apart by its group", () => {
  expect(cli("get", "deployments").err).toMatch(
    /^manx: found no kind "deployments", wanted one of .*networkpolicies.*pods/,
  );
  const calico =
    "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: { name: web, namespace: prod }\nspec: { selector: all() }";
  expect(apply(calico).status).toBe(0);
  expect(cli("get", "networkpolicies", "-n", "prod").out).toMatch(
    /NetworkPolicy\.networking\.k8s\.io\nNAME[^]*NetworkPolicy\.projectcalico\.org\nNAME/,
  );
  const error = cli("delete", "networkpolicies", "web", "-n", "prod").err;
  expect(error).toBe(
    'manx: found "web" of 2 kinds, wanted one named: networkpolicies.networking.k8s.io or networkpolicies.projectcalico.org\n',
  );
  expect(cli("delete", "networkpolicies.projectcalico.org", "web", "-n", "prod").status).toBe(0);
});

test("a pod is attached and detached through the API, and both survive a kill -9 of the daemon", async () => {
  const pod = spawnApart(["sleep", "1000"]);
  // What the link says, not its inode: before `unshare` has run, the pod's namespace is the machine's own.
  const namespaceOf = (pid: number | "self") => readlinkSync(`/proc/${pid}/ns/net`);
  await until("pod namespace", () => namespaceOf(pod.pid) !== namespaceOf("self"));
  const post = async (verb: string, body: object) => {
    const response = await fetch(`http://manx/v1/cni/${verb}`, {
      unix: SOCKET,
      method: "POST",
      body: JSON.stringify(body),
      keepalive: false,
    });
    return await response.json() as AddReply & { error?: { message: string } };
  };
  const name = { network: "pods", containerId: "c1", ifName: "eth0", netns: `/proc/${pod.pid}/ns/net` };
  const added = await post("add", { ...name, args: { K8S_POD_NAMESPACE: "prod", K8S_POD_NAME: "web-1" }, labels: {} });
  expect(added.error).toBeUndefined();
  expect(cli("get", "wep", "-n", "prod").out).toContain(added.hostInterface);
  expect(cli("status").out).toContain("endpoints  1\n");
  const inNamespace = (...command: string[]) =>
    Bun.spawnSync(["nsenter", `--net=/proc/${pod.pid}/ns/net`, ...command]).stdout.toString();
  expect(inNamespace("ip", "-o", "address", "show", "dev", "eth0")).toContain(
    added.addresses[0]!.address.split("/")[0]!,
  );

  await stopDaemon("SIGKILL");
  expect(existsSync(SOCKET)).toBe(true);
  await startDaemon();
  expect(cli("get", "wep", "-n", "prod").out).toContain(added.hostInterface);
  expect(await post("del", name)).toEqual({} as never);
  expect(cli("get", "wep", "-A").err).toBe("No resources found\n");
  pod.kill();
  await pod.exited;
}, 60_000);

test("a second daemon on the same socket is refused, and the first one goes on", () => {
  const { status, err } = manx(["daemon", "--config", CONFIG]);
  expect(status).toBe(1);
  expect(err).toContain(`API socket ${SOCKET}: found another daemon that answers there, wanted a free path`);
  expect(cli("status").status).toBe(0);
});

const startFaults: readonly [string, string, string][] = [
  ["an unknown key", "node: a\nnodes: b\n", "config CONFIG: line 2: nodes: found an unknown key, wanted one of node,"],
  [
    "an unknown plugin",
    "node: a\ndataplane: { use: iptables-legacy }\n",
    'dataplane.use: found "iptables-legacy", wanted one of nftables, ',
  ],
  [
    "a plugin's bad configuration",
    "node: a\ndatastore: { use: sqlite, config: { path: db } }\n",
    'config CONFIG: datastore.config.path: found "db", wanted an absolute path',
  ],
  [
    "a missing plugin file",
    "node: a\npolicy: [{ use: /none.ts }]\n",
    "plugin /none.ts: found no such file, wanted a file owned by root",
  ],
];
for (const [subject, text, message] of startFaults) {
  test(`${subject} keeps the daemon from starting, in one line`, () => {
    const config = join(directory, "bad.yaml");
    writeFileSync(config, `${text}stateDirectory: ${directory}/bad\n`);
    for (const args of [["daemon", "--config", config], ["daemon", "--check", "--config", config]]) {
      const { status, err } = manx(args);
      expect(status).toBe(1);
      expect(err).toContain(message.replace("CONFIG", config));
      expect(err.trim().split("\n")).toHaveLength(1);
    }
  });
}

test("a corrupt database keeps the daemon from starting, in one line, and stays as it was", () => {
  const config = join(directory, "corrupt.yaml"), database = join(directory, "corrupt.db");
  writeFileSync(database, "this is not a database".repeat(1000));
  writeFileSync(
    config,
    `node: a\nstateDirectory: ${directory}/corrupt\ndatastore: { use: sqlite, config: { path: ${database} } }\napi: { socket: ${directory}/c.sock }\ndataplane: { use: memory }\n`,
  );
  const before = readFileSync(database);
  const { status, err } = manx(["daemon", "--config", config]);
  expect(status).toBe(1);
  expect(err).toContain(database);
  expect(err.trim().split("\n")).toHaveLength(1);
  expect(readFileSync(database).equals(before)).toBe(true);
});

test("SIGTERM ends the daemon with status 0 and takes the socket away", async () => {
  await stopDaemon("SIGTERM");
  expect([daemon.exitCode, existsSync(SOCKET)]).toEqual([0, false]);
  await startDaemon();
}, DEADLINE_MS);

test("with --die-with-parent the daemon ends when its parent does", async () => {
  const socket = join(directory, "child.sock"), config = join(directory, "child.yaml");
  writeFileSync(
    config,
    `node: a\nstateDirectory: ${directory}/child\napi: { socket: ${socket} }\ndataplane: { use: memory }\n`,
  );
  const parent = spawnApart([
    "sh",
    "-c",
    `${MANX.join(" ")} daemon --die-with-parent --config ${config} & echo $!; wait`,
  ]);
  await until("child", () => existsSync(socket));
  parent.kill("SIGKILL");
  await until("end of child", () => !existsSync(socket));
}, DEADLINE_MS);

test("deploy/manx.yaml says the defaults, as it claims", () => {
  const file = join(import.meta.dir, "../../deploy/manx.yaml");
  const { node: _, file: __, ...said } = parseConfig(readFileSync(file, "utf8"), file);
  const { node: ___, file: ____, ...defaults } = parseConfig("", file);
  expect(said).toEqual(defaults);
  expect(manx(["daemon", "--check", "--config", file])).toMatchObject({ status: 0, err: "" });
});

test("deploy/manx.service starts the daemon with that file and hides what would change the executable", () => {
  const unit = readFileSync(join(import.meta.dir, "../../deploy/manx.service"), "utf8");
  expect(unit).toContain("ExecStart=/usr/local/bin/manx daemon --config /etc/manx/manx.yaml\n");
  expect(unit).toMatch(/^UnsetEnvironment=.*BUN_BE_BUN.*BUN_OPTIONS/m);
});
