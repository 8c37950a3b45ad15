/** For tests: a node with three pods, the outside and the IPVS dataplane on it. */
import { addressFamily, type Cidr, parseAddress, parseCidr } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { type BackendList, frontendKey, type ServiceFrontend } from "../../src/model/services.ts";
import { namespacedKernel } from "../../src/kernel/namespaced_door.ts";
import { createNamespace, namespacePath } from "../../src/kernel/netns.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import type { Dataplane } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import type { Host } from "../../src/sdk/plugin.ts";
import ipvs from "../../dataplanes/ipvs/mod.ts";
import { state, workload } from "../../src/model/testdata/small_states.ts";

/** The guest is slow, and what comes at all comes at once. */
export const SILENCE_MS = 700;

export interface Place {
  readonly link: string;
  readonly v4: string;
  readonly v6: string;
}

export const PLACES: Readonly<Record<"a" | "b" | "c" | "out", Place>> = {
  a: { link: "mxa", v4: "10.0.0.1", v6: "fd00::1" },
  b: { link: "mxb", v4: "10.0.0.2", v6: "fd00::2" },
  c: { link: "mxc", v4: "10.0.0.3", v6: "fd00::3" },
  out: { link: "eth0", v4: "192.0.2.1", v6: "2001:db8::1" },
};
/** The node on its links, and on the one to the outside. */
export const NODE = { v4: "192.0.2.254", v6: "2001:db8::fe" };
const GATEWAY = { v4: "10.0.0.254", v6: "fd00::fe" };

export interface ServiceNode extends AsyncDisposable {
  readonly namespace: NetworkNamespace;
  readonly places: Readonly<Record<string, NetworkNamespace>>;
  readonly dataplane: Dataplane;
  /** Another instance of the dataplane on the same kernel, as after a restart. */
  reopen(): Promise<Dataplane>;
}

export function testHost(namespace: NetworkNamespace): Host {
  return {
    node: "test",
    log: { debug() {}, info() {}, warn() {}, error() {} },
    clock: {
      nowMs: () => performance.now(),
      wallMs: () => Date.now(),
      sleep: (ms, signal) =>
        new Promise((resolve, reject) => {
          if (signal.aborted) return reject(signal.reason);
          const timer = setTimeout(resolve, ms);
          signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
        }),
    },
    kernel: namespacedKernel(namespace),
    get datastore(): never {
      throw new Error("the dataplane has no use for a datastore");
    },
    stateDirectory: "/nonexistent",
  };
}

export const openIpvs = (namespace: NetworkNamespace, config?: unknown): Promise<Dataplane> =>
  ipvs.open(ipvs.parseConfig(config), testHost(namespace), new AbortController().signal);

const shell = (place: NetworkNamespace, script: string): void => void runIn(place, "sh", "-ec", script);

/** A network namespace as a node has it, without pods. */
export function bareNode(title: string): NetworkNamespace {
  const node = createNamespace(title);
  shell(
    node,
    `echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
     ip link set lo up`,
  );
  return node;
}

export async function serviceNode(config?: unknown): Promise<ServiceNode> {
  const host = bareNode("node");
  shell(host, "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
  const places: Record<string, NetworkNamespace> = {};
  for (const [name, { link, v4, v6 }] of Object.entries(PLACES)) {
    const place = places[name] = bareNode(name);
    const gateway = name === "out" ? NODE : GATEWAY;
    shell(
      host,
      `ip link add ${link} type veth peer name eth0 netns ${namespacePath(place)}
       ip link set ${link} up
       ip addr add ${gateway.v4}/32 dev ${link}; ip -6 addr add ${gateway.v6}/128 dev ${link} nodad
       ip route add ${v4} dev ${link}; ip -6 route add ${v6} dev ${link}`,
    );
    shell(
      place,
      `ip link set eth0 up
       ip addr add ${v4}/32 dev eth0; ip -6 addr add ${v6}/128 dev eth0 nodad
       ip route add ${gateway.v4} dev eth0; ip route add default via ${gateway.v4} dev eth0
       ip -6 route add ${gateway.v6} dev eth0; ip -6 route add default via ${gateway.v6} dev eth0`,
    );
  }
  const dataplane = await openIpvs(host, config);
  const opened = [dataplane];
  return {
    namespace: host,
    places: { ...places, node: host },
    dataplane,
    async reopen() {
      const again = await openIpvs(host, config);
      opened.push(again);
      return again;
    },
    async [Symbol.asyncDispose]() {
      for (const one of opened) await one[Symbol.asyncDispose]();
      for (const place of [...Object.values(places), host]) place[Symbol.dispose]();
    },
  };
}

/** @throws {Error} where it does not come true in time */
export async function until(condition: () => boolean, deadlineMs = 30_000): Promise<void> {
  const endMs = performance.now() + deadlineMs;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`not within ${deadlineMs} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

export const succeedsIn = (place: NetworkNamespace, ...argv: readonly string[]): boolean =>
  Bun.spawnSync(["nsenter", `--net=${namespacePath(place)}`, ...argv]).success;

// ------------------------------------------------------------------------------------------------------------- services

/** `10.0.0.2:8080`, `[fd00::2]:53`; ` draining` behind it. */
function backend(text: string) {
  const [where, draining] = text.split(" ");
  const [, address, port] = /^\[?(.*?)\]?:(\d+)$/.exec(where!)!;
  return {
    address: parseAddress(address!),
    port: Number(port),
    ...draining === undefined ? {} : { draining: true as const },
  };
}

export const backends = (texts: readonly string[], empty: BackendList["empty"] = "reject"): BackendList => ({
  id: `${texts.join()} ${empty}`,
  backends: texts.map(backend),
  empty,
});

export interface FrontendFields extends Partial<Omit<ServiceFrontend, "backends" | "outside" | "sources">> {
  readonly outside?: BackendList;
  readonly sources?: readonly string[];
}

/** `tcp 10.96.0.1:80`; without an address (`tcp :30080`) a node port of `family`. */
export function frontend(text: string, list: BackendList, fields: FrontendFields = {}): ServiceFrontend {
  const [name, where] = text.split(" ");
  const [, host, port] = /^\[?(.*?)\]?:(\d+)$/.exec(where!)!;
  const address = host === "" ? undefined : parseAddress(host!);
  const { sources, ...rest } = fields;
  const parts = {
    ...address === undefined ? {} : { address },
    family: address === undefined ? fields.family ?? 4 : addressFamily(address),
    protocol: { tcp: 6, udp: 17, sctp: 132 }[name!]!,
    port: Number(port),
  };
  return {
    key: frontendKey(parts),
    ...parts,
    scope: address === undefined ? "node" : "cluster",
    title: text,
    backends: list,
    masqueradeOutside: false,
    ...rest,
    ...sources === undefined ? {} : { sources: sources.map(parseCidr) },
  };
}

let generation = 0;

export function services(
  frontends: readonly ServiceFrontend[],
  more: {
    readonly nodePortAddresses?: readonly string[];
    readonly podNets?: readonly string[];
    readonly state?: DesiredState;
  } = {},
): DesiredState {
  const pods = (["a", "b", "c"] as const).map((name) =>
    workload(name, PLACES[name].link, [PLACES[name].v4, PLACES[name].v6])
  );
  const nets = (texts: readonly string[] = []): readonly Cidr[] => texts.map(parseCidr);
  return {
    ...more.state ?? state({ workloads: pods }),
    generation: ++generation,
    services: {
      frontends: persistentMap(frontends.map((one) => [one.key, one] as const)),
      healthChecks: persistentMap(),
      nodePortAddresses: nets(more.nodePortAddresses),
      podNets: nets(more.podNets ?? ["10.0.0.0/16", "fd00::/64"]),
    },
  };
}
