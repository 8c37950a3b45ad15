/** Our messages beside those of the real tools, and the kernel's answers to them: `testdata/captured.json` holds both. */
import { expect, test } from "bun:test";
import { formatAddress, formatCidr, parseAddress, parseCidr } from "../../model/address.ts";
import type { NetlinkMessage } from "../../sdk/kernel_door.ts";
import { decodeMessage, encodeMessage, MessageFlag, type MessageSchema } from "./codec.ts";
import { splitFrames } from "./frame.ts";
import * as conntrack from "./schema/conntrack.ts";
import * as addr from "./schema/rt_addr.ts";
import * as rtLink from "./schema/rt_link.ts";
import * as neigh from "./schema/rt_neigh.ts";
import * as route from "./schema/rt_route.ts";
import * as rule from "./schema/rt_rule.ts";
import captured from "./testdata/captured.json";

const ip = parseAddress;
const bytesOf = (hex: string) => Uint8Array.from(hex.match(/../g)!, (pair) => parseInt(pair, 16));
const hexOf = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

function frameOf(hex: string) {
  const frames = splitFrames(bytesOf(hex));
  expect(frames).toHaveLength(1);
  return frames[0]!;
}

function caseOf(command: string) {
  const found = captured.cases.find((each) => each.command === command);
  if (found === undefined) throw new Error(`no capture of ${command}`);
  return found;
}

/** Interface indices of the capture. */
const [eth0, mx0, mx1, br0, vx0] = [2, 3, 5, 6, 7];
const { Create, Exclusive, Replace, Append } = MessageFlag;
const tcpFlow = {
  source: ip("10.0.0.1"),
  destination: ip("10.0.0.2"),
  protocol: 6,
  sourcePort: 1000,
  destinationPort: 80,
};

/** Per command what we send for the same purpose; `like` is why the bytes may differ though the meaning is the same. */
const sent: readonly { command: string; message: NetlinkMessage; like?: string; drop?: readonly string[] }[] = [
  {
    command: "ip link add mx0 type veth peer name eth0",
    message: rtLink.newLink({ name: "mx0", kind: "veth", peer: { name: "eth0" } }),
    like: "ip sends IFLA_INFO_KIND without its NUL",
  },
  {
    command:
      "ip link add name mx1 mtu 1450 address 02:00:00:00:00:01 group 77 txqueuelen 100 type veth peer name eth1 mtu 1450 address 02:00:00:00:00:02",
    message: rtLink.newLink({
      name: "mx1",
      kind: "veth",
      mtu: 1450,
      hardwareAddress: "02:00:00:00:00:01",
      group: 77,
      txQueueLength: 100,
      peer: { name: "eth1", mtu: 1450, hardwareAddress: "02:00:00:00:00:02" },
    }),
    like: "order, NUL",
  },
  {
    command: "ip link add name br0 type bridge forward_delay 0 stp_state 0 ageing_time 30000",
    message: rtLink.newLink({ name: "br0", kind: "bridge", data: { forwardDelay: 0, stpState: 0, ageingTime: 30000 } }),
    like: "order, NUL",
  },
  {
    command: "ip link add name vx0 type vxlan id 4096 remote 192.0.2.7 local 192.0.2.1 dstport 4789 nolearning",
    message: rtLink.newLink({
      name: "vx0",
      kind: "vxlan",
      data: { vni: 4096, remote: ip("192.0.2.7"), local: ip("192.0.2.1"), port: 4789, learning: 0 },
    }),
    like: "order, NUL",
  },
  { command: "ip link set dev mx0 up", message: rtLink.setLink({ index: mx0 }, { up: true }), like: "RTM_SETLINK" },
  { command: "ip link set dev eth0 up", message: rtLink.setLink({ index: eth0 }, { up: true }), like: "RTM_SETLINK" },
  {
    command: "ip link set dev mx1 master br0",
    message: rtLink.setLink({ index: mx1 }, { master: br0 }),
    like: "RTM_SETLINK",
  },
  {
    command: "ip link set dev mx0 mtu 1400",
    message: rtLink.setLink({ index: mx0 }, { mtu: 1400 }),
    like: "RTM_SETLINK",
  },
  {
    command: "ip link set dev mx0 alias pod",
    message: rtLink.setLink({ index: mx0 }, { alias: "pod" }),
    like: "RTM_SETLINK, NUL",
  },
  {
    command: "ip link set dev mx0 addrgenmode none",
    message: rtLink.setLink({ index: mx0 }, { addrGenMode: rtLink.AddrGenMode.None }),
    like: "RTM_SETLINK",
  },
  { command: "ip link del dev vx0", message: rtLink.delLink({ index: vx0 }) },
  { command: "ip link del group 77", message: rtLink.delLinkGroup(77) },
  {
    command: "ip address add 10.0.0.1/32 dev mx0",
    message: addr.newAddress({ index: mx0, address: ip("10.0.0.1"), prefix: 32 }),
    like: "order",
  },
  {
    command: "ip address add 10.0.0.3 peer 10.0.0.4/32 dev mx0 scope link",
    message: addr.newAddress({
      index: mx0,
      address: ip("10.0.0.3"),
      peer: ip("10.0.0.4"),
      prefix: 32,
      scope: route.RouteScope.Link,
    }),
    like: "order",
  },
  {
    command: "ip address add fd00::1/64 dev mx0 nodad noprefixroute",
    message: addr.newAddress({
      index: mx0,
      address: ip("fd00::1"),
      prefix: 64,
      flags: addr.AddressFlag.NoDad | addr.AddressFlag.NoPrefixRoute,
    }),
    like: "order",
  },
  {
    command: "ip address del 10.0.0.1/32 dev mx0",
    message: addr.delAddress({ index: mx0, address: ip("10.0.0.1"), prefix: 32 }),
    like: "ip sends IFA_LOCAL alone",
  },
  {
    command: "ip route add 10.1.0.0/16 dev mx0 proto 86 src 10.0.0.3 mtu 1300",
    message: route.newRoute({
      destination: parseCidr("10.1.0.0/16"),
      outputIndex: mx0,
      protocol: route.RouteProtocol.Manx,
      preferredSource: ip("10.0.0.3"),
      mtu: 1300,
    }),
    like: "order",
  },
  {
    command: "ip route add 10.2.0.0/16 via 169.254.1.1 dev mx0 onlink table 1000 metric 7",
    message: route.newRoute({
      destination: parseCidr("10.2.0.0/16"),
      gateway: ip("169.254.1.1"),
      outputIndex: mx0,
      onLink: true,
      table: 1000,
      priority: 7,
      protocol: route.RouteProtocol.Boot,
    }),
    like: "order",
  },
  {
    command: "ip -6 route add default via fd00::2 dev mx0 onlink",
    message: route.newRoute({
      destination: parseCidr("::/0"),
      gateway: ip("fd00::2"),
      outputIndex: mx0,
      onLink: true,
      protocol: route.RouteProtocol.Boot,
    }),
    like: "ip sends RTA_DST of zeros",
    drop: ["destination"],
  },
  {
    command: "ip route add blackhole 10.3.0.0/16",
    message: route.newRoute({
      destination: parseCidr("10.3.0.0/16"),
      type: route.RouteType.Blackhole,
      protocol: route.RouteProtocol.Boot,
    }),
  },
  {
    command: "ip route add 10.4.0.0/16 nexthop via 10.1.0.2 weight 2 nexthop via 10.1.0.3",
    message: route.newRoute({
      destination: parseCidr("10.4.0.0/16"),
      protocol: route.RouteProtocol.Boot,
      nextHops: [{ gateway: ip("10.1.0.2"), weight: 2 }, { gateway: ip("10.1.0.3") }],
    }),
  },
  {
    command: "ip route add 10.5.0.0/16 via inet6 fe80::1 dev mx0",
    message: route.newRoute({
      destination: parseCidr("10.5.0.0/16"),
      gateway: ip("fe80::1"),
      outputIndex: mx0,
      protocol: route.RouteProtocol.Boot,
    }),
    like: "order",
  },
  {
    command: "ip route replace 10.1.0.0/16 dev mx0 proto 86 mtu 1200",
    message: route.newRoute({
      destination: parseCidr("10.1.0.0/16"),
      outputIndex: mx0,
      protocol: route.RouteProtocol.Manx,
      mtu: 1200,
    }, Create | Replace),
    like: "order",
  },
  {
    command: "ip route del 10.2.0.0/16 table 1000",
    message: route.delRoute({ destination: parseCidr("10.2.0.0/16"), table: 1000 }),
  },
  { command: "ip -6 route show", message: route.getRoutes({ family: 6, table: 254 }), like: "padding" },
  {
    command: "ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev mx0 nud permanent",
    message: neigh.newNeighbour(
      { index: mx0, address: ip("10.0.0.9"), hardwareAddress: "02:00:00:00:00:09" },
      Create | Exclusive,
    ),
  },
  {
    command: "ip neigh add proxy 169.254.1.1 dev mx0",
    message: neigh.newNeighbour(
      { index: mx0, address: ip("169.254.1.1"), flags: neigh.NeighbourFlag.Proxy },
      Create | Exclusive,
    ),
  },
  {
    command: "ip neigh del 10.0.0.9 dev mx0",
    message: neigh.delNeighbour({ index: mx0, address: ip("10.0.0.9") }),
    like: "ip sends a state, which the kernel does not read",
    drop: ["state"],
  },
  { command: "ip neigh show", message: neigh.getNeighbours() },
  { command: "ip neigh show proxy", message: neigh.getNeighbours({ proxy: true }) },
  {
    command: "bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.9",
    message: neigh.newNeighbour({
      index: vx0,
      familyNumber: neigh.AF_BRIDGE,
      address: ip("192.0.2.9"),
      hardwareAddress: "00:00:00:00:00:00",
      flags: neigh.NeighbourFlag.Self,
      state: neigh.NeighbourState.NoArp | neigh.NeighbourState.Permanent,
    }, Create | Append),
    like: "order",
  },
  {
    command: "ip rule add from 10.0.0.0/8 fwmark 0x10000/0xff0000 table 1000 priority 100",
    message: rule.newRule({
      family: 4,
      source: parseCidr("10.0.0.0/8"),
      mark: 0x10000,
      markMask: 0xff0000,
      table: 1000,
      priority: 100,
    }),
    like: "order",
  },
  {
    command: "ip rule add iif mx0 lookup main suppress_prefixlength 0 priority 50 protocol 86",
    message: rule.newRule({
      family: 4,
      inputName: "mx0",
      table: 254,
      suppressPrefixLength: 0,
      priority: 50,
      protocol: 86,
    }),
    like: "order",
  },
  {
    command: "ip -6 rule add to fd00::/8 blackhole priority 60",
    message: rule.newRule({
      family: 6,
      destination: parseCidr("fd00::/8"),
      action: rule.RuleAction.Blackhole,
      priority: 60,
    }),
    like: "order",
  },
  { command: "ip rule show", message: rule.getRules(4) },
  {
    command: "conntrack -G -p tcp --orig-src 10.0.0.1 --orig-dst 10.0.0.2 --sport 1000 --dport 80",
    message: conntrack.getFlow(tcpFlow),
    like: "the tool sends TCP flags that a look-up does not read",
    drop: ["protocolInfo"],
  },
  { command: "conntrack -L -f ipv4", message: conntrack.getFlows({ family: 4 }) },
  {
    command: "conntrack -L -m 0x10000/0xffff0000",
    message: conntrack.getFlows({ mark: { value: 0x10000, mask: 0xffff0000 } }),
  },
];

const schemaOf = (type: number): MessageSchema<unknown, unknown> => {
  const schema = type >= 256
    ? conntrack.flowMessage
    : type >= 32
    ? rule.ruleMessage
    : type >= 28
    ? neigh.neighbourMessage
    : type >= 24
    ? route.routeMessage
    : type >= 20
    ? addr.addressMessage
    : rtLink.linkMessage;
  return schema as unknown as MessageSchema<unknown, unknown>;
};

const isDump = (flags: number) => (flags & MessageFlag.Dump) === MessageFlag.Dump;

for (const { command, message, like, drop = [] } of sent) {
  test(`${command}: ours ${like === undefined ? "are the same bytes" : "mean the same"}`, () => {
    const frame = frameOf(caseOf(command).sent);
    const theirs = decodeMessage(schemaOf(frame.type), frame);
    const ours = decodeMessage(schemaOf(message.type), message);
    if (like === undefined) {
      expect(hexOf(message.payload)).toBe(hexOf(frame.payload));
      expect(message.type).toBe(frame.type);
    }
    // The socket adds the dump's and the acknowledgement's flags by the method called.
    const flags = frame.flags & ~(MessageFlag.Request | MessageFlag.Ack);
    expect(message.flags).toBe(isDump(flags) ? flags & ~MessageFlag.Dump : flags);
    const without = (value: unknown) =>
      Object.fromEntries(Object.entries(value as object).filter(([key]) => !drop.includes(key)));
    expect(without(ours.attributes)).toEqual(without(theirs.attributes));
    expect(without(ours.header)).toEqual(without(theirs.header));
  });
}

/** What our parsers make of the kernel's answers, one line a message. */
function lineOf(hex: string): string {
  const frame = frameOf(hex);
  switch (frame.type) {
    case rtLink.RTM_NEWLINK: {
      const { index, name, kind, up, mtu, group, hardwareAddress, master, peerIndex, attributes } = rtLink.parseLink(
        frame,
      );
      // Ends of links have addresses of chance unless we gave them.
      const mac = /^02:00|^00:00/.test(hardwareAddress) ? ` ${hardwareAddress}` : "";
      const data = attributes.info?.data;
      const vni = data !== undefined && "vni" in data
        ? ` vni ${data.vni} to ${formatAddress(data.remote!)}:${data.port}`
        : "";
      const alias = attributes.alias === undefined ? "" : ` "${attributes.alias}"`;
      return `${index} ${name}${alias} ${kind ?? "-"} ${up ? "up" : "down"} mtu ${mtu} group ${group}${mac}` +
        (master === undefined ? "" : ` in ${master}`) + (peerIndex === undefined ? "" : ` peer ${peerIndex}`) + vni;
    }
    case addr.RTM_NEWADDR: {
      const { index, address, prefix, peer, flags, scope } = addr.parseAddressMessage(frame);
      const to = peer === undefined ? "" : ` peer ${formatAddress(peer)}`;
      return `${index} ${formatAddress(address)}/${prefix}${to} flags 0x${flags.toString(16)} scope ${scope}`;
    }
    case route.RTM_NEWROUTE: {
      const { destination, gateway, outputIndex, table, protocol, scope, type, mtu } = route.parseRoute(frame);
      return `${formatCidr(destination)}${
        gateway === undefined ? "" : ` via ${formatAddress(gateway)}`
      } dev ${outputIndex} ` +
        `table ${table} protocol ${protocol} scope ${scope} type ${type}${mtu === undefined ? "" : ` mtu ${mtu}`}`;
    }
    case neigh.RTM_NEWNEIGH: {
      const { index, address, hardwareAddress, state, flags } = neigh.parseNeighbour(frame);
      return `${index} ${formatAddress(address!)} ${hardwareAddress ?? "-"} state 0x${state.toString(16)} flags 0x${
        flags.toString(16)
      }`;
    }
    case rule.RTM_NEWRULE: {
      const { priority, action, table, source, mark, markMask, inputName, suppressPrefixLength, protocol } = rule
        .parseRule(frame);
      return `${priority}: action ${action} table ${table} protocol ${protocol}` +
        (source === undefined ? "" : ` from ${formatCidr(source)}`) +
        (mark === undefined ? "" : ` mark 0x${mark.toString(16)}/0x${markMask!.toString(16)}`) +
        (inputName === undefined ? "" : ` in ${inputName}`) +
        (suppressPrefixLength === undefined ? "" : ` suppress ${suppressPrefixLength}`);
    }
    case conntrack.IPCTNL_MSG_CT_NEW: {
      const { original, reply, status, mark, zone, tcpState } = conntrack.parseFlow(frame);
      const tuple = (of: conntrack.FlowTuple) =>
        `${formatAddress(of.source)}→${formatAddress(of.destination)} ${of.protocol}/` +
        (of.icmpId === undefined
          ? `${of.sourcePort}→${of.destinationPort}`
          : `${of.icmpType},${of.icmpCode},${of.icmpId}`);
      return `${tuple(original)} | ${tuple(reply)} status 0x${status.toString(16)} mark 0x${
        mark.toString(16)
      } zone ${zone} ` +
        `tcp ${tcpState ?? "-"}`;
    }
  }
  throw new Error(`no parser for message type ${frame.type}`);
}

const answers = `\
ip link show
  1 lo - down mtu 65536 group 0 00:00:00:00:00:00
  2 eth0 veth up mtu 1500 group 0 peer 3
  3 mx0 "pod" veth up mtu 1400 group 0 peer 2
  4 eth1 veth down mtu 1450 group 0 02:00:00:00:00:02 peer 5
  5 mx1 veth down mtu 1450 group 77 02:00:00:00:00:01 in 6 peer 4
  6 br0 bridge down mtu 1450 group 0 02:00:00:00:00:01
  7 vx0 vxlan down mtu 1500 group 0 vni 4096 to 192.0.2.7:4789
ip address show dev mx0
  3 10.0.0.3/32 peer 10.0.0.4 flags 0x80 scope 253
  3 10.0.0.1/32 flags 0x80 scope 0
  3 fd00::1/64 flags 0x282 scope 0
  3 fe80::647c:baff:fee4:3f19/64 flags 0xc0 scope 253
ip -6 route show
  fe80::/64 dev 2 table 254 protocol 2 scope 0 type 1
  fe80::/64 dev 3 table 254 protocol 2 scope 0 type 1
  ::/0 via fd00::2 dev 3 table 254 protocol 3 scope 0 type 1
ip neigh show
  3 ff02::16 33:33:00:00:00:16 state 0x40 flags 0x0
  2 ff02::1:ffb1:147b 33:33:ff:b1:14:7b state 0x40 flags 0x0
  2 ff02::16 33:33:00:00:00:16 state 0x40 flags 0x0
ip -4 route show proto 86 table all
  10.1.0.0/16 dev 3 table 254 protocol 86 scope 253 type 1 mtu 1200
ip route get 10.1.2.3
  10.1.2.3/32 dev 3 table 254 protocol 0 scope 0 type 1 mtu 1200
ip neigh show proxy
  3 169.254.1.1 - state 0x0 flags 0x8
ip rule show
  0: action 1 table 255 protocol 2
  50: action 1 table 254 protocol 86 in mx0 suppress 0
  100: action 1 table 1000 protocol 0 from 10.0.0.0/8 mark 0x10000/0xff0000
  32766: action 1 table 254 protocol 2
  32767: action 1 table 253 protocol 2
conntrack -L -f ipv4
  10.0.0.1→10.0.0.2 6/1000→80 | 10.0.0.2→10.0.0.1 6/80→1000 status 0xe mark 0x10000 zone 0 tcp 3
conntrack -L -p tcp --orig-src 10.0.0.1 --orig-dst 10.0.0.2 --dport 80 -f ipv4
  10.0.0.1→10.0.0.2 6/1000→80 | 10.0.0.2→10.0.0.1 6/80→1000 status 0xe mark 0x10000 zone 0 tcp 3
conntrack -L -f ipv6
  fd00::1→fd00::2 58/128,0,7 | fd00::2→fd00::1 58/129,0,7 status 0x8 mark 0x0 zone 0 tcp -
conntrack -L -m 0x10000/0xffff0000
  10.0.0.1→10.0.0.2 6/1000→80 | 10.0.0.2→10.0.0.1 6/80→1000 status 0xe mark 0x10000 zone 0 tcp 3
conntrack -G -p tcp --orig-src 10.0.0.1 --orig-dst 10.0.0.2 --sport 1000 --dport 80
  10.0.0.1→10.0.0.2 6/1000→80 | 10.0.0.2→10.0.0.1 6/80→1000 status 0xe mark 0x10000 zone 0 tcp 3
conntrack -D -p tcp --orig-src 10.0.0.1 --orig-dst 10.0.0.2 --sport 1000 --dport 80
  10.0.0.1→10.0.0.2 6/1000→80 | 10.0.0.2→10.0.0.1 6/80→1000 status 0xe mark 0x10000 zone 0 tcp 3`;

test("the kernel's answers to the tools read as what the tools had set", () => {
  const text = captured.cases.filter((each) => each.received.length > 0)
    .map((each) => [each.command, ...each.received.map((hex) => `  ${lineOf(hex)}`)].join("\n")).join("\n");
  expect(text).toBe(answers);
});

test("every captured message survives decode and encode with all of its attributes", () => {
  const all = captured.cases.flatMap((each) => [each.sent, ...each.received]);
  expect(all.length).toBeGreaterThanOrEqual(80);
  for (const hex of all) {
    const frame = frameOf(hex);
    const schema = schemaOf(frame.type);
    const once = decodeMessage(schema, frame);
    const again = encodeMessage(schema, frame.type, frame.flags, once.header as object, once.attributes);
    expect(decodeMessage(schema, again)).toEqual(once);
  }
});
