/** What a what-if answers, held against explaining every pair in both worlds. */
import { expect, test } from "bun:test";
import { DEFAULT_FAILSAFE } from "../../calc/mod.ts";
import { Random, randomChange } from "../../calc/testing/random_world.ts";
import { type Address, addressFamily, parseAddress } from "../../model/address.ts";
import type { Packet } from "../../model/desired.ts";
import { formatProtocol } from "../../model/rule_format.ts";
import type { WorldChange, WorldObject } from "../../model/world.ts";
import { renderWhatIf } from "../../cli/explain_text.ts";
import { createPaint } from "../../cli/output.ts";
import { type End, type Lookup, nodeEnd } from "../explain/end.ts";
import { Nodes, type NodesView } from "../explain/nodes.ts";
import { judgeWay } from "../explain/path.ts";
import type { WhatIfReply } from "../explain/view.ts";
import { explainedWorld, pod } from "../testdata/explained_world.ts";
import { compareWorlds } from "./what_if.ts";
import type { WorldSide } from "./parties.ts";

const pause = () => Promise.resolve();
const nowhere = () => undefined;

const ports = (protocol: number) =>
  [1, 52, 53, 79, 80, 81, 90, 91, 8080, 65535].map((destinationPort) => ({
    protocol,
    sourcePort: 40_000,
    destinationPort,
  }));
const SAMPLES: readonly Omit<Packet, "source" | "destination">[] = [
  ...ports(6),
  ...ports(17),
  ...ports(132).slice(3, 6),
  { protocol: 1, icmp: { type: 8, code: 0 } },
  { protocol: 58, icmp: { type: 128, code: 0 } },
  { protocol: 47 },
];

/** Workloads with names and addresses of their own: two with one address cannot be told apart by whom a packet is from. */
function tamed({ origin, objects }: WorldChange): WorldChange {
  const own = (id: string, node: string) => {
    const number = Number(id.replace(/\D/g, ""));
    return [`10.0.${node === "n1" ? 0 : 1}.${number + 1}`, `fd00::${node === "n1" ? 0 : 1}:${number + 1}`].map(
      parseAddress,
    );
  };
  return {
    origin,
    objects: objects.flatMap((object): WorldObject[] => {
      if (object.kind === "workload") {
        const { pod: _, ...alone } = object;
        const addresses = own(object.id, object.node);
        return [{
          ...alone,
          interfaceName: `if-${object.id}`,
          addresses: object.id === "w-3" ? addresses.slice(0, 1) : addresses,
        }];
      }
      if (object.kind === "pod") return [{ ...object, addresses: [] }];
      if (object.kind === "node") {
        return [{ ...object, addresses: [parseAddress(object.id === "n1" ? "192.168.0.1" : "192.168.0.2")] }];
      }
      if (object.kind === "interface") return [{ ...object, addresses: [] }];
      return [object];
    }),
  };
}

const sideOf = (view: NodesView, lookup: Lookup): WorldSide => ({
  desired: view.desired,
  lookup,
  stateOf: (node) => view.stateOf(node),
  homeOf: (id) => view.homeOf(id),
  addressesOf: (node) => nodeEnd(node, lookup).addresses,
});

/** Ends by name: workloads by the name that a what-if has for them, and nodes. */
function endsOf({ desired, lookup, homeOf }: WorldSide): Map<string, End> {
  const ends = new Map<string, End>();
  for (const [id, { addresses }] of desired.workloads) {
    const { namespace } = lookup.object("workload", id)!;
    const name = `${namespace}/${id}`;
    ends.set(name, {
      name,
      kind: "endpoint",
      addresses,
      node: homeOf(id)!,
      workload: id,
      attached: true,
      labels: new Map(),
      ports: [],
    });
  }
  for (const node of ["n1", "n2"]) {
    const end = nodeEnd(node, lookup);
    if (end.addresses.length > 0) ends.set(`node/${node}`, end);
  }
  return ends;
}

function verdict(
  side: WorldSide,
  from: End,
  to: End,
  sample: (typeof SAMPLES)[number],
  family: 4 | 6,
): string | undefined {
  const of = (end: End): Address | undefined => end.addresses.find((address) => addressFamily(address) === family);
  const source = of(from), destination = of(to);
  if (source === undefined || destination === undefined) return undefined;
  return judgeWay(from, to, { ...sample, source, destination }, {
    node: "n1",
    stateOf: side.stateOf,
    linkTowards: nowhere,
    addressesOf: side.addressesOf,
  }).verdict;
}

/** Whether the words of a what-if mean the packet. */
function means(words: readonly string[], packet: (typeof SAMPLES)[number]): boolean {
  const name = formatProtocol(packet.protocol);
  return words.some((word): boolean => {
    const all = /^everything(?: but (.*))?$/.exec(word);
    if (all !== null) return all[1] === undefined || !means(all[1].split(", "), packet);
    if (word === "other protocols") return packet.protocol === 47;
    const [protocol, range, type] = word.split(/[/ ]/);
    if (protocol !== name || word.includes(" from port ")) return false;
    if (range === undefined) return true;
    if (packet.icmp !== undefined) {
      return word.includes("other") || Number(range) === packet.icmp.type && type === undefined;
    }
    const [first, last = first] = range.split("-").map(Number);
    return first! <= packet.destinationPort! && packet.destinationPort! <= last!;
  });
}

function changesSaid(
  reply: Omit<WhatIfReply, "changes">,
  sample: (typeof SAMPLES)[number],
  family: 4 | 6,
): Map<string, string> {
  const said = new Map<string, string>();
  for (const { from, to, except, packets } of reply.groups) {
    const left = new Set(except.map((pair) => pair.join(" → ")));
    for (const a of from) {
      for (const b of to) {
        const pair = `${a} → ${b}`;
        if (left.has(pair)) continue;
        for (const { what, families, now, then } of packets) {
          if (!families.includes(family) || !means(what, sample)) continue;
          expect(said.has(pair)).toBe(false);
          said.set(pair, `${now} ${then}`);
        }
      }
    }
  }
  return said;
}

test.each(Array.from({ length: 25 }, (_, seed) => seed + 1))(
  "it names the pairs that explaining one by one finds, and no others, seed %d",
  async (seed) => {
    const random = new Random(seed * 7_654_321);
    const nodes = new Nodes({ node: "n1", failsafe: DEFAULT_FAILSAFE, pause });
    const change = () => tamed(randomChange(random));
    const addressed = ["n1", "n2"].map((node) =>
      tamed({
        origin: `node-${node}`,
        objects: [{ kind: "node", id: node, addresses: [], labels: new Map() }],
      })
    );
    // Half of the worlds have host endpoints.
    const allowed = (one: WorldChange) => seed % 2 === 0 || one.objects.every(({ kind }) => kind !== "hostEndpoint");
    const some = (count: number) => Array.from({ length: count }, change).filter(allowed);
    await nodes.take([...addressed, ...some(90)]);
    const before = nodes.view(), lookup = { ...nodes.lookup };
    const names = new Map([...before.desired.workloads.keys()].map((id) => [id, lookup.object("workload", id)!]));
    const frozen: Lookup = {
      ...lookup,
      object: (kind, id) => kind === "workload" ? names.get(id) as never : lookup.object(kind, id),
    };
    const now = sideOf(before, frozen), endsNow = endsOf(now);
    await nodes.take(some(1 + random.below(3)));
    const then = sideOf(nodes.view(), nodes.lookup), endsThen = endsOf(then);
    const reply = await compareWorlds(now, then, nowhere, pause);

    const wrong: string[] = [];
    let asked = 0;
    for (const sample of SAMPLES) {
      for (const family of [4, 6] as const) {
        if (sample.protocol === (family === 4 ? 58 : 1)) continue;
        const said = changesSaid(reply, sample, family);
        for (const [from, fromNow] of endsNow) {
          for (const [to, toNow] of endsNow) {
            const fromThen = endsThen.get(from), toThen = endsThen.get(to);
            if (from === to || fromThen === undefined || toThen === undefined) continue;
            const is = verdict(now, fromNow, toNow, sample, family),
              willBe = verdict(then, fromThen, toThen, sample, family);
            if (is === undefined || willBe === undefined) continue;
            asked++;
            const found = said.get(`${from} → ${to}`), wanted = is === willBe ? undefined : `${is} ${willBe}`;
            if (found !== wanted) {
              wrong.push(`IPv${family} ${from} → ${to} ${JSON.stringify(sample)}: ${found}, wanted ${wanted}`);
            }
          }
        }
      }
    }
    expect(wrong).toEqual([]);
    expect(asked).toBeGreaterThan(100);
  },
);

const PLAIN = createPaint(false);
const text = (lines: string): string => lines.replace(/^\n/, "").trimEnd();

async function whatIf(world: string, manifests: string, without: readonly string[] = []): Promise<string> {
  const { explainer } = await explainedWorld(world);
  const reply = await explainer.explain({
    whatIf: { manifests: manifests === "" ? [] : [{ file: "new.yaml", text: manifests }], without },
  });
  return renderWhatIf(reply.whatIf!, PLAIN).trimEnd();
}

const WORLD = pod("redis", "n1", "10.0.0.4 fd00::4", { service: "redis" }) +
  pod("php-1", "n1", "10.0.0.5 fd00::5", { service: "php" }) +
  pod("php-2", "n2", "10.0.1.5 fd00::15", { service: "php" }) + pod("nodejs", "n2", "10.0.1.6", { service: "nodejs" }) +
  `---
apiVersion: v1
kind: Node
metadata: { name: n1 }
status: { addresses: [ { type: InternalIP, address: 192.168.0.1 } ] }
---
apiVersion: v1
kind: Node
metadata: { name: n2 }
status: { addresses: [ { type: InternalIP, address: 192.168.0.2 } ] }
`;
const POLICY = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: redis }
spec:
  podSelector: { matchLabels: { service: redis } }
  ingress:
  - from: [ { podSelector: { matchLabels: { service: nodejs } } }, { ipBlock: { cidr: 172.16.0.0/12, except: [172.16.1.0/24] } } ]
    ports: [ { port: 6379 }, { port: 7000, endPort: 7010 } ]
`;

test("a new policy: pairs by class of packets, nodes and networks with them, a node's own pods left out", async () => {
  expect(await whatIf(WORLD, POLICY)).toBe(text(`
what if   networkpolicy.networking.k8s.io/redis would be created

8 pairs change (4 endpoints, 2 nodes, 4 networks)
  172.16.0.0/12 → default/redis: everything but tcp/6379, tcp/7000-7010 allowed now, denied then
  default/nodejs → default/redis: everything but tcp/6379, tcp/7000-7010 allowed now, denied then
  172.16.1.0/24 → default/redis: everything allowed now, denied then
  any other address → default/redis: everything allowed now, denied then
  node/n2 → default/redis: everything allowed now, denied then
  any other IPv6 address → default/redis: everything allowed now, denied then
  default/php-1 → default/redis: everything allowed now, denied then
  default/php-2 → default/redis: everything allowed now, denied then`));
});

test("a policy that goes, a relabelled pod, a staged policy and an unchanged one", async () => {
  const there = `${WORLD}---\n${POLICY}`;
  expect(await whatIf(there, "", ["netpol/redis"])).toContain("8 pairs change");
  expect(await whatIf(there, POLICY)).toBe(text(`
what if   networkpolicy.networking.k8s.io/redis unchanged

No pair's reachability changes (4 endpoints, 2 nodes, 0 networks)`));
  const relabelled = `apiVersion: v1\nkind: Pod\nmetadata: { name: php-1, labels: { service: nodejs } }`;
  expect(await whatIf(there, relabelled)).toBe(
    text(`
what if   pod/php-1 would be configured

1 pair changes (4 endpoints, 2 nodes, 4 networks)
  default/php-1 → default/redis: tcp/6379, tcp/7000-7010 (IPv4) denied now, allowed then`)
      .replace(" (IPv4)", ""),
  );
  const staged = POLICY.replace("networking.k8s.io/v1", "projectcalico.org/v3").replace(
    "NetworkPolicy",
    "StagedKubernetesNetworkPolicy",
  )
    .replace("name: redis", "name: staged").replaceAll("6379", "1");
  expect(await whatIf(there, staged)).toContain("No pair's reachability changes");
});

test("endpoints that come or go are named and not compared", async () => {
  const come = pod("new", "n1", "10.0.0.9", { service: "php" });
  expect(await whatIf(WORLD, come)).toContain("  new, not compared: default/new");
  expect(await whatIf(WORLD, "", ["wep/n1-php-1"])).toContain("  gone, not compared: default/php-1");
});

test("what apply would refuse is refused, and so is a change of nothing", async () => {
  const refusal = (manifests: string, without: readonly string[] = []) =>
    whatIf(`${WORLD}---\n${POLICY}`, manifests, without).then(
      (found) => `no refusal: ${found}`,
      (error: Error) => error.message,
    );
  expect(await refusal(POLICY.replace("6379", "0"))).toBe(
    "new.yaml: document 1, line 8: spec.ingress[0].ports[0].port: found 0, wanted a whole number from 1 to 65535",
  );
  expect(await refusal("")).toBe("what-if: found no change, wanted at least one");
  expect(await refusal("# nothing")).toBe("new.yaml: found no resource, wanted at least one");
  expect(await refusal(POLICY, ["netpol/redis"])).toBe(
    "what-if: found NetworkPolicy.networking.k8s.io/default/redis both in a manifest and to be left out, wanted one of them",
  );
  expect(await refusal("", ["netpol/none"])).toBe('without: found no "netpol/none" that has any effect now');
  expect(await refusal("", ["frob/none"])).toStartWith('without: found no kind "frob", wanted one of ');
  expect(await refusal("", ["netpol"])).toBe('without: found "netpol", wanted KIND/NAME or KIND/NAMESPACE/NAME');
  expect(
    await refusal(
      POLICY.replace("networking.k8s.io/v1", "projectcalico.org/v3").replace(/spec:[^]*/, "spec: { tier: none }"),
    ),
  ).toContain(
    'spec.tier: found "none"',
  );
});
