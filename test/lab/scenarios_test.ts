/** The product as its users have it: the compiled binary runs the worked examples with real packets. */
import { beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";

const EXAMPLES = join(import.meta.dir, "../../deploy/examples/scenarios");
const scenariosIn = (directory: string): readonly string[] =>
  readdirSync(directory).filter((name) => name.endsWith(".yaml")).sort().map((name) => join(directory, name));
/** Wider than the examples: what a fault between the parts would show in. */
const FURTHER = join(import.meta.dir, "scenarios");
const RUN_DEADLINE_MS = 60_000;

let binary = "";
beforeAll(async () => void (binary = await buildBinary()));

interface Outcome {
  readonly status: number | null;
  readonly output: string;
  readonly errors: string;
}

async function lab(
  args: readonly string[],
  wrapper: readonly string[] = [],
  environment: Record<string, string> = {},
): Promise<Outcome> {
  const run = Bun.spawn({
    cmd: [...wrapper, binary, "lab", "run", ...args],
    env: { ...process.env, ...environment },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [output, errors, status] = await Promise.all([
    new Response(run.stdout).text(),
    new Response(run.stderr).text(),
    run.exited,
  ]);
  return { status, output, errors };
}

/** What is left of labs whose scratch directories were made in `directory`. */
function leftovers(directory: string): { readonly files: readonly string[]; readonly processes: readonly string[] } {
  const processes = readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((pid) => {
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
      return command.includes(directory) ? [`${pid}: ${command}`] : [];
    } catch {
      return [];
    }
  });
  return { files: readdirSync(directory), processes };
}

async function withScratch(body: (directory: string) => Promise<void>, mode = 0o700): Promise<void> {
  const directory = mkdtempSync("/tmp/manx-test-");
  try {
    Bun.spawnSync({ cmd: ["chmod", mode.toString(8), directory] });
    await body(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

for (const [title, directory] of [["worked example", EXAMPLES], ["further scenario", FURTHER]] as const) {
  for (const file of scenariosIn(directory)) {
    test(`${title} ${basename(file)} holds with real packets, every answer at the first attempt`, async () => {
      const { status, output, errors } = await lab([file]);
      expect(status, output + errors).toBe(0);
      expect(output).toContain("✓ holds");
      expect(output).not.toContain("only at attempt");
    }, RUN_DEADLINE_MS);
  }
}

test("there are six worked examples", () => expect(scenariosIn(EXAMPLES).length).toBe(6));

const FALSE_LINE = `
scenario: a line that is not so
world:
  pods: [ { name: a }, { name: b, serves: [tcp/80] } ]
steps:
  - name: open
    expect: |
      a -> b tcp/80 allow
      a -> b tcp/80 deny
`;

test("a line that does not hold ends with status 1 and says what was seen, of every step in JSON as well", async () => {
  await withScratch(async (directory) => {
    const file = join(directory, "false.yaml");
    writeFileSync(file, FALSE_LINE);
    const text = await lab([file]);
    expect(text.status, text.errors).toBe(1);
    expect(text.output).toContain("line 9: a -> b tcp/80 deny");
    expect(text.output).toContain("✗ does not hold  1 of 2 lines");
    const json = await lab(["--json", file, join(EXAMPLES, "02-defaults.yaml")]);
    expect(json.status, json.errors).toBe(1);
    const { holds, scenarios } = JSON.parse(json.output);
    expect([holds, ...scenarios.map((scenario: { holds: boolean }) => scenario.holds)]).toEqual([false, false, true]);
  });
}, RUN_DEADLINE_MS);

test("a manifest that the daemon refuses ends the scenario with the line of its file", async () => {
  await withScratch(async (directory) => {
    const file = join(directory, "refused.yaml");
    writeFileSync(
      file,
      `${FALSE_LINE}  - name: bad\n    apply: |\n      apiVersion: networking.k8s.io/v1\n      kind: NetworkPolicy\n      metadata: { name: x }\n      spec: { podSelector: 5 }\n`,
    );
    const { status, output, errors } = await lab([file]);
    expect(status, errors).toBe(1);
    expect(output).toContain(file);
    expect(output).toContain("podSelector");
    expect(output).not.toMatch(/\n\s+at .*:\d+:\d+/);
  });
}, RUN_DEADLINE_MS);

test("files that cannot be read are refused together with status 2, before anything is built", async () => {
  await withScratch(async (directory) => {
    const file = join(directory, "broken.yaml");
    writeFileSync(file, "scenario: t\nsteps: [ { expect: a -> b tcp/80 allow } ]");
    const { status, output, errors } = await lab([file, join(directory, "none.yaml")], [], { TMPDIR: directory });
    expect(status).toBe(2);
    expect(output).toBe("");
    expect(errors).toContain(`${file}:2: steps[0].expect: found "a", which is no pod, host or node`);
    expect(errors).toContain("none.yaml: found no such file");
  });
});

test("an interrupt in the middle takes everything down: no process, no file is left", async () => {
  await withScratch(async (directory) => {
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      const run = Bun.spawn({
        cmd: [binary, "lab", "run", "--keep", join(EXAMPLES, "02-defaults.yaml")],
        env: { ...process.env, TMPDIR: directory },
        stdin: "ignore",
        stdout: "pipe",
        stderr: "ignore",
      });
      let seen = "";
      for await (const chunk of run.stdout.pipeThrough(new TextDecoderStream())) {
        seen += chunk;
        if (seen.includes("The sandbox stands") || (signal === "SIGTERM" && seen.includes("deny all ingress"))) break;
      }
      expect(leftovers(directory).processes.length).toBeGreaterThan(0);
      run.kill(signal);
      // Kept and interrupted at its end it has a verdict; interrupted in the middle it has none.
      expect(await run.exited).toBe(signal === "SIGINT" ? 0 : 143);
      expect(leftovers(directory)).toEqual({ files: [], processes: [] });
    }
  });
}, RUN_DEADLINE_MS);

test("a kill that cannot be caught leaves no process behind", async () => {
  await withScratch(async (directory) => {
    const run = Bun.spawn({
      cmd: [binary, "lab", "run", "--keep", join(EXAMPLES, "03-redis.yaml")],
      env: { ...process.env, TMPDIR: directory },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "ignore",
    });
    let seen = "";
    for await (const chunk of run.stdout.pipeThrough(new TextDecoderStream())) {
      if ((seen += chunk).includes("attached through CNI")) break;
    }
    expect(leftovers(directory).processes.length).toBeGreaterThan(0);
    run.kill("SIGKILL");
    await run.exited;
    const deadlineMs = performance.now() + 5_000;
    while (leftovers(directory).processes.length > 0 && performance.now() < deadlineMs) await Bun.sleep(20);
    expect(leftovers(directory).processes).toEqual([]);
  });
}, RUN_DEADLINE_MS);

const AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
const userNamespaces =
  Bun.spawnSync({ cmd: [...AS_NOBODY, "unshare", "--user", "--map-root-user", "--net", "true"] }).success;

test.skipIf(!userNamespaces)(
  "somebody who is not root runs it in a user namespace (skipped where the kernel allows none)",
  async () => {
    await withScratch(async (directory) => {
      const { status, output, errors } = await lab([join(EXAMPLES, "03-redis.yaml")], AS_NOBODY, {
        TMPDIR: directory,
      });
      expect(status, output + errors).toBe(0);
      expect(leftovers(directory)).toEqual({ files: [], processes: [] });
    }, 0o777);
  },
  RUN_DEADLINE_MS,
);
