import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { formatAddress, parseAddress } from "../model/address.ts";
import { partyName } from "./expectation.ts";
import { fillPlaceholders, type Scenario, ScenarioError } from "./scenario.ts";
import { parseScenario } from "./scenario_parser.ts";

const EXAMPLES = join(import.meta.dir, "../../deploy/examples/scenarios");

/** A scenario around `world` and the lines of one step. */
const around = (world: string, lines = "a -> b tcp/80 allow"): string =>
  `scenario: t\nworld:\n${world.replace(/^/gm, "  ")}\nsteps:\n  - name: one\n    expect: |\n${
    lines.replace(/^/gm, "      ")
  }\n`;
const PODS = "pods:\n  - { name: a }\n  - { name: b, serves: [tcp/80] }";

function problems(text: string): readonly string[] {
  try {
    parseScenario("s.yaml", text);
    return [];
  } catch (error) {
    if (!(error instanceof ScenarioError)) throw error;
    return error.problems;
  }
}

test("the examples parse, and every step that changes something knows the line its manifests begin on", () => {
  const files = readdirSync(EXAMPLES).filter((name) => name.endsWith(".yaml"));
  expect(files.length).toBe(6);
  for (const file of files) {
    const text = readFileSync(join(EXAMPLES, file), "utf8");
    const lines = text.split("\n");
    const scenario = parseScenario(file, text);
    for (const { action, expect: expectations } of scenario.steps) {
      if (action !== undefined) {
        expect(lines[action.manifest.line - 1]!.trim()).toBe(action.manifest.text.split("\n")[0]!.trim());
      }
      for (const line of expectations) expect(lines[line.line - 1]!.trim()).toBe(line.text);
    }
  }
});

test("an anchor is one text in two steps", () => {
  const scenario = parseScenario("03", readFileSync(join(EXAMPLES, "03-redis.yaml"), "utf8"));
  expect(scenario.steps[3]!.expect.map((line) => line.text)).toEqual(
    scenario.steps[1]!.expect.map((line) => line.text),
  );
});

const first = (scenario: Scenario) =>
  scenario.steps[0]!.expect[0]!.pairs.map(({ from, to, families }) =>
    `${partyName(from)}>${partyName(to)} ${families.join("+")}`
  );

for (
  const [what, line, world, pairs] of [
    ["a pod and another", "a -> b tcp/80 allow", PODS, ["a>b 4+6"]],
    ["icmp is IPv4 and icmpv6 IPv6", "a -> b icmp deny", PODS, ["a>b 4"]],
    ["icmpv6", "a -> b icmpv6 deny", PODS, ["a>b 6"]],
    ["all pods, and nobody to itself", "* -> b tcp/80 allow", PODS, ["a>b 4+6"]],
    [
      "all pods of a namespace",
      "n/* -> b tcp/80 allow",
      `namespaces: { n: {} }\n${PODS}\n  - { name: c, namespace: n }\n  - { name: d, namespace: n }`,
      [
        "n/c>b 4+6",
        "n/d>b 4+6",
      ],
    ],
    [
      "a host has the family of its address",
      "h -> b tcp/80 allow",
      `${PODS}\nhosts: [ { name: h, address: 172.17.0.5 } ]`,
      ["h>b 4"],
    ],
    [
      "a node's port that is translated",
      "h -> node:n tcp/8080 allow",
      `nodes: [ { name: n } ]\n${PODS}\nhosts: [ { name: h, address: 172.17.0.5 } ]\ndnat: [ { node: n, port: tcp/8080, to: b, toPort: 80 } ]`,
      ["h>node:n 4"],
    ],
    [
      "a node's other link",
      "a -> node:n@tun0 icmp deny",
      `nodes: [ { name: n } ]\n${PODS}\nhosts: [ { name: h, address: 172.17.0.5, link: tun0 } ]`,
      ["a>node:n@tun0 4"],
    ],
    ["one family only", "a -> b tcp/80 allow", `families: [6]\n${PODS}`, ["a>b 6"]],
    ["a port nobody serves, denied", "a -> b udp/7 deny", PODS, ["a>b 4+6"]],
    ["spaces and a comment", "a->b   tcp/80   allow   # why", PODS, ["a>b 4+6"]],
  ] as const
) {
  test(`a line speaks of its ends: ${what}`, () =>
    expect(first(parseScenario("s", around(world, line)))).toEqual([...pairs]));
}

for (
  const [what, text, wanted] of [
    ["broken YAML", "scenario: [", "s.yaml:1: "],
    ["a list at the top", "- a", "s.yaml:1: found a list, wanted a mapping"],
    [
      "an unknown field",
      "scenario: t\nworlds: {}\nsteps: []",
      's.yaml:2: worlds: found the field "worlds", wanted one of scenario, world, steps',
    ],
    ["no steps", "scenario: t\nsteps: []", "s.yaml:2: steps: found no steps, wanted at least one"],
    [
      "no expectation at all",
      "scenario: t\nsteps: [ { name: x } ]",
      "s.yaml:2: steps: found no expectation in any step",
    ],
    [
      "a title that is a number",
      "scenario: 1\nsteps: [ { expect: x } ]",
      "s.yaml:1: scenario: found 1, wanted one line of text",
    ],
    [
      "a pod's unknown field",
      around("pods:\n  - { name: a, label: {} }\n  - { name: b, serves: [tcp/80] }"),
      's.yaml:4: world.pods[0].label: found the field "label"',
    ],
    [
      "a pod named twice",
      around(`${PODS}\n  - { name: a }`),
      "s.yaml:6: world.pods[2].name: found the pod default/a again",
    ],
    ["a pod without a name", around(`${PODS}\n  - { labels: {} }`), 's.yaml:6: world.pods[2]: found no field "name"'],
    [
      "a pod of no namespace",
      around(`${PODS}\n  - { name: c, namespace: x }`),
      'pods[2].namespace: found the namespace "x", wanted one of default',
    ],
    [
      "a pod on no node",
      around(`${PODS}\n  - { name: c, node: x }`),
      'pods[2].node: found the node "x", wanted one of kube-01',
    ],
    [
      "a label that YAML reads as a boolean",
      around("pods:\n  - { name: a, labels: { on: true } }\n  - { name: b, serves: [tcp/80] }"),
      "s.yaml:4: world.pods[0].labels.on: found true, wanted text",
    ],
    [
      "a service of no protocol",
      around("pods:\n  - { name: a }\n  - { name: b, serves: [80] }"),
      "pods[1].serves[0]: found 80, wanted tcp/PORT",
    ],
    [
      "a port that is none",
      around("pods:\n  - { name: a }\n  - { name: b, serves: [tcp/80, tcp/65536] }"),
      'found "tcp/65536", wanted tcp/PORT',
    ],
    [
      "a host's bad address",
      around(`${PODS}\nhosts: [ { name: h, address: 172.17.0 } ]`),
      'hosts[0].address: found "172.17.0", wanted an IPv4 or IPv6 address',
    ],
    [
      "a host in the pods' pool",
      around(`${PODS}\nhosts: [ { name: h, address: 10.244.0.9 } ]`),
      "found 10.244.0.9, which lies in the pods' pool 10.244.0.0/16",
    ],
    [
      "a host with a node's address",
      around(`${PODS}\nhosts: [ { name: h, address: 192.168.2.1, link: eth0 } ]`),
      "found 192.168.2.1, which the lab gives to kube-01",
    ],
    [
      "a host named as a pod",
      around(`${PODS}\nhosts: [ { name: a, address: 172.17.0.5 } ]`),
      'hosts[0].name: found "a", which is also a pod',
    ],
    [
      "a host of a family that is off",
      around(`families: [4]\n${PODS}\nhosts: [ { name: h, address: "2001:db8::1" } ]`),
      "found 2001:db8::1, wanted an address of world.families, IPv4",
    ],
    [
      "a link named as a pod's",
      around(`${PODS}\nhosts: [ { name: h, address: 172.17.0.5, link: mx0 } ]`),
      'hosts[0].link: found "mx0"',
    ],
    [
      "a translated port to nobody",
      around(`${PODS}\ndnat: [ { port: tcp/1, to: x, toPort: 80 } ]`),
      'dnat[0].to: found "x", wanted a pod',
    ],
    [
      "a translated port to a port that is not served",
      around(`${PODS}\ndnat: [ { port: tcp/1, to: b, toPort: 81 } ]`),
      "dnat[0].toPort: found tcp/81, which default/b does not serve, wanted one of tcp/80",
    ],
    ["no families", around(`families: []\n${PODS}`), "families: found no family"],
    ["a family of 5", around(`families: [5]\n${PODS}`), "families[0]: found 5, wanted 4 or 6"],
    [
      "an unknown end",
      around(PODS, "a -> c tcp/80 deny"),
      's.yaml:9: steps[0].expect: found "c", which is no pod, host or node, wanted one of a, b, node:kube-01',
    ],
    ["an unknown namespace", around(PODS, "x/* -> b tcp/80 allow"), 'found the namespace "x", wanted one of default'],
    ["an unknown node", around(PODS, "a -> node:x icmp allow"), 'found the node "x", wanted one of kube-01'],
    [
      "an unknown link",
      around(PODS, "a -> node:kube-01@tun0 icmp allow"),
      'found the interface "tun0" of kube-01, wanted one of eth0',
    ],
    ["an arrow too few", around(PODS, "a b tcp/80 allow"), 'found "a b tcp/80 allow", wanted SOURCE -> TARGET'],
    ["no verdict", around(PODS, "a -> b tcp/80 maybe"), 'found "maybe" at the end of the line, wanted allow or deny'],
    ["a port with icmp", around(PODS, "a -> b icmp/8 allow"), "found icmp/8, wanted icmp alone"],
    ["no port with tcp", around(PODS, "a -> b tcp allow"), "found tcp, wanted tcp/PORT"],
    [
      "a port nobody serves, allowed",
      around(PODS, "a -> b tcp/81 allow"),
      "found allow to tcp/81, which b does not serve",
    ],
    [
      "a node's port that nothing serves, allowed",
      around(PODS, "a -> node:kube-01 tcp/22 allow"),
      "found allow to tcp/22, which node:kube-01 does not serve",
    ],
    ["a pod and itself alone", around(PODS, "b -> b tcp/80 allow"), 'found "b -> b", which tries nothing'],
    [
      "icmp to an IPv6 host",
      around(`${PODS}\nhosts: [ { name: h, address: "2001:db8::1" } ]`, "a -> h icmp deny"),
      'found "a -> h", which tries nothing, wanted two different ends that both have an IPv4 address',
    ],
    [
      "apply and delete at once",
      `${around(PODS)}    apply: x\n    delete: y\n`,
      "steps[0].delete: found apply and delete in one step",
    ],
    [
      "a placeholder of nobody",
      `${around(PODS)}    apply: |\n      kind: X\n      ip: \${ip:c}\n`,
      "s.yaml:12: steps[0].apply: found ${ip:c}",
    ],
    [
      "a placeholder of another kind",
      `${around(PODS)}    apply: |\n      ip: \${name:a}\n`,
      "s.yaml:11: steps[0].apply: found ${name:a}, wanted ${ip:NAME}",
    ],
    ["a manifest that is no YAML", `${around(PODS)}    apply: |\n      kind: X\n      a: [\n`, "s.yaml:1"],
  ] as const
) test(`refused with its place: ${what}`, () => expect(problems(text).join("\n")).toContain(wanted));

test("everything that is wrong with a file is said at once", () => {
  expect(
    problems(
      around(`${PODS}\nhosts: [ { name: h, address: x } ]\ndnat: [ {} ]`, "a -> c tcp/80 allow\nb -> a tcp/9 allow"),
    ).length,
  ).toBeGreaterThan(4);
});

test("placeholders stand for addresses of either family, unknown ones stay as they are", () => {
  const known = new Map([["redis", [parseAddress("10.0.0.1"), parseAddress("fd00::1")]]]);
  const filled = fillPlaceholders(
    "${ip:redis} ${ip6:redis}/128 ${ip4:redis} ${ip:x}",
    (name, family) =>
      known.get(name)?.find((address) => family === undefined || (family === 4) === (address.length === 4)),
  );
  expect(filled).toBe(`${formatAddress(parseAddress("10.0.0.1"))} fd00::1/128 10.0.0.1 \${ip:x}`);
});
