import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseAddress, parseCidr } from "../model/address.ts";
import { ConfigError } from "../sdk/errors.ts";
import { inSlot, loadConfig, parseConfig } from "./config.ts";

const read = (text: string) => parseConfig(text, "m.yaml");

test("an empty configuration has every default", () => {
  const config = read("node: a");
  expect(config).toMatchObject({
    node: "a",
    stateDirectory: "/var/lib/manx",
    datastore: { use: "sqlite" },
    ipam: { use: "block" },
    cni: { use: "veth" },
    policy: [{ use: "kubernetes" }, { use: "calico" }],
    dataplanes: [{ use: "nftables" }],
    routing: { use: "none" },
    api: { socket: "/run/manx/manx.sock" },
    log: { level: "info", format: "text" },
    cutEstablishedFlows: true,
  });
  expect(config.addresses).toBeUndefined();
  expect(config.services).toBeUndefined();
  expect(config.policyOptions.failsafe.inbound).toContainEqual({ protocol: 6, port: 22 });
  expect(config.policyOptions.failsafe.outbound).toContainEqual({ protocol: 17, port: 53 });
});

test("services that are not enabled are off, whatever else is said of them", () => {
  expect(read("node: a\nservices: { nodePortAddresses: [192.0.2.0/24] }").services).toBeUndefined();
  expect(read("node: a\nservices: { enabled: true }").services).toEqual({ nodePortAddresses: [] });
});

test("every key is read", () => {
  const config = read(`
node: kube-02.example
addresses: [192.0.2.1, "fd00::1"]
stateDirectory: /state
datastore: { use: sqlite, config: { path: /db } }
dataplane: [{ use: nftables }, { use: /etc/p.ts, sha256: ${"AB".repeat(32)} }]
policy: [{ use: calico }]
api: { socket: /s }
log: { level: debug, format: json }
policyOptions: { failsafe: { inbound: [tcp/22, udp/68, sctp/1], outbound: [] } }
cutEstablishedFlows: false
services: { enabled: true, nodePortAddresses: [192.0.2.0/24, "2001:db8::/32"] }
`);
  expect(config.services).toEqual({ nodePortAddresses: ["192.0.2.0/24", "2001:db8::/32"].map(parseCidr) });
  expect(config.cutEstablishedFlows).toBe(false);
  expect(config.addresses).toEqual([parseAddress("192.0.2.1"), parseAddress("fd00::1")]);
  expect(config.datastore).toEqual({ use: "sqlite", config: { path: "/db" }, path: "datastore" });
  expect(config.dataplanes[1]).toEqual({
    use: "/etc/p.ts",
    config: undefined,
    sha256: "ab".repeat(32),
    path: "dataplane[1]",
  });
  expect(config.policyOptions.failsafe).toEqual({
    inbound: [{ protocol: 6, port: 22 }, { protocol: 17, port: 68 }, { protocol: 132, port: 1 }],
    outbound: [],
  });
});

const faults: readonly [string, string, string][] = [
  ["broken YAML", "node: [", "config m.yaml: line 1, column 8: found broken YAML"],
  ["a list", "- a", "config m.yaml: line 1: config: found a list, wanted a mapping"],
  [
    "an unknown key",
    "node: a\ndatastor: { use: sqlite }",
    "config m.yaml: line 2: datastor: found an unknown key, wanted one of node, addresses,",
  ],
  [
    "an unknown key inside",
    "node: a\napi:\n  socket: /s\n  port: 1",
    "config m.yaml: line 4: api.port: found an unknown key, wanted one of socket",
  ],
  [
    "an unknown key of a slot",
    "node: a\npolicy:\n- use: calico\n  conf: 1",
    "config m.yaml: line 4: policy[0].conf: found an unknown key, wanted one of use, config, sha256",
  ],
  ["a slot that is text", "node: a\nipam: block", 'config m.yaml: line 2: ipam: found "block", wanted a mapping'],
  [
    "a slot without use",
    "node: a\nipam: {}",
    "config m.yaml: line 2: ipam.use: found nothing, wanted the name of a built-in plugin",
  ],
  [
    "a relative plugin file",
    "node: a\nipam: { use: ./a.ts }",
    'config m.yaml: line 2: ipam.use: found "./a.ts", wanted the name of a built-in',
  ],
  [
    "a short hash",
    "node: a\nipam: { use: /a.ts, sha256: abc }",
    'config m.yaml: line 2: ipam.sha256: found "abc", wanted 64 hex digits',
  ],
  [
    "a hash of a built-in plugin",
    `node: a\nipam: { use: block, sha256: ${"a".repeat(64)} }`,
    "ipam.sha256: found a hash of a built-in plugin",
  ],
  [
    "no policy dialect",
    "node: a\npolicy: []",
    "config m.yaml: line 2: policy: found an empty list, wanted at least one plugin",
  ],
  [
    "a dialect twice",
    "node: a\npolicy: [{ use: calico }, { use: calico }]",
    'policy[1].use: found "calico" a second time, wanted each plugin once',
  ],
  [
    "a bad node name",
    "node: Kube_01",
    'config m.yaml: line 1: node: found "Kube_01", wanted a name of lower-case letters',
  ],
  ["a node name that is a number", "node: 7", "config m.yaml: line 1: node: found 7, wanted a name"],
  [
    "a bad address",
    "node: a\naddresses: [10.0.0.256]",
    'config m.yaml: line 2: addresses[0]: found "10.0.0.256", wanted an IPv4 or IPv6 address',
  ],
  [
    "a prefix of node ports with host bits",
    "node: a\nservices:\n  nodePortAddresses: [10.0.0.1/8]",
    'config m.yaml: line 3: services.nodePortAddresses[0]: found "10.0.0.1/8", wanted the network itself, 10.0.0.0/8',
  ],
  [
    "services that are a flag",
    "node: a\nservices: true",
    "config m.yaml: line 2: services: found true, wanted a mapping",
  ],
  ["a relative directory", "node: a\nstateDirectory: var", 'stateDirectory: found "var", wanted an absolute path'],
  [
    "a socket path too long",
    `node: a\napi: { socket: /${"s".repeat(120)} }`,
    "api.socket: found a path of 121 bytes, wanted at most 107",
  ],
  [
    "a bad log level",
    "node: a\nlog: { level: loud }",
    'log.level: found "loud", wanted one of debug, info, warn, error',
  ],
  [
    "a bad failsafe port",
    "node: a\npolicyOptions: { failsafe: { inbound: [tcp/0] } }",
    'policyOptions.failsafe.inbound[0]: found "tcp/0", wanted tcp/PORT',
  ],
  [
    "a failsafe port too high",
    "node: a\npolicyOptions: { failsafe: { inbound: [tcp/65536] } }",
    'found "tcp/65536", wanted tcp/PORT',
  ],
  [
    "a flag that is text",
    "node: a\ncutEstablishedFlows: yes",
    'line 2: cutEstablishedFlows: found "yes", wanted true or false',
  ],
  ["a key twice", "node: a\nnode: b", "config m.yaml: line 2, column 1: found broken YAML"],
];
for (const [subject, text, message] of faults) {
  test(`${subject} is refused with its place`, () => {
    expect(() => read(text)).toThrow(message);
  });
}

test("a missing file and a directory are named", () => {
  const directory = mkdtempSync(join(tmpdir(), "manx-config-"));
  try {
    expect(() => loadConfig(join(directory, "no.yaml"))).toThrow(
      `config ${directory}/no.yaml: found no such file, wanted a YAML file`,
    );
    expect(() => loadConfig(directory)).toThrow(`config ${directory}: found a directory, wanted a YAML file`);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test("a plugin's own ConfigError gets the path of its slot", () => {
  const slot = { use: "block", config: {}, path: "ipam" };
  expect(inSlot(new ConfigError("pools[1].cidr", '"x"', "a prefix"), slot, "m.yaml").message)
    .toBe('config m.yaml: ipam.config.pools[1].cidr: found "x", wanted a prefix');
  expect(inSlot(new ConfigError("", "a list", "a mapping"), slot, "m.yaml").message)
    .toBe("config m.yaml: ipam.config: found a list, wanted a mapping");
});
