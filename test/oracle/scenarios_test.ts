/** Every scenario that the lab tries with real packets, as pure evaluation. */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { judgeIn, type Machine, manifestsOf, type Network, type Pod } from "./network.ts";
import { findEnd, readManifests } from "./sketch.ts";

const ROOT = join(import.meta.dir, "../..");
const FOLDERS = ["deploy/examples/scenarios", "test/lab/scenarios"];
const FILES = FOLDERS.flatMap((folder) =>
  readdirSync(join(ROOT, folder)).filter((name) => name.endsWith(".yaml")).map((name) => `${folder}/${name}`)
);

interface World {
  readonly families?: readonly number[];
  readonly nodes?: readonly { name: string }[];
  readonly namespaces?: Record<string, { labels?: Record<string, string> } | null>;
  readonly pods: readonly {
    name: string;
    namespace?: string;
    node?: string;
    labels?: Record<string, string>;
    serviceAccount?: string;
    serves?: readonly string[];
  }[];
  readonly hosts?: readonly { name: string; address: string; link?: string; node?: string }[];
  readonly dnat?: readonly { node: string; port: string; to: string; toPort: number }[];
}

interface Scenario {
  readonly world: World;
  readonly steps: readonly { name: string; apply?: string; delete?: string; expect?: string }[];
}

/** Addresses as the lab gives them: nodes 192.168.2.N on eth0, other links 192.168.3.N, counted over all nodes. */
function networkOf({ families = [4, 6], nodes = [{ name: "kube-01" }], pods, hosts = [], dnat = [] }: World): Network {
  const both = (
    v4: string,
    v6: string,
  ) => [...(families.includes(4) ? [v4] : []), ...(families.includes(6) ? [v6] : [])];
  const placed = hosts.map((host, i) => ({
    name: host.name,
    addresses: [host.address],
    node: host.node ?? nodes[0]!.name,
    link: host.link ?? `h${i}`,
  }));
  const links = nodes.flatMap(({ name }) =>
    [...new Set(placed.filter(({ node, link }) => node === name && link !== "eth0").map(({ link }) => link))]
      .map((link) => ({ node: name, link }))
  ).map((each, i) => ({ ...each, addresses: both(`192.168.3.${i + 1}`, `fd02:3::${i + 1}`) }));
  const machines = nodes.map(({ name }, i): Machine => ({
    name,
    links: Object.fromEntries([
      ["eth0", both(`192.168.2.${i + 1}`, `fd02::${i + 1}`)] as const,
      ...links.filter(({ node }) => node === name).map(({ link, addresses }) => [link, addresses] as const),
    ]),
  }));
  const placedPods = pods.map((pod, i): Pod => ({
    namespace: pod.namespace ?? "default",
    name: pod.name,
    node: pod.node ?? nodes[0]!.name,
    link: `mx${i}`,
    addresses: both(`10.244.0.${i + 2}`, `fd00:10:244::${i + 2}`),
    labels: pod.labels ?? {},
    ports: (pod.serves ?? []).map((text) => {
      const [, protocol, port, name] = /^(\w+)\/(\d+)(?:=(.+))?$/.exec(text)!;
      return { protocol: protocol!, port: Number(port), ...(name === undefined ? {} : { name }) };
    }),
    ...(pod.serviceAccount === undefined ? {} : { serviceAccount: pod.serviceAccount }),
  }));
  const network = { nodes: machines, pods: placedPods, hosts: placed, dnat: [] };
  return {
    ...network,
    dnat: dnat.map(({ node, port, to, toPort }) => {
      const [protocol, number] = port.split("/") as [string, string];
      const target = findEnd(network, to) as { pod: Pod };
      return { node, protocol, port: Number(number), to: target.pod, toPort };
    }),
  };
}

const keyOf = (manifest: any): string =>
  [manifest.apiVersion, manifest.kind, manifest.metadata.namespace ?? "default", manifest.metadata.name].join(" ");

/** `pod`, `namespace/pod`, `namespace/*`, `*`, a host, `node:NAME`. */
function namesOf(network: Network, pattern: string): string[] {
  const [name, namespace] = pattern.split("/").toReversed() as [string, string | undefined];
  if (name !== "*") return [pattern];
  return network.pods.filter((pod) => namespace === undefined || pod.namespace === namespace).map((pod) =>
    `${pod.namespace}/${pod.name}`
  );
}

/** `${ip:NAME}`, `${ip4:NAME}`, `${ip6:NAME}`. */
function fillIn(network: Network, text: string): string {
  return text.replace(/\$\{ip([46])?:([^}]+)\}/g, (_, family, name) => {
    const end = findEnd(network, name);
    const addresses = "pod" in end ? end.pod.addresses : "host" in end ? end.host.addresses : end.machine.links.eth0!;
    return addresses.find((address) => family === undefined || address.includes(":") === (family === "6"))!;
  });
}

for (const file of FILES) {
  test(file, () => {
    const { world, steps } = parse(readFileSync(join(ROOT, file), "utf8")) as Scenario;
    const network = networkOf(world);
    const applied = new Map<string, unknown>();
    const setAll = (manifests: readonly unknown[]) => manifests.forEach((each) => applied.set(keyOf(each), each));
    setAll(
      Object.entries(world.namespaces ?? {}).map(([name, given]) => ({
        apiVersion: "v1",
        kind: "Namespace",
        metadata: { name, labels: given?.labels ?? {} },
      })),
    );
    setAll(manifestsOf(network));
    let lines = 0;
    for (const step of steps) {
      setAll(readManifests(fillIn(network, step.apply ?? "")));
      readManifests(fillIn(network, step.delete ?? "")).forEach((each) => applied.delete(keyOf(each)));
      const judge = judgeIn(network, [...applied.values()]);
      expect(judge.problems).toEqual([]);
      for (const line of (step.expect ?? "").split("\n").map((each) => each.replace(/#.*/, "").trim())) {
        if (line === "") continue;
        const [from, , to, what, verdict] = line.split(/\s+/) as [string, string, string, string, string];
        const [protocol, port] = what.split("/") as [string, string | undefined];
        for (const source of namesOf(network, from)) {
          for (const target of namesOf(network, to)) {
            if (source === target) continue;
            const answers = judge.judge({
              from: findEnd(network, source),
              to: findEnd(network, target),
              protocol,
              ...(port === undefined ? {} : { port: Number(port) }),
            });
            const wrong = answers.filter((answer) => answer.verdict !== verdict);
            if (answers.length === 0 || wrong.length > 0) {
              throw new Error(
                `${step.name}: ${line} (${source} -> ${target}):\n${wrong.flatMap(({ why }) => why).join("\n")}`,
              );
            }
            lines++;
          }
        }
      }
    }
    expect(lines).toBeGreaterThan(0);
  });
}
