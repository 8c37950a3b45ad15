/** A node in a namespace of its own: a client outside, and pods with a listener each, behind it; and real traffic between. */
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { join } from "node:path";
import nftables from "../../dataplanes/nftables/mod.ts";
import { namespacedKernel } from "../../src/kernel/namespaced_door.ts";
import { createNamespace, inNamespace, namespacePath } from "../../src/kernel/netns.ts";
import { setSysctl } from "../../src/kernel/sysctl.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import type { Report } from "../../src/sdk/dataplane.ts";
import { benchHost } from "./host.ts";
import type { Answer, Order, Target } from "./traffic.ts";

export const CLIENT_ADDRESS = "192.0.2.9";
export const LISTEN_PORT = 8080;
const NODE_ADDRESS = "10.255.0.254";
export const podAddress = (at: number): string => `10.255.1.${at + 1}`;
export const podInterface = (at: number): string => `mxb${at}`;

export interface TrafficNode extends AsyncDisposable {
  readonly namespace: NetworkNamespace;
  /** Connections, or bytes, each second, from the client to a pod. */
  measure(kind: "connections" | "stream", pod: number, durationMs: number): Promise<Answer>;
  /** A command of `nft` in the node. */
  nft(command: string): void;
  /** Brings the node to a state. */
  apply(desired: DesiredState): Promise<Report>;
}

/** @param form of the rules, or established flows past them; undefined: no firewall at all. `via`: whom the client asks for the pods; absent: themselves */
export async function trafficNode(
  title: string,
  pods: number,
  form?: "flat" | "linear" | "fast path",
  via?: Target["via"],
): Promise<TrafficNode> {
  await using stack = new AsyncDisposableStack();
  const node = stack.use(createNamespace(title));
  const client = stack.use(createNamespace(`${title}-client`));
  const places = Array.from({ length: pods }, (_, i) => stack.use(createNamespace(`${title}-pod${i}`)));
  inNamespace(node, () => {
    setSysctl("ipv4/ip_forward", "1");
    // Connection tracking keeps closed flows for 10 s otherwise: hundreds of thousands here.
    setSysctl("netfilter/nf_conntrack_tcp_timeout_close", "1");
  });
  link(node, client, "eth0", CLIENT_ADDRESS);
  places.forEach((place, i) => link(node, place, podInterface(i), podAddress(i)));

  const host = benchHost(title, "/nonexistent", undefined, namespacedKernel(node));
  const dataplane = form === undefined ? undefined : stack.use(
    await nftables.open(
      nftables.parseConfig(form === "fast path" ? { establishedFastPath: true } : { form }),
      host,
      new AbortController().signal,
    ),
  );
  const child = Bun.spawn({
    cmd: [
      "nsenter",
      `--net=${namespacePath(client)}`,
      process.execPath,
      "--no-install",
      join(import.meta.dir, "traffic.ts"),
    ],
    stdio: ["pipe", "pipe", "inherit"],
  });
  stack.defer(async () => {
    child.kill();
    await child.exited;
  });
  const answers = createInterface({ input: Readable.fromWeb(child.stdout as never) })[Symbol.asyncIterator]();
  const order = async (what: Order): Promise<Answer> => {
    child.stdin.write(`${JSON.stringify(what)}\n`);
    child.stdin.flush();
    const { done, value } = await answers.next();
    if (done) throw new Error(`${title}: the traffic process ended with status ${child.exitCode}`);
    return JSON.parse(value) as Answer;
  };
  await order({
    kind: "listen",
    targets: places.map((place, i): Target => ({
      namespace: namespacePath(place),
      address: podAddress(i),
      port: LISTEN_PORT,
      ...via === undefined ? {} : { via },
    })),
  });
  const held = stack.move();
  return {
    namespace: node,
    measure: (kind, at, durationMs) => order({ kind, at, durationMs }),
    nft: (command) => run(node, ["nft", command]),
    apply(desired) {
      if (dataplane === undefined) throw new Error(`${title} has no firewall`);
      return dataplane.apply(desired);
    },
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  };
}

function link(node: NetworkNamespace, place: NetworkNamespace, name: string, address: string): void {
  run(node, ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", namespacePath(place)]);
  run(node, ["ip", "addr", "add", `${NODE_ADDRESS}/32`, "dev", name]);
  run(node, ["ip", "link", "set", name, "up"]);
  run(node, ["ip", "route", "add", address, "dev", name]);
  run(place, ["ip", "addr", "add", `${address}/32`, "dev", "eth0"]);
  run(place, ["ip", "link", "set", "eth0", "up"]);
  run(place, ["ip", "route", "add", NODE_ADDRESS, "dev", "eth0"]);
  run(place, ["ip", "route", "add", "default", "via", NODE_ADDRESS, "dev", "eth0"]);
}

function run(place: NetworkNamespace, argv: readonly string[]): void {
  const { success, stderr } = Bun.spawnSync({ cmd: ["nsenter", `--net=${namespacePath(place)}`, ...argv] });
  if (!success) throw new Error(`${argv.join(" ")}: ${stderr}`);
}
