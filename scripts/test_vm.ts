/**
 * `npm run test:vm`: the tests of test/vm on a kernel that has what this machine's may lack (IPVS, dummy links …), in one virtual
 * machine. Ends with `N passed, N failed, N skipped`, or says SKIPPED and why where there can be no such machine.
 * `-- PATH …`: only those tests. `-- --bench NAME`: a benchmark of test/vm/bench instead.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LabUnavailable, prepareKernel } from "../test/vm/lab/kernel_package.ts";
import { runInMachine } from "../test/vm/lab/machine.ts";
import { readCounts } from "./test_counts.ts";

const ROOT = join(import.meta.dir, "..");
/** What the tests compare us with. */
const TOOLS = ["iproute2", "nftables", "ipvsadm", "conntrack", "iputils-ping", "procps"];
/** Everything else loads by itself when it is asked for. */
const MODULES = ["ip_vs", "dummy", "nf_tables"];
const SUITE_MS = 20 * 60_000;
/** Emulated: ten to twenty times slower. */
const TEST_MS = 300_000;

const asked = process.argv.slice(2);
const isBench = asked[0] === "--bench";
const scratch = mkdtempSync(join(tmpdir(), "manx-test-vm-"));
const report = join(scratch, "junit.xml");
const bun = [process.execPath, "--no-install"];
const argv = isBench ? [...bun, join("test/vm/bench", `${asked[1]}_bench.ts`), ...asked.slice(2)] : [
  ...bun,
  ...["test", "--timeout", String(TEST_MS), "--reporter=junit", `--reporter-outfile=${report}`],
  ...asked.length > 0 ? asked : ["./test/vm/"],
];

let status: number;
try {
  const kernel = prepareKernel(TOOLS);
  console.error(`── tests on Linux ${kernel.release}`);
  status = await runInMachine(kernel, {
    argv,
    cwd: ROOT,
    env: { ...process.env, MANX_VM: kernel.release },
    modules: MODULES,
    writable: [scratch],
    timeoutMs: SUITE_MS,
  });
} catch (error) {
  if (!(error instanceof LabUnavailable)) {
    console.error((error as Error).message);
    status = 1;
  } else {
    console.log(`SKIPPED: the tests on another kernel: ${error.message}`);
    console.log("0 passed, 0 failed, 0 skipped");
    rmSync(scratch, { recursive: true, force: true });
    process.exit(0);
  }
}
if (isBench) {
  rmSync(scratch, { recursive: true, force: true });
  process.exit(status);
}
const counts = readCounts(report);
rmSync(scratch, { recursive: true, force: true });
// A runner that failed without a failed test (a file that does not load, a guest that died) is a failure all the same.
const failed = Math.max(counts.failed, status === 0 ? 0 : 1);
console.log(`${counts.passed} passed, ${failed} failed, ${counts.skipped} skipped`);
process.exit(failed === 0 && counts.passed > 0 ? 0 : 1);
