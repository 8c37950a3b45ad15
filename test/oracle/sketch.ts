/**
 * For tests: worlds and verdicts as text. A sketch is lines, then manifests after the first `---`:
 *
 *     node n1 192.168.2.1 fd02::1            the first one is where pods are that say nothing else
 *     link up0 192.168.3.1                   another one of the first node
 *     pod prod/web app=web 10.0.0.2 fd00::2 http:tcp/8080 @robot on:n2
 *     host laptop 172.17.0.5 via:tun0        behind the first node's link
 *     dnat n1 tcp/80 prod/web tcp/8080
 *
 * and what is asked of it are lines `SOURCE -> TARGET PROTOCOL[/PORT] [from/PORT] [type/TYPE code/CODE] VERDICT`, where
 * the verdict is `allow`, `deny`, or one for each family: `4 allow, 6 deny`.
 */
import { parseAllDocuments } from "yaml";
import {
  type End,
  type Host,
  judgeIn,
  type Machine,
  manifestsOf,
  type Network,
  type Pod,
  type Probe,
} from "./network.ts";

/** @throws {Error} on a line that says nothing */
export function readSketch(text: string): { readonly network: Network; readonly manifests: readonly unknown[] } {
  const [lines, ...documents] = text.split(/^\s*---\s*$/m);
  const nodes: Machine[] = [];
  const pods: Pod[] = [];
  const hosts: Host[] = [];
  const dnat: Network["dnat"][number][] = [];
  const namespaces: unknown[] = [];
  for (const line of lines!.split("\n").map((each) => each.trim()).filter((each) => each !== "")) {
    const [kind, name, ...words] = line.split(/\s+/) as [string, string, ...string[]];
    const option = (prefix: string) => words.find((word) => word.startsWith(prefix))?.slice(prefix.length);
    const addresses = words.filter((word) => /^[\da-f]*[.:][\da-f.:]*$/.test(word));
    if (kind === "node") {
      nodes.push({ name, links: { eth0: addresses } });
    } else if (kind === "link") {
      nodes[0] = { ...nodes[0]!, links: { ...nodes[0]!.links, [name]: addresses } };
    } else if (kind === "namespace") {
      namespaces.push({ apiVersion: "v1", kind: "Namespace", metadata: { name, labels: labelsIn(words) } });
    } else if (kind === "pod") {
      const [podName, namespace = "default"] = name.split("/").toReversed();
      pods.push({
        namespace,
        name: podName!,
        node: option("on:") ?? nodes[0]!.name,
        link: `mx${pods.length}`,
        addresses,
        labels: labelsIn(words),
        ports: words.flatMap((word) => {
          const [, port, protocol, number] = /^([\w-]+):(tcp|udp|sctp)\/(\d+)$/.exec(word) ?? [];
          return port === undefined ? [] : [{ name: port, protocol: protocol!, port: Number(number) }];
        }),
        ...(option("@") === undefined ? {} : { serviceAccount: option("@") }),
      });
    } else if (kind === "host") {
      hosts.push({ name, addresses, node: nodes[0]!.name, link: option("via:") ?? "up0" });
    } else if (kind === "dnat") {
      const [from, to, target] = words as [string, string, string];
      const [protocol, port] = from.split("/") as [string, string];
      dnat.push({
        node: name,
        protocol,
        port: Number(port),
        to: findPod(pods, to),
        toPort: Number(target.split("/")[1]),
      });
    } else throw new Error(`sketch: found ${JSON.stringify(line)}, wanted node, link, namespace, pod, host or dnat`);
  }
  const network = { nodes, pods, hosts, dnat };
  return { network, manifests: [...namespaces, ...manifestsOf(network), ...readManifests(documents.join("\n---\n"))] };
}

export function readManifests(text: string): unknown[] {
  return parseAllDocuments(text).map((document) => document.toJS()).filter((value) => value !== null);
}

/** The lines as the oracle would have them, and the transcripts of those that it would have otherwise. */
export function answer(sketch: string, table: string): string {
  const { network, manifests } = readSketch(sketch);
  const judge = judgeIn(network, manifests);
  return table.split("\n").map((line) => {
    const asked =
      /^(\s*)(\S+) -> (\S+) (\S+?)(?:\/(\d+))?((?: +(?:from|type|code)\/\d+)*) +(allow|deny|4 (?:allow|deny), 6 (?:allow|deny))\s*$/
        .exec(
          line,
        );
    if (asked === null) {
      if (line.trim() === "") return line;
      throw new Error(`table: found ${JSON.stringify(line)}, wanted SOURCE -> TARGET PROTOCOL VERDICT`);
    }
    const [, , from, to, protocol, port, options, verdict] = asked as unknown as string[];
    const answers = judge.judge({
      from: findEnd(network, from!),
      to: findEnd(network, to!),
      protocol: protocol!,
      ...(port === undefined ? {} : { port: Number(port) }),
      ...probeOptions(options!),
    });
    const isOne = answers.every((each) => each.verdict === answers[0]!.verdict);
    const found = isOne
      ? answers[0]?.verdict ?? "never sent"
      : answers.map((each) => `${each.family} ${each.verdict}`).join(", ");
    if (found === verdict) return line;
    return `${line.slice(0, -verdict!.length)}${found}\n${
      answers.flatMap(({ family, why }) => [`# IPv${family}`, ...why]).map((each) => `    ${each}`).join("\n")
    }`;
  }).join("\n");
}

function probeOptions(text: string): Pick<Probe, "sourcePort" | "icmp"> {
  const option = (name: string) => {
    const found = new RegExp(`${name}/(\\d+)`).exec(text)?.[1];
    return found === undefined ? undefined : Number(found);
  };
  const type = option("type");
  return { sourcePort: option("from"), icmp: type === undefined ? undefined : { type, code: option("code") ?? 0 } };
}

/** `node:NAME[@LINK]`, a host, `[namespace/]pod`. */
export function findEnd(network: Network, name: string): End {
  if (name.startsWith("node:")) {
    const [node, link] = name.slice("node:".length).split("@");
    const machine = network.nodes.find((each) => each.name === node);
    if (machine === undefined) throw new Error(`found ${JSON.stringify(name)}, wanted a node of the network`);
    return { machine, link };
  }
  const host = network.hosts.find((each) => each.name === name);
  return host === undefined ? { pod: findPod(network.pods, name) } : { host };
}

function findPod(pods: readonly Pod[], name: string): Pod {
  const [podName, namespace = "default"] = name.split("/").toReversed();
  const pod = pods.find((each) => each.name === podName && each.namespace === namespace);
  if (pod === undefined) throw new Error(`found ${JSON.stringify(name)}, wanted a pod of the network`);
  return pod;
}

const labelsIn = (words: readonly string[]): Record<string, string> =>
  Object.fromEntries(words.filter((word) => word.includes("=")).map((word) => word.split("=") as [string, string]));
