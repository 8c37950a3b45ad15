/** The composition of nftables and ipvs does what every dataplane must: `test/contract`. */
import { describe } from "bun:test";
import { dataplaneContract } from "../contract/dataplane.ts";
import { nftablesWithIpvs, worldWithServices } from "../contract/ipvs_composition.ts";
import { IN_GUEST } from "./guest.ts";

describe.if(IN_GUEST)("on a kernel with IPVS", () =>
  dataplaneContract({
    plugin: nftablesWithIpvs,
    config: { resyncSeconds: 1 },
    world: worldWithServices,
    kernel: {
      // Without it the kernel takes no server (inet_addr_type knows no table).
      node: [["ip", "link", "set", "lo", "up"]],
      listings: [["ipvsadm", "-S", "-n"], ["ip", "-o", "address", "show"]],
      foreign: [
        ["ipvsadm", "-A", "-t", "203.0.113.7:80", "-s", "lc"],
        ["ipvsadm", "-a", "-t", "203.0.113.7:80", "-r", "10.9.9.9:80", "-m"],
        ["ip", "link", "add", "manx-ipvs", "type", "dummy"],
        ["ip", "address", "add", "203.0.113.8/24", "dev", "manx-ipvs"],
      ],
      harm: {
        "a deleted service": ["ipvsadm -D -t 10.96.0.2:80"],
        "a service that was changed": ["ipvsadm -E -t 10.96.0.1:80 -s wrr -b flag-3"],
        "a server of somebody else's": ["ipvsadm -a -u 10.96.0.1:53 -r 10.9.9.9:53 -m"],
        "a deleted address": ["ip address del 10.96.0.1/32 dev manx-ipvs0"],
        "an address with another prefix": ["ip address add 10.97.0.98/24 dev manx-ipvs0"],
        "a link that is down": ["ip link set manx-ipvs0 down"],
        "a deleted gate": ["nft delete table inet manx-ipvs"],
        "an element of the gate changed": [
          "nft delete element inet manx-ipvs services4 '{ 10.96.0.1 . tcp . 80 }'",
          "nft add element inet manx-ipvs services4 '{ 10.96.0.1 . tcp . 80 : goto end-drop }'",
        ],
      },
    },
  }));
