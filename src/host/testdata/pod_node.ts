/** For tests: a node with pods and a neighbour outside, in namespaces, its policy by the nftables dataplane. */
import { openDataplane } from "../../../dataplanes/nftables/testdata/open.ts";
import { namespacedKernel } from "../../kernel/namespaced_door.ts";
import { createNamespace, namespacePath } from "../../kernel/netns.ts";
import { runIn } from "../../kernel/testdata/tool_fixture.ts";
import { type Address, parseAddress } from "../../model/address.ts";
import type { Dataplane } from "../../sdk/dataplane.ts";
import type { KernelDoor, NetworkNamespace } from "../../sdk/kernel_door.ts";

export const PLACES = {
  a: { link: "mxa", v4: "10.0.0.1", v6: "fd00::1" },
  b: { link: "mxb", v4: "10.0.0.2", v6: "fd00::2" },
  c: { link: "mxc", v4: "10.0.0.3", v6: "fd00::3" },
  out: { link: "eth0", v4: "192.0.2.1", v6: "2001:db8::1" },
} as const;
export type Place = keyof typeof PLACES;
const NODE = { v4: "10.0.0.254", v6: "fd00::fe" } as const;

export const addressOf = (place: Place | "node", family: 4 | 6): Address =>
  parseAddress((place === "node" ? NODE : PLACES[place])[family === 4 ? "v4" : "v6"]);

export interface PodNode extends AsyncDisposable {
  readonly namespace: NetworkNamespace;
  readonly kernel: KernelDoor;
  readonly dataplane: Dataplane;
  readonly places: Readonly<Record<Place, NetworkNamespace>>;
}

/** `config`: of the dataplane. */
export async function openPodNode(config?: unknown): Promise<PodNode> {
  const open = new AsyncDisposableStack();
  try {
    const namespace = open.use(createNamespace("node"));
    const noDad = "for s in all default; do echo 0 > /proc/sys/net/ipv6/conf/$s/accept_dad; done; ip link set lo up";
    runIn(
      namespace,
      "sh",
      "-c",
      `${noDad}; echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding`,
    );
    const places: Partial<Record<Place, NetworkNamespace>> = {};
    for (const [name, { link, v4, v6 }] of Object.entries(PLACES)) {
      const place = places[name as Place] = open.use(createNamespace(name));
      runIn(place, "sh", "-c", noDad);
      runIn(
        namespace,
        "sh",
        "-ec",
        `ip link add ${link} type veth peer name eth0 netns ${namespacePath(place)}
        ip link set ${link} up
        ip addr add ${NODE.v4}/32 dev ${link}; ip -6 addr add ${NODE.v6}/128 dev ${link} nodad
        ip route add ${v4} dev ${link}; ip -6 route add ${v6} dev ${link}`,
      );
      runIn(
        place,
        "sh",
        "-ec",
        `ip link set eth0 up
        ip addr add ${v4}/32 dev eth0; ip -6 addr add ${v6}/128 dev eth0 nodad
        ip route add ${NODE.v4} dev eth0; ip route add default via ${NODE.v4} dev eth0
        ip -6 route add ${NODE.v6} dev eth0; ip -6 route add default via ${NODE.v6} dev eth0`,
      );
    }
    const dataplane = open.use(await openDataplane(namespace, config));
    return {
      namespace,
      kernel: namespacedKernel(namespace),
      dataplane,
      places: places as Readonly<Record<Place, NetworkNamespace>>,
      [Symbol.asyncDispose]: () => open.disposeAsync(),
    };
  } catch (error) {
    await open.disposeAsync();
    throw error;
  }
}
