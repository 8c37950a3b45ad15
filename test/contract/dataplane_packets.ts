/**
 * What every dataplane must do to real packets, in the compiled binary: the worked examples, and the cases of Kubernetes' own end-to-end
 * tests. Call `dataplanePackets` in a test file of the dataplane.
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { BINARY, buildBinary } from "../../scripts/build.ts";
import { childEnvironment } from "../../src/lab/self.ts";
import { netpolVectors } from "../e2e/netpol_vectors.ts";

const EXAMPLES = join(import.meta.dir, "../../deploy/examples/scenarios");
const FURTHER = join(import.meta.dir, "../lab/scenarios");
const RUN_DEADLINE_MS = 60_000;

const scenariosIn = (directory: string): readonly string[] =>
  readdirSync(directory).filter((name) => name.endsWith(".yaml")).sort().map((name) => join(directory, name));

/** `dataplane`: a built-in name. `scenarios`: the worked examples alone where a machine is too slow for more. */
export function dataplanePackets(dataplane: string, scenarios: "all" | "examples" = "all"): void {
  describe(`packets by dataplane: ${dataplane}`, () => {
    beforeAll(async () => void await buildBinary(), RUN_DEADLINE_MS);

    test("there are six worked examples", () => expect(scenariosIn(EXAMPLES).length).toBe(6));

    for (const file of [...scenariosIn(EXAMPLES), ...scenarios === "all" ? scenariosIn(FURTHER) : []]) {
      test(`${basename(file)} holds with real packets, every answer at the first attempt`, async () => {
        const run = Bun.spawn({
          cmd: [BINARY, "lab", "run", "--dataplane", dataplane, file],
          env: childEnvironment(),
          stdin: "ignore",
          stdout: "pipe",
          stderr: "pipe",
        });
        const [output, errors, status] = await Promise.all([
          new Response(run.stdout).text(),
          new Response(run.stderr).text(),
          run.exited,
        ]);
        expect(status, output + errors).toBe(0);
        expect(output).toContain("✓ holds");
        expect(output).toContain(dataplane);
        expect(output).not.toContain("only at attempt");
      }, RUN_DEADLINE_MS);
    }
  });

  netpolVectors(dataplane);
}
