/** For tests: very many entries in connection tracking, without as many packets. */
import { encodeMessage, MessageFlag } from "../../kernel/netlink/codec.ts";
import { flowMessage, FlowStatus, IPCTNL_MSG_CT_NEW } from "../../kernel/netlink/schema/conntrack.ts";
import type { Address } from "../../model/address.ts";
import type { KernelDoor } from "../../sdk/kernel_door.ts";

const NETLINK_NETFILTER = 12;
const AT_ONCE = 200;

/** Established TCP flows from everywhere (10.77.0.0/20) to port 80 of `server`, which is IPv4. They last ten minutes. */
export async function makeFlows(kernel: KernelDoor, server: Address, count: number): Promise<void> {
  using socket = kernel.netlink(NETLINK_NETFILTER);
  const status = FlowStatus.SeenReply | FlowStatus.Assured | FlowStatus.Confirmed;
  for (let start = 0; start < count; start += AT_ONCE) {
    const messages = Array.from({ length: Math.min(AT_ONCE, count - start) }, (_, i) => {
      const at = start + i, clientPort = 1024 + (at >> 12);
      const client = String.fromCharCode(10, 77, at >> 8 & 15, at & 255) as Address;
      return encodeMessage(flowMessage, IPCTNL_MSG_CT_NEW, MessageFlag.Create | MessageFlag.Exclusive, { family: 2 }, {
        original: {
          addresses: { source4: client, destination4: server },
          protocol: { number: 6, sourcePort: clientPort, destinationPort: 80 },
        },
        reply: {
          addresses: { source4: server, destination4: client },
          protocol: { number: 6, sourcePort: 80, destinationPort: clientPort },
        },
        status,
        protocolInfo: { tcp: { state: 3 } },
        timeoutSeconds: 600,
      });
    });
    socket.request("make flows", messages);
    await new Promise((resolve) => setImmediate(resolve));
  }
}
