/**
 * `npm run test:vm`: the tests of test/vm on a kernel that has what this machine's may lack (IPVS, dummy links …), each file in a
 * virtual machine of its own, as many at once as there are processors, two at most. Ends with `N passed, N failed, N skipped`, or says
 * SKIPPED and why where there can be no such machine. `-- PATH …`: only those tests, in one machine. `-- --bench NAME`: a benchmark of
 * test/vm/bench instead.
 */
import { closeSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { type LabKernel, LabUnavailable, prepareKernel } from "../test/vm/lab/kernel_package.ts";
import { runInMachine } from "../test/vm/lab/machine.ts";
import { buildBinary } from "./build.ts";
import { readCounts, type TestCounts } from "./test_counts.ts";

const ROOT = join(import.meta.dir, "..");
const TESTS = "test/vm";
/** What the tests compare us with. */
const TOOLS = ["iproute2", "nftables", "iptables", "ipset", "ipvsadm", "conntrack", "iputils-ping", "procps"];
/** Everything else loads by itself when it is asked for. */
const MODULES = ["ip_vs", "dummy", "nf_tables"];
const MACHINES_MAX = 2;
const SUITE_MS = 20 * 60_000;
/** Emulated: ten to twenty times slower. */
const TEST_MS = 300_000;

interface Run {
  readonly argv: readonly string[];
  /** Written to by the guest. */
  readonly scratch: string;
  /** Where its output goes; this process's own where absent. */
  readonly output?: number;
}

/** The command's exit status. @throws {LabUnavailable}; {Error} where the guest ends without one */
async function run(kernel: LabKernel, { argv, scratch, output }: Run): Promise<number> {
  return await runInMachine(kernel, {
    argv: [process.execPath, "--no-install", ...argv],
    cwd: ROOT,
    env: { ...process.env, MANX_VM: kernel.release },
    modules: MODULES,
    writable: [scratch],
    timeoutMs: SUITE_MS,
    output,
  });
}

/** Tests in one machine. A runner that failed without a failed test (a file that does not load, a guest that died) is a failure all the same. */
async function test(kernel: LabKernel, paths: readonly string[], within: Omit<Run, "argv">): Promise<TestCounts> {
  const report = join(within.scratch, "junit.xml");
  const argv = ["test", "--timeout", String(TEST_MS), "--reporter=junit", `--reporter-outfile=${report}`, ...paths];
  let status: number;
  try {
    status = await run(kernel, { ...within, argv });
  } catch (error) {
    if (error instanceof LabUnavailable) throw error;
    console.error((error as Error).message);
    status = 1;
  }
  const counts = readCounts(report);
  return { ...counts, failed: Math.max(counts.failed, status === 0 ? 0 : 1) };
}

/** Each file in a machine of its own; what one says is shown when it is over. */
async function testAll(kernel: LabKernel, scratch: string): Promise<readonly TestCounts[]> {
  const waiting = readdirSync(join(ROOT, TESTS)).filter((name) => name.endsWith("_test.ts")).sort();
  const all: TestCounts[] = [];
  const work = async () => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
      const directory = join(scratch, name), log = `${directory}.log`;
      mkdirSync(directory);
      const output = openSync(log, "w");
      try {
        all.push(await test(kernel, [`./${TESTS}/${name}`], { scratch: directory, output }));
      } finally {
        closeSync(output);
        writeFileSync(1, readFileSync(log));
      }
    }
  };
  const workers = Math.min(MACHINES_MAX, availableParallelism());
  const outcomes = await Promise.allSettled(Array.from({ length: workers }, work));
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  return all;
}

const asked = process.argv.slice(2);
const scratch = mkdtempSync(join(tmpdir(), "manx-test-vm-"));
let status: number;
try {
  const kernel = prepareKernel(TOOLS);
  if (asked[0] === "--bench") {
    status = await run(kernel, { argv: [join("test/vm/bench", `${asked[1]}_bench.ts`), ...asked.slice(2)], scratch });
  } else {
    await buildBinary();
    console.error(`── tests on Linux ${kernel.release}`);
    const all = asked.length > 0 ? [await test(kernel, asked, { scratch })] : await testAll(kernel, scratch);
    const sum = (key: keyof TestCounts) => all.reduce((sum, counts) => sum + counts[key], 0);
    console.log(`${sum("passed")} passed, ${sum("failed")} failed, ${sum("skipped")} skipped`);
    status = sum("failed") === 0 && sum("passed") > 0 ? 0 : 1;
  }
} catch (error) {
  if (error instanceof LabUnavailable) {
    console.log(`SKIPPED: the tests on another kernel: ${error.message}`);
    console.log("0 passed, 0 failed, 0 skipped");
    status = 0;
  } else {
    console.error((error as Error).message);
    status = 1;
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
process.exit(status);
