import { afterAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import type { Host, PluginKind } from "../sdk/plugin.ts";
import type { Slot } from "./config.ts";
import { importPlugin, openPlugin, parsePluginConfig, refuseForeignConfig } from "./loader.ts";

// Root's home: /tmp is writable by everybody, which the loader must refuse.
const directory = mkdtempSync(join(homedir(), ".manx-loader-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

let count = 0;
const GOOD = `export default { api: "1.0", kind: "policy", name: "mine", parseConfig: (raw: unknown) => ({ raw }),
  open: async (config: unknown) => ({ kinds: [], validate: () => [], translate: () => ({ objects: [], problems: [] }), config }) };`;

function file(content: string, name = `p${count++}.ts`): string {
  const path = join(directory, name);
  writeFileSync(path, content, { mode: 0o644 });
  return path;
}
const slotOf = (use: string, more: Partial<Slot> = {}): Slot => ({
  use,
  config: undefined,
  path: "policy[0]",
  ...more,
});
const load = (use: string, kind: PluginKind = "policy", more: Partial<Slot> = {}) =>
  importPlugin(slotOf(use, more), kind, join(directory, "scratch"));
const variant = (from: string, to: string) => file(GOOD.replace(from, to));

test("a good file is loaded, configured and opened", async () => {
  const path = file(GOOD);
  const sha256 = createHash("sha256").update(GOOD).digest("hex");
  const loaded = parsePluginConfig(await load(path, "policy", { sha256, config: { a: 1 } }), "m.yaml");
  expect(loaded).toMatchObject({ source: path, sha256, kind: "policy", config: { raw: { a: 1 } } });
  const source = await openPlugin(loaded, {} as Host, new AbortController().signal);
  expect(source).toMatchObject({ kinds: [], config: { raw: { a: 1 } } });
});

test("a built-in one is found by its name", async () => {
  expect(await load("kubernetes")).toMatchObject({ source: "built-in", plugin: { name: "kubernetes" } });
});

const refusals: readonly [string, () => Promise<unknown>, string][] = [
  [
    "an unknown name",
    () => load("antrea"),
    'policy[0].use: found "antrea", wanted one of kubernetes, calico, or the absolute path of a plugin file',
  ],
  ["a name of Object.prototype", () => load("constructor"), 'policy[0].use: found "constructor", wanted one of'],
  [
    "a missing file",
    () => load(join(directory, "none.ts")),
    "none.ts: found no such file, wanted a file owned by root",
  ],
  ["a directory", () => {
    mkdirSync(join(directory, "d.ts"));
    return load(join(directory, "d.ts"));
  }, "d.ts: found a directory, wanted a file owned by root"],
  ["an unknown extension", () => load(file(GOOD, "p.so")), 'p.so: found the extension ".so", wanted .ts, .js, .mjs'],
  ["a file of somebody else", () => {
    const path = file(GOOD);
    chownSync(path, 1000, 0);
    return load(path);
  }, "found the file owned by user 1000, wanted root (user 0)"],
  ["a file that its group may write", () => {
    const path = file(GOOD);
    chmodSync(path, 0o664);
    return load(path);
  }, "found the file with mode 0664, wanted nobody but root to have write permission"],
  ["a directory that everybody may write", () => {
    const open = join(directory, "open");
    mkdirSync(open);
    chmodSync(open, 0o777);
    return load(file(GOOD, "open/p.ts"));
  }, "open with mode 0777, wanted nobody but root"],
  ["a link out of a directory that everybody may write", () => {
    const target = file(GOOD);
    symlinkSync(target, join(directory, "open", "link.ts"));
    return load(join(directory, "open", "link.ts"));
  }, "open with mode 0777"],
  [
    "another hash",
    () => load(file(GOOD), "policy", { sha256: "0".repeat(64) }),
    `wanted ${"0".repeat(64)} as policy[0].sha256 says`,
  ],
  ["broken code", () => load(file("export default {")), "cannot be imported: "],
  ["code that throws", () => load(file("throw new Error('no luck')")), "cannot be imported: no luck"],
  [
    "an import of its own",
    () => load(file("import './other.ts'; export default {}")),
    "(a plugin is one file: bundle what it imports)",
  ],
  ["no default export", () => load(file("export const a = 1")), "found no default export, wanted export default {"],
  ["text as default export", () => load(file("export default 'x'")), 'found "x" as default export, wanted an object'],
  ["a bad API version", () => load(variant('"1.0"', '"one"')), 'found api "one", wanted "major.minor"'],
  ["another major API version", () => load(variant('"1.0"', '"2.0"')), "found api 2.0, wanted 1.0 to 1.0"],
  ["a newer minor API version", () => load(variant('"1.0"', '"1.1"')), "found api 1.1, wanted 1.0 to 1.0"],
  [
    "an unknown kind",
    () => load(variant('"policy"', '"firewall"')),
    'found kind "firewall", wanted one of datastore, ipam',
  ],
  ["the wrong kind", () => load(file(GOOD + "//"), "ipam"), "found kind policy, wanted ipam for policy[0]"],
  ["a bad name", () => load(variant('"mine"', '"Mine!"')), 'found name "Mine!", wanted lower-case letters'],
  ["no parseConfig", () => load(variant("parseConfig:", "parse:")), "found parseConfig nothing, wanted a function"],
];
for (const [subject, run, message] of refusals) {
  test(`${subject} is refused`, async () => {
    expect(await run().then(() => "loaded", (error) => (error as Error).message)).toContain(message);
  });
}

test("a refused configuration names file and key", async () => {
  const path = variant(
    "(raw: unknown) => ({ raw })",
    "() => { throw Object.assign(new Error('x[0]: found 1, wanted 2'), { path: 'x[0]' }) }",
  );
  const imported = await load(path);
  expect(() => parsePluginConfig(imported, "m.yaml")).toThrow(
    "config m.yaml: policy[0].config.x[0]: found 1, wanted 2",
  );
});

test("an instance without its methods is refused", async () => {
  const path = variant("translate:", "translator:");
  const loaded = parsePluginConfig(await load(path), "m.yaml");
  const opened = openPlugin(loaded, {} as Host, new AbortController().signal);
  expect(await opened.catch((error: Error) => error.message)).toBe(
    `plugin ${path}: open() gave an object without translate, wanted a policy with all of its methods`,
  );
});

test("a failing open names the plugin and keeps the code", async () => {
  const path = variant(
    "async (config: unknown) =>",
    "async (config: unknown) => { throw Object.assign(new Error('away'), { code: 'unavailable' }) },  never: () =>",
  );
  const loaded = parsePluginConfig(await load(path), "m.yaml");
  const error = await openPlugin(loaded, {} as Host, new AbortController().signal).catch((error: Error) => error);
  expect(error).toMatchObject({ code: "unavailable", message: `policy[0]: plugin ${path} cannot be opened: away` });
});

test("a configuration that others may write must not name code", () => {
  const path = join(directory, "manx.yaml");
  writeFileSync(path, "", { mode: 0o600 });
  refuseForeignConfig(path);
  chmodSync(path, 0o666);
  expect(() => refuseForeignConfig(path)).toThrow(
    `config ${path}: names a plugin file, and found the file with mode 0666, wanted nobody but root to have write permission`,
  );
});
