/** IP sets on the real kernel, checked by the real `ipset`. */
import { expect, test } from "bun:test";
import { parseAddress, parseCidr } from "../../../model/address.ts";
import { createNamespace } from "../../netns.ts";
import { KernelError } from "../../errors.ts";
import { runIn, thrownBy } from "../../testdata/tool_fixture.ts";
import { openNetlink } from "../socket.ts";
import {
  addMembers,
  createSet,
  deleteMembers,
  destroySet,
  getSetIndex,
  interfaceMember,
  IpsetErrno,
  listSets,
  MemberMessages,
  parseIndex,
  parseSetPart,
  type SetName,
  swapSets,
} from "./ipset.ts";

const port = (address: string, protocol: number, number: number): string =>
  parseAddress(address) + String.fromCharCode(protocol, number >> 8, number & 0xff);

const SETS: readonly (readonly [SetName, readonly string[], readonly string[]])[] = [
  [{ name: "n4", kind: "net", family: 4 }, ["10.0.0.1/32", "10.1.0.0/16", "128.0.0.0/1"].map(parseCidr), [
    "10.0.0.1",
    "10.1.0.0/16",
    "128.0.0.0/1",
  ]],
  [{ name: "n6", kind: "net", family: 6 }, ["fd00::1/128", "fd01::/64"].map(parseCidr), ["fd00::1", "fd01::/64"]],
  [{ name: "p4", kind: "port", family: 4 }, [port("10.0.0.1", 6, 80), port("10.0.0.1", 132, 65535)], [
    "10.0.0.1,sctp:65535",
    "10.0.0.1,tcp:80",
  ]],
  [{ name: "p6", kind: "port", family: 6 }, [port("fd00::1", 17, 0)], ["fd00::1,udp:0"]],
  [{ name: "i4", kind: "interface", family: 4 }, [interfaceMember(parseAddress("10.0.0.1"), "mx0123456789abc")], [
    "10.0.0.1,mx0123456789abc",
  ]],
  [{ name: "i6", kind: "interface", family: 6 }, [interfaceMember(parseAddress("fd00::1"), "mx0")], ["fd00::1,mx0"]],
];

test("the real tool lists every kind of member as it was meant, and what the kernel gives back is what we wrote", () => {
  using namespace = createNamespace("sets");
  using socket = openNetlink(12, { namespace });
  for (const [set, members] of SETS) {
    socket.request("make set", [createSet(set, members.length), ...addMembers(set, members)]);
  }
  const lines = runIn(namespace, "ipset", "save").split("\n").filter((line) => line.startsWith("add ")).sort();
  expect(lines).toEqual(SETS.flatMap(([{ name }, , shown]) => shown.map((one) => `add ${name} ${one}`)).sort());
  for (const [set, members] of SETS) {
    const parts = socket.dump("list", listSets({ name: set.name })).map(parseSetPart);
    expect(parts[0]!.header).toMatchObject({
      kind: set.kind,
      family: set.family,
      count: members.length,
      references: 0,
    });
    expect(parts.flatMap((part) => part.members).sort()).toEqual([...members].sort());
    socket.request("delete", deleteMembers(set, members));
    expect(socket.dump("list", listSets({ name: set.name })).map(parseSetPart).flatMap((part) => part.members)).toEqual(
      [],
    );
  }
  const headers = socket.dump("list headers", listSets({ headers: true })).map(parseSetPart);
  expect(headers.map(({ name }) => name).sort()).toEqual(SETS.map(([{ name }]) => name).sort());
});

test("many members go in a few messages, and come back all of them; swapped sets keep their numbers", () => {
  using namespace = createNamespace("many");
  using socket = openNetlink(12, { namespace });
  const many: SetName = { name: "many", kind: "net", family: 4 }, few: SetName = { ...many, name: "few" };
  const packed = new Uint8Array(50_000 * 5);
  for (let i = 0; i < 50_000; i++) packed.set([10, i >> 16, i >> 8, i, 32], i * 5);
  const messages = new MemberMessages(many, "add");
  messages.putPacked(packed);
  expect(messages.count).toBe(50_000);
  expect(messages.finish().length).toBeLessThan(20);
  socket.request("make", [createSet(many, 50_000), ...messages.finish(), createSet(few)]);
  const listed = (name: string) =>
    socket.dump("list", listSets({ name })).map(parseSetPart).reduce((sum, { members }) => sum + members.length, 0);
  const indexOf = (name: string) => parseIndex(socket.request("ask", [getSetIndex(name)])[0]!);
  expect([listed("many"), listed("few")]).toEqual([50_000, 0]);
  const before = [indexOf("many"), indexOf("few")];
  socket.request("swap", [swapSets("many", "few")]);
  expect([listed("many"), listed("few")]).toEqual([0, 50_000]);
  expect([indexOf("many"), indexOf("few")]).toEqual(before);
});

test("refusals are told by number, and a name that is too long is never sent", () => {
  using namespace = createNamespace("refused");
  using socket = openNetlink(12, { namespace });
  const set: SetName = { name: "s", kind: "net", family: 4 };
  socket.request("make", [createSet(set)]);
  const errno = (error: Error): number | undefined => error instanceof KernelError ? error.errno : undefined;
  expect(errno(thrownBy(() => socket.request("make", [createSet({ ...set, kind: "port" })])))).toBe(17);
  expect(errno(thrownBy(() => socket.request("ask", [getSetIndex("none")])))).toBe(2);
  runIn(namespace, "iptables-legacy", "-A", "INPUT", "-m", "set", "--match-set", "s", "src");
  expect(errno(thrownBy(() => socket.request("destroy", [destroySet("s")])))).toBe(IpsetErrno.Busy);
  expect(() => destroySet("x".repeat(32))).toThrow("at most 31 bytes");
  // Adding, deleting and destroying may be said twice.
  socket.request("destroy", [destroySet("none")]);
  const member = [parseCidr("10.0.0.1/32")];
  socket.request("again", [
    ...addMembers(set, member),
    ...addMembers(set, member),
    ...deleteMembers(set, member),
    ...deleteMembers(set, member),
  ]);
});
