import { afterAll, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { openKinds, validateManifests } from "./validate.ts";

const scratch = mkdtempSync(join(tmpdir(), "manx-validate-test-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const registry = await openKinds(scratch);
const validate = (...texts: string[]) =>
  validateManifests(texts.map((text, i) => ({ file: `${i + 1}.yaml`, text })), registry);

const pool = (name: string, cidr: string) =>
  `apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: { name: ${name} }\nspec: { cidr: ${cidr} }\n`;
const endpoint = (name: string) =>
  `apiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata: { name: ${name} }\nspec: { node: a, interfaceName: tap0 }\n`;
const tiered =
  "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: { name: p }\nspec: { tier: t }\n";
const tier = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: { name: t }\nspec: { order: 1 }\n";

test("everything that is wrong is told, past what one apply would list", () => {
  const bad = "apiVersion: v1\nkind: Namespace\nmetadata: { name: BAD }\n";
  const [file] = validate(Array(50).fill(bad).join("---\n"));
  expect(file!.refusals.length).toBe(50);
  expect(file!.refusals[49]).toBe(
    '1.yaml: document 50, line 199: metadata.name: found "BAD", wanted a name of lower-case letters, digits, - and ., at most 253',
  );
});

test("good and bad files are told apart; each has its own refusals", () => {
  expect(validate(tier, "a: [", "", `${tier}---\nkind: Frob`)).toEqual([
    { file: "1.yaml", resources: 1, refusals: [], notes: [] },
    {
      file: "2.yaml",
      resources: 0,
      refusals: [expect.stringContaining("2.yaml: document 1, line 1, column 5: broken YAML")],
      notes: [],
    },
    { file: "3.yaml", resources: 0, refusals: ["3.yaml: found no resource, wanted at least one"], notes: [] },
    { file: "4.yaml", resources: 1, refusals: [expect.stringContaining("4.yaml: document 2, line 6")], notes: [] },
  ]);
});

test("what excludes each other in one manifest is refused, as apply refuses it", () => {
  expect(validate(`${pool("a", "10.0.0.0/8")}---\n${pool("b", "10.1.0.0/16")}`)[0]!.refusals).toEqual([
    "1.yaml: document 2, line 9: spec.cidr: found 10.1.0.0/16, which overlaps pool a (10.0.0.0/8), wanted a prefix of its own",
  ]);
  expect(validate(`${endpoint("a")}---\n${endpoint("b")}`)[0]!.refusals.join()).toContain(
    "the endpoint default/a has already",
  );
  expect(validate(`${tier}---\n${tier}`)[0]!.refusals.join()).toContain("a second time");
});

test("what only a datastore could tell is a note, and none where the files bring it themselves", () => {
  expect(validate(tiered)[0]).toEqual({
    file: "1.yaml",
    resources: 1,
    refusals: [],
    notes: ['1.yaml: document 1, line 4: spec.tier: "t" has to be there already'],
  });
  expect(validate(tiered, tier).flatMap(({ notes }) => notes)).toEqual([]);
});

test("a configuration's own dialect brings its kinds; one that wants a node is refused", async () => {
  // A checkout may lie where anybody may write: a plugin from there is refused.
  using stack = new DisposableStack();
  const directory = mkdtempSync(join(homedir(), ".manx-validate-"));
  stack.defer(() => rmSync(directory, { recursive: true }));
  const allowList = join(directory, "allow_list.ts");
  copyFileSync(join(import.meta.dir, "../../../deploy/examples/plugins/allow_list.ts"), allowList);
  const slot = (use: string) => ({ use, config: undefined, path: "policy[0]" });
  const own = await openKinds(scratch, { policy: [slot(allowList)], file: "/etc/hosts" });
  const text =
    "apiVersion: example.org/v1\nkind: AllowList\nmetadata: { name: x }\nspec: { ports: [0], from: [10.0.0.0/8] }";
  expect(validateManifests([{ file: "x.yaml", text }], own)[0]!.refusals).toEqual([
    "x.yaml: document 1, line 4: spec.ports[0]: found 0, wanted 1 to 65535",
  ]);
  expect(validate(text)[0]!.refusals.join()).toContain("found AllowList of example.org/v1, wanted kind");
  expect(openKinds(scratch, { policy: [slot("nftables")], file: "c.yaml" })).rejects.toThrow(
    'policy[0].use: found "nftables"',
  );
});
