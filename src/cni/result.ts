import type { AddReply } from "../sdk/attach.ts";
import type { Dns, Json } from "./network_config.ts";
import { atLeast, type CniVersion } from "./version.ts";

/** The result of ADD in the caller's version: CNI SPEC section 5, "Success". The host's side is interface 0, the pod's 1. */
export function renderResult(version: CniVersion, reply: AddReply, netns: string, dns: Dns): Json {
  const mtu = atLeast(version, "1.1.0") ? { mtu: reply.mtu } : {};
  return {
    cniVersion: version,
    interfaces: [
      { name: reply.hostInterface, mac: reply.hostMac, ...mtu },
      { name: reply.interfaceName, mac: reply.mac, ...mtu, sandbox: netns },
    ],
    ips: reply.addresses.map(({ address, gateway }) => ({
      // 1.0.0 dropped it: the address says it.
      ...(atLeast(version, "1.0.0") ? {} : { version: address.includes(":") ? "6" : "4" }),
      address,
      gateway,
      interface: 1,
    })),
    routes: reply.routes.map(({ dst, gw }) => gw === undefined ? { dst } : { dst, gw }),
    dns,
  };
}
