import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";

const missing = ["portmap", "bandwidth"].filter((name) => !existsSync(`/usr/lib/cni/${name}`));

test.skipIf(missing.length > 0)(
  `Debian's portmap and bandwidth work behind us${
    missing.length > 0 ? `: skipped, /usr/lib/cni lacks ${missing.join(", ")}` : ""
  }`,
  () => {
    const { exitCode, stdout, stderr } = Bun.spawnSync([
      "unshare",
      "--net",
      process.execPath,
      "--no-install",
      join(import.meta.dir, "testdata", "chain.ts"),
    ]);
    expect({ exitCode, stderr: stderr.toString() }).toEqual({ exitCode: 0, stderr: "" });
    const lines = stdout.toString().trim().split("\n").map((line) => JSON.parse(line));
    const versions = ["0.3.0", "0.3.1", "0.4.0", "1.0.0"];
    expect(lines).toEqual(
      versions.flatMap((version) =>
        ["portmap", "bandwidth"].map((type) => ({
          version,
          type,
          added: version,
          effect: true,
          deleted: 0,
          differences: [],
        }))
      ),
    );
  },
  30_000,
);
