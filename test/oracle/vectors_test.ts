/** The shared vectors as pure evaluation: the oracle must agree with what Kubernetes' own tests and recipes say. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { type Host, type Judge, judgeIn, manifestsOf, type Network, type Pod } from "./network.ts";

const read = (name: string) => parse(readFileSync(join(import.meta.dir, "../vectors", name), "utf8"));
const NODES = ["n1", "n2"];
const nodes = NODES.map((name, i) => ({ name, links: { eth0: [`192.168.2.${i + 1}`, `fd02::${i + 1}`], up0: [] } }));

interface Labelled {
  readonly name: string;
  readonly labels: Record<string, string>;
}

const namespaceManifest = ({ name, labels }: Labelled) => ({
  apiVersion: "v1",
  kind: "Namespace",
  metadata: { name, labels },
});

/** Pods take turns on two nodes, so that some packets cross both. */
function podAt(i: number, name: string, labels: Record<string, string>, ports: Pod["ports"]): Pod {
  const [namespace, pod] = name.split("/") as [string, string];
  const addresses = [`10.244.${i % 2}.${i + 2}`, `fd00:10:244::${i + 2}`];
  return { namespace, name: pod, node: NODES[i % 2]!, link: `mx${i}`, addresses, labels, ports };
}

/** Every family's verdict, which must be the same. */
function verdict(judge: Judge, network: Network, from: string, to: string, protocol: string, port: number) {
  const end = (name: string) => {
    const pod = network.pods.find((each) => `${each.namespace}/${each.name}` === name);
    return pod === undefined ? { host: network.hosts[0]! } : { pod };
  };
  const answers = judge.judge({ from: end(from), to: end(to), protocol: protocol.toLowerCase(), port });
  expect(answers).toHaveLength(2);
  return answers.map((each) => each.verdict).join();
}

interface Recipe {
  readonly id: string;
  readonly namespaces: readonly Labelled[];
  readonly pods: readonly { pod: string; labels: Record<string, string>; ports: Pod["ports"] }[];
  readonly policies: readonly unknown[];
  readonly probes: readonly { from: string; to: string; protocol: string; port: number; allowed: boolean }[];
}

test("the 20 recipes", () => {
  const { recipes } = read("recipes.yaml") as { recipes: readonly Recipe[] };
  expect(recipes).toHaveLength(20);
  const external: Host = { name: "external", addresses: ["172.17.0.5", "2001:db8::5"], node: "n1", link: "up0" };
  for (const { id, namespaces, pods, policies, probes } of recipes) {
    const network: Network = {
      nodes,
      pods: pods.map(({ pod, labels, ports }, i) => podAt(i, pod, labels, ports)),
      hosts: [external],
      dnat: [],
    };
    const judge = judgeIn(network, [...namespaces.map(namespaceManifest), ...manifestsOf(network), ...policies]);
    expect(judge.problems).toEqual([]);
    for (const { from, to, protocol, port, allowed } of probes) {
      const wanted = allowed ? "allow,allow" : "deny,deny";
      expect(`${id}: ${from} -> ${to} ${port} ${verdict(judge, network, from, to, protocol, port)}`)
        .toBe(`${id}: ${from} -> ${to} ${port} ${wanted}`);
    }
  }
});

interface Step {
  readonly setLabels?: readonly {
    kind: "Namespace" | "Pod";
    namespace?: string;
    name: string;
    labels: Record<string, string>;
  }[];
  readonly delete?: readonly { kind: string; namespace: string; name: string }[];
  readonly apply?: readonly { kind: string; metadata: { namespace: string; name: string } }[];
  readonly probe: { readonly protocol: string; readonly port: number };
  readonly denied: readonly (readonly [string, string])[];
  readonly except?: readonly (readonly [string, string])[];
}

interface Layout {
  readonly namespaces: readonly Labelled[];
  readonly pods: { readonly perNamespace: readonly string[] };
  readonly ports: Pod["ports"];
}

/** Does a pattern such as `x/*` mean this pod? */
const means = (pattern: string, pod: string): boolean =>
  pattern.split("/").every((part, i) => part === "*" || part === pod.split("/")[i]);

for (const family of [4, 6] as const) {
  test(`the 48 end-to-end cases of Kubernetes, IPv${family}`, () => {
    const { layout, cases } = read("netpol-e2e.yaml") as {
      layout: Layout;
      cases: readonly { id: string; steps: readonly Step[] }[];
    };
    expect(cases).toHaveLength(48);
    let steps = 0;
    for (const { id, steps: ofCase } of cases) {
      const namespaces = new Map(layout.namespaces.map((each) => [each.name, each]));
      let pods = layout.namespaces.flatMap(({ name }) => layout.pods.perNamespace.map((pod) => `${name}/${pod}`))
        .map((name, i) => podAt(i, name, { pod: name.split("/")[1]! }, layout.ports));
      pods = pods.map((pod) => ({ ...pod, addresses: [pod.addresses[family === 4 ? 0 : 1]!] }));
      const policies = new Map<string, unknown>();
      for (const [i, step] of ofCase.entries()) {
        for (const { kind, namespace, name, labels } of step.setLabels ?? []) {
          if (kind === "Namespace") namespaces.set(name, { name, labels });
          else pods = pods.map((pod) => pod.namespace === namespace && pod.name === name ? { ...pod, labels } : pod);
        }
        for (const { namespace, name } of step.delete ?? []) policies.delete(`${namespace}/${name}`);
        for (const policy of step.apply ?? []) {
          policies.set(`${policy.metadata.namespace}/${policy.metadata.name}`, withAddresses(policy, pods, family));
        }
        const network: Network = { nodes, pods, hosts: [], dnat: [] };
        const resources = [...namespaces.values()].map(namespaceManifest);
        const judge = judgeIn(network, [...resources, ...manifestsOf(network), ...policies.values()]);
        expect(judge.problems).toEqual([]);
        for (const from of pods) {
          for (const to of pods) {
            if (from === to) continue;
            const [source, target] = [from, to].map((pod) => `${pod.namespace}/${pod.name}`) as [string, string];
            const listed = (pairs: readonly (readonly [string, string])[]) =>
              pairs.some(([a, b]) => means(a, source) && means(b, target));
            const wanted = listed(step.denied) && !listed(step.except ?? []) ? "deny" : "allow";
            const [found] = judge.judge({
              from: { pod: from },
              to: { pod: to },
              protocol: step.probe.protocol.toLowerCase(),
              port: step.probe.port,
            });
            if (found!.verdict !== wanted) {
              throw new Error(
                `${id}, step ${i + 1}: ${source} -> ${target}: wanted ${wanted}:\n${found!.why.join("\n")}`,
              );
            }
          }
        }
        steps++;
      }
    }
    expect(steps).toBe(65);
  });
}

/** `${ip:x/b}` is a pod's address, and `/32` behind it its full length; `${net:x/b/4}` a net so long around it. */
function withAddresses(policy: unknown, pods: readonly Pod[], family: 4 | 6): unknown {
  const addressOf = (name: string) => pods.find((pod) => `${pod.namespace}/${pod.name}` === name)!.addresses[0]!;
  return JSON.parse(
    JSON.stringify(policy)
      .replace(/\$\{ip:([^}]+)\}\/32/g, (_, name) => `${addressOf(name)}/${family === 4 ? 32 : 128}`)
      .replace(
        /\$\{net:(\w\/\w)\/(\d+)\}/g,
        (_, name, length) => `${networkOf(addressOf(name), Number(length))}/${length}`,
      ),
  );
}

/** The first bits alone, for lengths up to 8. */
function networkOf(address: string, length: number): string {
  if (address.includes(":")) {
    return `${(parseInt(address.split(":")[0]!, 16) & (0xffff << (16 - length))).toString(16)}::`;
  }
  return `${parseInt(address) & (0xff << (8 - length))}.0.0.0`;
}
