import { expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseConfig } from "../config.ts";
import { DataplaneRecord } from "./record.ts";

function scratch(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), "manx-record-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}
const configOf = (...uses: readonly string[]) =>
  parseConfig(JSON.stringify({ dataplane: uses.map((use) => ({ use, config: { of: use } })) }), "test.yaml");
const usesIn = (record: DataplaneRecord, ...uses: readonly string[]) =>
  record.effective(configOf(...uses)).dataplanes.map(({ use, config }) => `${use} ${JSON.stringify(config)}`);

test("a node that has never run has nothing recorded, and its configuration holds", () => {
  using directory = scratch();
  const record = DataplaneRecord.read(directory.path);
  expect(record.written).toEqual([]);
  expect(usesIn(record, "nftables")).toEqual(['nftables {"of":"nftables"}']);
  expect(readdirSync(directory.path)).toEqual([]);
});

test("a switch holds after a restart, for as long as the configuration names what it named then", () => {
  using directory = scratch();
  DataplaneRecord.read(directory.path).switchTo(configOf("nftables", "ipvs"), "nftables", {
    use: "iptables",
    config: { pollMs: 500 },
  });
  const record = DataplaneRecord.read(directory.path);
  expect(usesIn(record, "nftables", "ipvs")).toEqual(['iptables {"pollMs":500}', 'ipvs {"of":"ipvs"}']);
  expect(record.switchedIn(configOf("nftables", "ipvs"))?.from).toBe("nftables");
  for (const edited of [["nftables"], ["iptables", "ipvs"], ["memory", "ipvs"]]) {
    expect(usesIn(record, ...edited)).toEqual(edited.map((use) => `${use} {"of":"${use}"}`));
    expect(record.switchedIn(configOf(...edited))).toBeUndefined();
  }
  record.switchTo(configOf("nftables", "ipvs"), "nftables", undefined);
  expect(usesIn(DataplaneRecord.read(directory.path), "nftables", "ipvs")[0]).toStartWith("nftables ");
});

test("who has written is known until it is swept, by its latest configuration", () => {
  using directory = scratch();
  const record = DataplaneRecord.read(directory.path);
  record.willWrite([{ use: "nftables" }]);
  record.willWrite([{ use: "iptables", config: { pollMs: 500 } }]);
  record.willWrite([{ use: "iptables", config: { pollMs: 700 } }]);
  const written = () => DataplaneRecord.read(directory.path).written;
  expect(written()).toEqual([{ use: "nftables" }, { use: "iptables", config: { pollMs: 700 } }]);
  record.swept("nftables");
  record.swept("nftables");
  expect(written()).toEqual([{ use: "iptables", config: { pollMs: 700 } }]);
  expect(readdirSync(directory.path)).toEqual(["dataplanes.json"]);
});

test("a file that we have not written is refused, with what holds without it", () => {
  using directory = scratch();
  for (
    const text of [
      "",
      "{",
      "[]",
      "null",
      '{"version":2}',
      '{"version":1,"written":[1]}',
      '{"version":1,"written":[],"switched":{}}',
    ]
  ) {
    writeFileSync(join(directory.path, "dataplanes.json"), text);
    expect(() => DataplaneRecord.read(directory.path)).toThrow(
      /state file .*dataplanes.json: found .*wanted what manx wrote/,
    );
  }
});
