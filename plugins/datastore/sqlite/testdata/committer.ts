/**
 * A process that commits in a loop, for tests: `committer.ts PATH pairs|count N NAME`.
 * pairs: writes two keys in one commit, for ever, and prints `i revision` once each is acknowledged.
 * fill: commits until the file system is full, removes the file NAME, commits once more, and prints what came of it.
 * count: adds N to the shared counter, one at a time, by compare-and-swap; prints `done`.
 */
import { unlinkSync, writeSync } from "node:fs";
import { ConflictError, type ManxError } from "../../../../src/sdk/errors.ts";
import { key, put } from "../../../../test/contract/datastore_keys.ts";
import { SqliteDatastore } from "../store.ts";

const [path, mode, amount, name] = process.argv.slice(2) as [string, string, string, string];
const silent = { debug() {}, info() {}, warn() {}, error() {} };
const datastore = SqliteDatastore.open(path, silent);
const say = (line: string) => writeSync(1, `${line}\n`);

if (mode === "pairs") {
  say("ready");
  for (let i = Number(amount);; i++) {
    const padding = "x".repeat(i * 37 % 5000);
    const revision = await datastore.commit([
      put("Left", `n${i % 50}`, { i, padding }),
      put("Right", `n${i % 50}`, { i, padding }),
      { key: key("Left", `n${(i + 25) % 50}`), value: null },
      { key: key("Right", `n${(i + 25) % 50}`), value: null },
    ]);
    say(`${i} ${revision}`);
  }
}

if (mode === "fill") {
  let acknowledged = 0;
  let failed: ManxError | undefined;
  while (failed === undefined) {
    try {
      await datastore.commit([put("Thing", `n${acknowledged}`, "x".repeat(20_000), null)]);
      acknowledged++;
    } catch (error) {
      failed = error as ManxError;
    }
  }
  unlinkSync(name);
  await datastore.commit([put("Thing", "last", 0, null)]);
  await datastore[Symbol.asyncDispose]();
  await using again = SqliteDatastore.open(path, silent);
  const after = (await again.list("Thing.example.test")).length;
  say(JSON.stringify({ acknowledged, code: failed.code, message: failed.message, after }));
  process.exit(0);
}

for (let left = Number(amount); left > 0;) {
  const found = await datastore.get(key("Counter", "c"));
  const { total, by } = found!.value.spec as { total: number; by: Record<string, number> };
  try {
    const next = { total: total + 1, by: { ...by, [name]: (by[name] ?? 0) + 1 } };
    await datastore.commit([put("Counter", "c", next, found!.revision)]);
    left--;
  } catch (error) {
    if (!(error instanceof ConflictError)) throw error;
  }
}
await datastore[Symbol.asyncDispose]();
say("done");
