/** The product as its users have it: what `manx explain` says is what the kernel does with real packets. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";
import { type ExplainReply, type ExplainRequest, type Explanation, PATHS } from "../../src/api/protocol.ts";
import { createNamespace } from "../../src/kernel/netns.ts";
import { type Expectation, parseExpectation, type Party } from "../../src/lab/expectation.ts";
import { Prober, type ProbeResult } from "../../src/lab/prober.ts";
import { NodeDaemon } from "../../src/lab/node_daemon.ts";
import { Sandbox } from "../../src/lab/sandbox.ts";
import { fillPlaceholders, type Scenario, type ScenarioWorld, type Step } from "../../src/lab/scenario.ts";
import { parseScenario } from "../../src/lab/scenario_parser.ts";
import { addressFamily, formatAddress, parseAddress } from "../../src/model/address.ts";

const ROOT = join(import.meta.dir, "../..");
const RUN_DEADLINE_MS = 60_000;

const scratch = mkdtempSync("/tmp/manx-explain-");
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

let binary = "";
beforeAll(async () => void (binary = await buildBinary()));

interface Run {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

function manx(socket: string, ...args: readonly string[]): Run {
  const run = Bun.spawnSync([binary, "--socket", socket, ...args], { env: { PATH: process.env.PATH!, NO_COLOR: "1" } });
  return { status: run.exitCode, out: run.stdout.toString(), err: run.stderr.toString() };
}

/** Runs `body` with the scenario's world up, daemons and all. `socketOf`: of a node. */
async function inSandbox(
  scenario: Scenario,
  body: (sandbox: Sandbox, socketOf: (node: string) => string) => Promise<void>,
): Promise<void> {
  const directory = mkdtempSync("/tmp/manx-explain-");
  try {
    await using sandbox = await Sandbox.open(scenario.world, { directory, dataplane: "nftables", self: [binary] });
    const index = (node: string) => scenario.world.nodes.findIndex(({ name }) => name === node);
    await body(sandbox, (node) => join(directory, `n${index(node)}`, "manx.sock"));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** How a command line names who a probe is between: outside hosts and addresses of links by address. */
const nameOf = (party: Party, address: string): string => party.kind === "pod" ? `pod/${party.id}` : address;

/** The node whose daemon sees the links of the way; undefined where a third one forwards. */
function nodeToAsk(from: Party, to: Party, world: ScenarioWorld): string | undefined {
  const home = (party: Party): { node: string; isShared: boolean } => {
    if (party.kind === "pod") return { node: world.pods.find(({ id }) => id === party.id)!.node, isShared: true };
    if (party.kind === "node") return { node: party.name, isShared: true };
    const host = world.hosts.find(({ name }) => name === party.name)!;
    return { node: host.node, isShared: host.link === "eth0" };
  };
  const [start, end] = [home(from), home(to)];
  const passes = (from.kind === "host" && !start.isShared || to.kind === "host" && !end.isShared) &&
    start.node !== end.node;
  return passes ? undefined : to.kind === "host" ? start.node : end.node;
}

async function explain(
  socket: string,
  from: string,
  to: string,
  protocol: string,
  family: 4 | 6,
): Promise<Explanation> {
  const request: ExplainRequest = { question: { from, to, protocol, family } };
  const response = await fetch(`http://manx${PATHS.explain}`, {
    unix: socket,
    method: "POST",
    body: JSON.stringify(request),
    keepalive: false,
  });
  const text = await response.text();
  expect(response.status, text).toBe(200);
  return (JSON.parse(text) as ExplainReply).explanations[0]!;
}

/** What is asked of one probe, and what came of it. */
interface Question {
  readonly node: string;
  readonly from: string;
  readonly to: string;
  readonly protocol: string;
  readonly family: 4 | 6;
  readonly observed: "allow" | "deny";
}

function questionsOf(line: Expectation, results: readonly ProbeResult[], world: ScenarioWorld): readonly Question[] {
  const pairs = line.pairs.flatMap(({ from, to, families }) => families.map(() => ({ from, to })));
  return results.flatMap(({ probe, observed }, i): readonly Question[] => {
    const { from, to } = pairs[i]!;
    const node = probe.to === probe.target.address ? nodeToAsk(from, to, world) : undefined;
    return node === undefined ? [] : [{
      node,
      from: nameOf(from, formatAddress(probe.source)),
      to: nameOf(to, formatAddress(probe.to)),
      protocol: probe.port === 0 ? probe.protocol : `${probe.protocol}/${probe.port}`,
      family: addressFamily(probe.to),
      observed: observed === "answered" ? "allow" : "deny",
    }];
  });
}

async function takeAction({ action }: Step, scenario: Scenario, sandbox: Sandbox): Promise<void> {
  if (action === undefined) return;
  const manifest = fillPlaceholders(action.manifest.text, (name, family) => {
    const party: Party = name.startsWith("node:")
      ? { kind: "node", name: name.slice("node:".length), link: "eth0" }
      : scenario.world.hosts.some((host) => host.name === name)
      ? { kind: "host", name }
      : { kind: "pod", id: name.includes("/") ? name : `default/${name}` };
    return sandbox.addressesOf(party).find((address) => family === undefined || addressFamily(address) === family);
  });
  await sandbox.change(action.verb, "\n".repeat(action.manifest.line - 1) + manifest, scenario.file);
}

const scenarioOf = (file: string): Scenario => parseScenario(file, readFileSync(join(ROOT, file), "utf8"));
const REDIS = "deploy/examples/scenarios/03-redis.yaml";

for (const [file, atLeast] of [[REDIS, 20], ["test/lab/scenarios/host_paths.yaml", 60]] as const) {
  test(`explain says what the kernel does, line by line of ${basename(file)}`, async () => {
    const scenario = scenarioOf(file);
    await inSandbox(scenario, async (sandbox, socketOf) => {
      using prober = new Prober();
      const wrong: string[] = [];
      let asked = 0;
      for (const step of scenario.steps) {
        await takeAction(step, scenario, sandbox);
        const probes = step.expect.map((line) => sandbox.probes(line));
        const all = [...await prober.run(probes.flat())];
        for (const [i, line] of step.expect.entries()) {
          const own = all.splice(0, probes[i]!.length);
          for (const { node, from, to, protocol, family, observed } of questionsOf(line, own, scenario.world)) {
            const { verdict, notes } = await explain(socketOf(node), from, to, protocol, family);
            // What a node does not know of another one it assumes, and says so.
            if (notes.some((note) => note.includes("is assumed"))) continue;
            asked++;
            if (verdict !== observed) {
              wrong.push(`${step.name}: ${from} ${to} ${protocol} IPv${family}: ${verdict}, the kernel: ${observed}`);
            }
          }
        }
      }
      expect(wrong).toEqual([]);
      expect(asked).toBeGreaterThanOrEqual(atLeast);
    });
  }, RUN_DEADLINE_MS);
}

test("on the command line: verdict, rule, place and counters of the Redis policy; what-if; policies", async () => {
  const scenario = scenarioOf(REDIS);
  await inSandbox(scenario, async (sandbox, socketOf) => {
    const socket = socketOf(scenario.world.nodes[0]!.name);
    const manifest = `${scratch}/redis.yaml`;
    writeFileSync(manifest, REDIS_POLICY);
    const imagined = manx(socket, "explain", "--what-if", "-f", manifest, "nodejs", "redis", "tcp/9121");
    expect(imagined).toMatchObject({ status: 0, err: "" });
    expect(imagined.out).toStartWith("DENIED   default/nodejs → default/redis   tcp/9121   allowed now\n");
    expect(imagined.out).toContain("\n  default/php → default/redis: everything allowed now, denied then\n");
    expect(imagined.out).toContain(
      "\n  default/nodejs → default/redis: everything but tcp/6379 allowed now, denied then\n",
    );
    // Nothing of it was stored.
    expect(manx(socket, "get", "networkpolicies").err).toBe("No resources found in namespace default\n");
    expect(manx(socket, "explain", "php", "redis", "tcp/6379", "--expect", "allow").status).toBe(0);

    expect(manx(socket, "apply", "-f", manifest, "--wait").status).toBe(0);
    const denied = manx(socket, "explain", "php", "redis", "tcp/6379", "--expect", "deny");
    expect(denied).toMatchObject({ status: 0, err: "" });
    expect(denied.out).toStartWith("DENIED   default/php → default/redis   tcp/6379\n");
    expect(denied.out).toContain(`near      ${manifest}:7 NetworkPolicy default/allow-redis-nodejs spec.ingress[0]\n`);
    expect(denied.out).toContain('✗ the source default/php has service=php, wanted service == "nodejs"\n');
    expect(manx(socket, "explain", "php", "redis", "tcp/6379", "--expect", "allow").status).toBe(2);
    expect(manx(socket, "get", "netpol", "-o", "yaml").out).not.toContain(manifest);

    using prober = new Prober();
    const line = parseExpectation("nodejs -> redis tcp/6379 allow", scenario.world, 1);
    const counter = async () => {
      const { steps } = await explain(socket, "nodejs", "redis", "tcp/6379", 4);
      return steps.at(-1)!.counter;
    };
    const before = await counter();
    expect(
      (await prober.run(sandbox.probes(line).filter(({ to }) => addressFamily(to) === 4))).map(({ holds }) => holds),
    ).toEqual([true]);
    const after = await counter();
    if (!("packets" in before) || !("packets" in after)) throw new Error(`no counter: ${JSON.stringify(after)}`);
    expect(after.packets - before.packets).toBe(1);

    const policies = manx(socket, "policies", "redis");
    expect(policies.out).toContain(
      `ingress     default   1000    NetworkPolicy default/allow-redis-nodejs   1       ${manifest}:1\n`,
    );
    expect(manx(socket, "policies", "nobody")).toMatchObject({ status: 1, out: "" });
  });
}, RUN_DEADLINE_MS);

test("places survive a restart of the daemon", async () => {
  using namespace = createNamespace("explain");
  const options = {
    node: "n1",
    namespace,
    addresses: [parseAddress("192.0.2.1")],
    families: [4] as const,
    directory: join(scratch, "n1"),
    datastore: join(scratch, "n1.db"),
    dataplane: "memory",
    self: [binary],
  };
  const text = `${REDIS_POLICY}---\n${podWithEndpoint("redis", "10.244.0.4", { service: "redis" })}---\n${
    podWithEndpoint("php", "10.244.0.5", { service: "php" })
  }`;
  {
    await using daemon = await NodeDaemon.start(options);
    await daemon.apply("apply", text, "kept.yaml");
  }
  await using daemon = await NodeDaemon.start(options);
  const { steps } = await explain(daemon.socket, "php", "redis", "tcp/6379", 4);
  expect(steps.at(-1)!.near[0]!.rule.place).toEqual({ file: "kept.yaml", line: 7 });
}, RUN_DEADLINE_MS);

const REDIS_POLICY = `kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: { name: allow-redis-nodejs }
spec:
  podSelector: { matchLabels: { service: redis } }
  ingress:
  - from: [{ podSelector: { matchLabels: { service: nodejs } } }]
    ports: [{ protocol: TCP, port: 6379 }]
`;

const podWithEndpoint = (name: string, address: string, labels: Record<string, string>): string =>
  `apiVersion: v1
kind: Pod
metadata: { name: ${name}, labels: ${JSON.stringify(labels)} }
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: { name: ${name} }
spec: { node: n1, pod: ${name}, orchestrator: k8s, interfaceName: tap-${name}, ipNetworks: [${address}/32] }
`;

test("validate needs no daemon: it tells all that is wrong and ends with status 1; status 0 for what is right", () => {
  const good = join(scratch, "good.yaml"), bad = join(scratch, "bad.yaml");
  writeFileSync(good, REDIS_POLICY);
  writeFileSync(
    bad,
    `${REDIS_POLICY.replace("6379", "70000")}---\napiVersion: v1\nkind: Namespace\nmetadata: { name: BAD }\n`,
  );
  const nowhere = "/nonexistent/manx.sock";
  expect(manx(nowhere, "validate", "-f", good)).toEqual({ status: 0, out: `${good}: 1 resource, all good\n`, err: "" });
  const refused = manx(nowhere, "validate", "-f", bad, "-f", good);
  expect(refused).toMatchObject({ status: 1, out: `${good}: 1 resource, all good\n` });
  expect(refused.err.split("\n")).toEqual([
    `refused ${bad}: document 1, line 8: spec.ingress[0].ports[0].port: found 70000, wanted a whole number from 1 to 65535`,
    `refused ${bad}: document 2, line 12: metadata.name: found "BAD", wanted a name of lower-case letters, digits, - and ., at most 253`,
    "",
  ]);
  expect(JSON.parse(manx(nowhere, "validate", "-f", bad, "-o", "json").out)).toMatchObject({
    valid: false,
    files: [{ file: bad, resources: 0 }],
  });
  expect(manx(nowhere, "validate", "-f", join(scratch, "none.yaml"))).toMatchObject({ status: 1 });
});

test("a command line that cannot be understood is one complaint and status 64", () => {
  for (
    const [args, complaint] of [
      [["explain", "a", "b"], "explain: found 2 of FROM TO PROTOCOL, wanted all three"],
      [["explain"], "explain: found 0 of FROM TO PROTOCOL, wanted all three"],
      [["explain", "a", "b", "tcp/1", "-4", "-6"], "explain: found both -4 and -6"],
      [["explain", "a", "b", "tcp/1", "--what-if"], "explain: found --what-if alone"],
      [["explain", "-f", "x", "a", "b", "tcp/1"], "explain: found -f without --what-if"],
      [
        ["explain", "--what-if", "--without", "x/y", "--expect", "deny"],
        "explain: found --expect without FROM TO PROTOCOL",
      ],
      [["explain", "a", "b", "tcp/1", "--expect", "maybe"], "wanted one of allow, deny"],
      [["policies"], "missing required argument 'endpoint'"],
      [["validate"], "required option '-f, --file <file>' not specified"],
    ] as const
  ) {
    const { status, out, err } = manx("/nonexistent/manx.sock", ...args);
    expect({ args, status, out }).toEqual({ args, status: 64, out: "" });
    expect(err).toContain(complaint);
  }
});
