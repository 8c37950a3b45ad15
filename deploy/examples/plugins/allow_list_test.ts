import { afterAll, expect, test } from "bun:test";
import { chmodSync, copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { inspectPlugin } from "../../../src/host/loader.ts";
import { parseCidr } from "../../../src/model/address.ts";
import type { Resource } from "../../../src/model/resource.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import type { PolicySource } from "../../../src/sdk/policy_source.ts";

const directory = mkdtempSync(join(homedir(), ".manx-example-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
const file = join(directory, "allow_list.ts");
copyFileSync(join(import.meta.dir, "allow_list.ts"), file);
chmodSync(file, 0o644);

const { plugin } = await inspectPlugin(file, join(directory, "scratch"));
const source = await plugin.open(
  plugin.parseConfig(undefined),
  {} as Host,
  new AbortController().signal,
) as PolicySource;
const list = (spec: unknown): Resource => ({
  apiVersion: "example.org/v1",
  kind: "AllowList",
  metadata: { name: "office", namespace: "prod" },
  spec,
});

test("the example passes the loader and takes no settings", () => {
  expect(plugin).toMatchObject({ kind: "policy", name: "allow-list" });
  expect(() => plugin.parseConfig({ a: 1 })).toThrow("found settings, wanted none");
});

test("an allow list becomes one policy with one rule", () => {
  const { objects, problems } = source.translate(
    list({ labels: { app: "web" }, from: ["10.1.0.0/16", "192.0.2.7/32"], ports: [80, 443] }),
  );
  expect(problems).toEqual([]);
  expect(objects).toMatchObject([{
    kind: "policy",
    id: "AllowList.example.org/prod/office",
    ingress: [{
      action: "allow",
      protocol: 6,
      source: { nets: [parseCidr("10.1.0.0/16"), parseCidr("192.0.2.7/32")] },
      destination: { ports: [{ first: 80, last: 80 }, { first: 443, last: 443 }] },
    }],
  }]);
});

test("what is wrong is named, refused, and allows nothing where it stands already", () => {
  const bad = list({ from: ["10.1.0.1/16"], ports: [0], port: 1 });
  expect(source.validate(bad).map(({ path, effect }) => `${path} ${effect}`)).toEqual([
    "spec.port refused",
    "spec.from[0] refused",
    "spec.ports[0] refused",
  ]);
  expect(source.translate(bad).objects).toMatchObject([{ ingress: [] }]);
  for (const spec of [undefined, null, 7, [], "x", { labels: 7, from: {}, ports: "x" }]) {
    expect(source.translate(list(spec)).objects).toMatchObject([{ ingress: [] }]);
  }
});
