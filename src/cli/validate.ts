import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadConfig } from "../host/config.ts";
import { openKinds, validateManifests } from "../host/resources/validate.ts";
import { readManifests } from "./manifests.ts";
import { complain, createPaint, hasColour, print } from "./output.ts";

/** `manx validate`: everything that is wrong, without a daemon. @returns the exit status: 1 where anything is refused */
export async function runValidate(
  options: { file: readonly string[]; config?: string; output: "text" | "json" },
): Promise<number> {
  const manifests = readManifests(options.file);
  const scratch = mkdtempSync(join(tmpdir(), "manx-validate-"));
  try {
    const registry = await openKinds(scratch, options.config === undefined ? undefined : loadConfig(options.config));
    const files = validateManifests(manifests, registry);
    const isValid = files.every(({ refusals }) => refusals.length === 0);
    if (options.output === "json") print(JSON.stringify({ valid: isValid, files }, null, 2));
    else {
      const bad = createPaint(hasColour(2)).bad;
      for (const { file, resources, refusals, notes } of files) {
        for (const refusal of refusals) complain(`${bad("refused")} ${refusal}`);
        for (const note of notes) complain(`note ${note}`);
        if (refusals.length === 0) {
          print(`${file}: ${resources} ${resources === 1 ? "resource" : "resources"}, all good`);
        }
      }
    }
    return isValid ? 0 : 1;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
