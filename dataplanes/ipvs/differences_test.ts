/** What differs, said to people. The kernel's side is another rendering, changed a little. */
import { expect, test } from "bun:test";
import { type Address, parseAddress } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { state, workload } from "../../src/model/testdata/small_states.ts";
import { services } from "../../src/model/testdata/services.ts";
import { parseConfig } from "./config.ts";
import { differences, type Found } from "./differences.ts";
import { chainText } from "./gate.ts";
import { formText } from "./gate_table.ts";
import { Renderer } from "./render.ts";
import type { ServiceLink, StrayAddress } from "./service_links.ts";

const LOCAL = [parseAddress("192.0.2.254")];
const wantedOf = (...lines: readonly string[]): DesiredState => ({
  ...state({ workloads: [workload("a", "mxa", ["10.0.0.1"])] }),
  services: services(lines),
});
const rendererOf = (desired: DesiredState): Renderer => {
  const renderer = new Renderer(parseConfig(undefined));
  renderer.update(desired, LOCAL);
  return renderer;
};

const LINK: ServiceLink = { name: "manx-ipvs0", index: 7, isUp: true, count: 0 };

/** A kernel that holds what `desired` comes to. */
function kernelWith(desired: DesiredState) {
  const has = rendererOf(desired);
  return {
    services: {
      ours: new Map([...has.services.keys()].map((key) => {
        const { service, servers } = has.services.get(key)!;
        return [key, { service, servers: new Map(servers) }] as const;
      })),
      foreign: new Set<string>(),
    },
    addresses: new Set(has.addresses.keys()),
    down: [] as ServiceLink[],
    strays: [] as StrayAddress[],
    gate: {
      isThere: true,
      chains: new Map([...has.chains.keys()].map((name) => [name, chainText(has.chains.get(name)!)] as const)),
      sets: new Map([...has.sets.keys()].map((name) => [name, formText(has.sets.get(name)!)] as const)),
      elements: new Map([...has.elements.keys()].map((id) => [id, has.elements.get(id)!] as const)),
    },
  };
}

const foundIn = ({ services, addresses, down, strays, gate }: ReturnType<typeof kernelWith>): Found => ({
  services,
  gate,
  links: {
    keys: () => addresses as Iterable<Address>,
    linkOf: (address) => addresses.has(address) ? LINK : undefined,
    oddities: () => ({ down, strays }),
  },
});

const LINES = [
  "tcp 10.96.0.1:80 > 10.0.0.1:8080 10.0.0.2:8080",
  "udp [fd96::1]:53 > [fd00::1]:5353",
  "tcp node4:30080 > 10.0.0.1:80",
];
const WANTED = wantedOf(...LINES);

test("what is as wanted has no line, with servers that drain and other people's services beside it", () => {
  const kernel = kernelWith(WANTED);
  const [key] = kernel.services.ours.keys();
  const { servers } = kernel.services.ours.get(key!)!;
  servers.set("retired", { ...[...servers.values()][0]!, port: 9, weight: 0 });
  kernel.services.foreign.add("theirs");
  expect(differences(foundIn(kernel), rendererOf(WANTED))).toEqual([]);
});

test("services and servers: missing, not wanted, changed, and somebody else's", () => {
  const kernel = kernelWith(wantedOf(
    "tcp 10.96.0.1:80 > 10.0.0.1:8080 10.0.0.9:8080 | affinity 60",
    "tcp node4:30080 > 10.0.0.1:80",
    "sctp 10.96.0.7:9 > 10.0.0.1:9",
  ));
  const [key] = rendererOf(wantedOf(LINES[1]!)).services.keys();
  kernel.services.foreign.add(key!);
  const lines = differences(foundIn(kernel), rendererOf(WANTED)).filter((line) => / (service|server) /.test(line));
  expect(lines).toEqual([
    "- server 10.0.0.9:8080 weight 1 of service tcp 10.96.0.1:80",
    "+ server 10.0.0.2:8080 weight 1 of service tcp 10.96.0.1:80",
    "- service sctp 10.96.0.7:9 rr with 1 server",
    "- service tcp 10.96.0.1:80 rr persistent 60",
    "+ service tcp 10.96.0.1:80 rr",
    "+ service udp [fd96::1]:53 rr with 1 server (somebody else has it)",
  ].sort((a, b) => a.slice(2) < b.slice(2) ? -1 : 1));
});

test("addresses and links: missing, not wanted, with another prefix, down", () => {
  const kernel = kernelWith(WANTED);
  kernel.addresses.delete(parseAddress("10.96.0.1"));
  kernel.addresses.add(parseAddress("10.96.0.66"));
  kernel.down.push(LINK);
  kernel.strays.push({ link: LINK, address: parseAddress("10.97.0.1"), prefix: 24 });
  expect(differences(foundIn(kernel), rendererOf(WANTED))).toEqual([
    "+ address 10.96.0.1/32",
    "- address 10.96.0.66/32 of manx-ipvs0",
    "- address 10.97.0.1/24 of manx-ipvs0",
    "- link manx-ipvs0 down",
    "+ link manx-ipvs0 up",
  ]);
});

test("the gate: elements in nft's words, chains by their rules, sets by their type, and none of it", () => {
  const kernel = kernelWith(WANTED);
  const { gate } = kernel;
  for (const id of gate.elements.keys()) {
    if (/^services4 /.test(id) && id.includes("\x0a\x60\0\x01")) gate.elements.set(id, { kind: "drop" });
    if (/^services6 /.test(id)) gate.elements.delete(id);
  }
  gate.chains.delete("serve");
  gate.chains.set("input", JSON.stringify([null, ["a rule", "another", "a third"]]));
  gate.chains.set("theirs", JSON.stringify([null, ["a rule"]]));
  gate.sets.set("hairpin6", "another form");
  expect(differences(foundIn(kernel), rendererOf(WANTED))).toEqual([
    "- table inet manx-ipvs chain input with 3 rules",
    "+ table inet manx-ipvs chain input with 2 rules",
    "+ table inet manx-ipvs chain serve with 2 rules",
    "- table inet manx-ipvs chain theirs with 1 rule",
    "- table inet manx-ipvs set hairpin6 of another type",
    "+ table inet manx-ipvs set hairpin6",
    "- table inet manx-ipvs set services4 10.96.0.1 . tcp . 80 : drop",
    "+ table inet manx-ipvs set services4 10.96.0.1 . tcp . 80 : goto serve",
    "+ table inet manx-ipvs set services6 fd96::1 . udp . 53 : goto serve",
  ].sort((a, b) => a.slice(2) < b.slice(2) ? -1 : a.slice(2) > b.slice(2) ? 1 : 0));
  expect(differences({ ...foundIn(kernelWith(WANTED)), gate: { ...gate, isThere: false } }, rendererOf(WANTED)))
    .toEqual([
      "+ table inet manx-ipvs",
    ]);
});

test("where no services are wanted, all that is there of ours is too much", () => {
  expect(differences(foundIn(kernelWith(wantedOf(LINES[0]!))), undefined)).toEqual([
    "- service tcp 10.96.0.1:80 rr with 2 servers",
    "- address 10.96.0.1/32 of manx-ipvs0",
    "- table inet manx-ipvs",
  ]);
});

test("of many lines the first are told, and how many more there are", () => {
  const many = wantedOf(...Array.from({ length: 200 }, (_, i) => `tcp 10.96.1.${i}:80 > 10.0.0.1:80`));
  const lines = differences(foundIn(kernelWith(wantedOf())), rendererOf(many));
  expect(lines.filter((line) => line.startsWith("+ service")).length).toBe(50);
  expect(lines).toContain("~ services and servers: 150 lines more");
  expect(lines).toContain("~ addresses: 150 lines more");
  expect(lines).toContain("~ table inet manx-ipvs: 350 lines more");
});
