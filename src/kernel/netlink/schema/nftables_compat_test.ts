/** Rules of `iptables-nft` and questions about extensions, with the real kernel and the real tool. */
import { expect, test } from "bun:test";
import { createNamespace } from "../../netns.ts";
import { runIn } from "../../testdata/tool_fixture.ts";
import { openNetlink } from "../socket.ts";
import { deleteTable, getRules, GROUP_NFTABLES, NETLINK_NETFILTER, SUBSYSTEM_NFTABLES } from "./nftables.ts";
import {
  addRawRule,
  decodeExpressions,
  encodeExpressions,
  familyNumber,
  getExtension,
  newMarkedChain,
  newMarkedTable,
  parseRawRule,
  placeOfRule,
  touchedBy,
} from "./nftables_compat.ts";

const FILTER = { family: familyNumber(4), table: "filter" };

test("a rule of the real tool is read, sent again elsewhere, and listed there as it was", () => {
  using namespace = createNamespace("raw rule");
  const iptables = (...args: readonly string[]) => runIn(namespace, "iptables-nft", ...args);
  iptables("-N", "copy");
  iptables("-A", "FORWARD", "-s", "10.0.0.0/9", "-p", "tcp", "-m", "multiport", "--dports", "1,2:3", "-j", "REJECT");
  iptables("-A", "FORWARD", "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "copy");
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  const messages = socket.dump("list rules", getRules(FILTER, "FORWARD"));
  const [first, second] = messages.map((message) => parseRawRule(message).attributes);
  expect(messages.map(placeOfRule)).toEqual([
    { ...FILTER, chain: "FORWARD", handle: first!.handle! },
    { ...FILTER, chain: "FORWARD", handle: second!.handle! },
  ]);
  const names = (raw: Uint8Array) => decodeExpressions(raw).map(({ name }) => name);
  expect(names(first!.expressions!)).toEqual([
    ...["meta", "cmp", "payload", "bitwise", "cmp", "match", "counter", "target"],
  ]);
  // As bytes, and taken apart and put together.
  socket.transaction("copy", SUBSYSTEM_NFTABLES, [
    addRawRule(FILTER, "copy", { expressions: first!.expressions!, protocol: { number: 6, not: false } }),
  ]);
  const handle = placeOfRule(socket.dump("list rules", getRules(FILTER, "copy"))[0]!).handle;
  socket.transaction("insert", SUBSYSTEM_NFTABLES, [
    addRawRule(FILTER, "copy", {
      expressions: encodeExpressions(decodeExpressions(first!.expressions!)),
      protocol: { number: 6, not: false },
    }, handle),
  ]);
  const [wanted] = iptables("-S", "FORWARD").split("\n").filter((line) => line.startsWith("-A"));
  const copies = iptables("-S", "copy").split("\n").filter((line) => line.startsWith("-A"));
  expect(copies).toEqual([wanted!, wanted!].map((line) => line.replace("FORWARD", "copy")));
});

test("extensions are told by name and revision", () => {
  using namespace = createNamespace("extensions");
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  const has = (family: 4 | 6, kind: "match" | "target", name: string, revision: number) =>
    socket.attempt("ask", [getExtension(family, kind, name, revision)])[0] === undefined;
  expect(has(4, "match", "conntrack", 3)).toBe(true);
  expect(has(6, "match", "set", 4)).toBe(true);
  expect(has(4, "target", "MASQUERADE", 0)).toBe(true);
  expect(has(4, "match", "conntrack", 200)).toBe(false);
  expect(has(4, "match", "no-such-match", 0)).toBe(false);
  expect(has(4, "match", "icmp6", 0)).toBe(false);
});

test("events say which table and chain they are about, and whether it was a rule", async () => {
  using namespace = createNamespace("events");
  using listener = openNetlink(NETLINK_NETFILTER, { namespace, groups: [GROUP_NFTABLES] });
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  const userdata = Uint8Array.of(0x56, 1, 0x6d);
  const accept = encodeExpressions([{ name: "immediate", data: { dreg: 0, data: { verdict: { code: 1 } } } }]);
  socket.transaction("make", SUBSYSTEM_NFTABLES, [
    newMarkedTable(FILTER, userdata),
    newMarkedChain(FILTER, "INPUT", userdata, { type: "filter", hook: "input", priority: 0, policy: "drop" }),
    newMarkedChain(FILTER, "x", userdata),
    addRawRule(FILTER, "x", { expressions: accept, userdata }),
  ]);
  socket.transaction("delete", SUBSYSTEM_NFTABLES, [deleteTable(FILTER)]);
  const touched: unknown[] = [];
  const stop = new AbortController();
  for await (const messages of listener.events(stop.signal)) {
    for (const message of messages) touched.push(touchedBy(message));
    if (touched.length >= 10) stop.abort();
  }
  const about = (chain?: string, isRule = false) => ({ ...FILTER, isRule, ...chain === undefined ? {} : { chain } });
  expect(touched.filter((one) => one !== undefined)).toEqual([
    about(),
    about("INPUT"),
    about("x"),
    about("x", true),
    about("x", true),
    about("INPUT"),
    about("x"),
    about(),
  ]);
  expect(touched.filter((one) => one === undefined).length).toBe(2);
});
