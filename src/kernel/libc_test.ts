import { expect, test } from "bun:test";
import { formatAddress, parseAddress } from "../model/address.ts";
import { KernelError } from "./errors.ts";
import * as c from "./libc.ts";
import { createNamespace, inNamespace } from "./netns.ts";
import { NETLINK_ROUTE, openNetlink } from "./netlink/socket.ts";
import { setLinkUp } from "./rtnetlink.ts";
import { inetSockaddr, parseInetSockaddr } from "./sockaddr.ts";
import { thrownBy } from "./testdata/tool_fixture.ts";

function loopbackNamespace(title: string) {
  const namespace = createNamespace(title);
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  setLinkUp(socket, { name: "lo" });
  return namespace;
}
const newSocket = (family: number, type: number) =>
  c.check("open socket", c.socket(family, type | c.SOCK.NONBLOCK | c.SOCK.CLOEXEC, 0));
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

test("the machine is little-endian, as the codec takes for granted", () => {
  expect(new Uint8Array(new Uint32Array([1]).buffer)[0]).toBe(1);
});

test("a failing call gives the negated errno of that very call", () => {
  expect(c.close(-1)).toBe(-9);
  expect(c.open("/no/such/file", c.O.RDONLY)).toBe(-2);
  expect(c.socket(c.AF.INET, 99, 0)).toBe(-22);
  const error = thrownBy(() => c.check("open the thing", c.open("/no/such/file", c.O.RDONLY)));
  expect(error).toBeInstanceOf(KernelError);
  expect(error.message).toBe("open the thing: ENOENT (No such file or directory)");
});

test("files are written, read, locked and given back", () => {
  const path = `/tmp/manx-libc-${process.pid}`;
  const fd = c.check("create", c.open(path, c.O.RDWR | c.O.CREAT | c.O.EXCL | c.O.CLOEXEC, 0o600));
  const other = c.check("open again", c.open(path, c.O.RDONLY | c.O.CLOEXEC));
  try {
    expect(c.writeFd(fd, c.cString("hello"))).toBe(6);
    const into = c.buffer(16);
    expect(c.readFd(other, into)).toBe(6);
    expect(hex(into.subarray(0, 6))).toBe("68656c6c6f00");
    expect(c.flock(fd, c.LOCK.EX)).toBe(0);
    expect(c.flock(other, c.LOCK.EX | c.LOCK.NB)).toBe(-c.Errno.EAGAIN);
    expect(c.flock(fd, c.LOCK.UN)).toBe(0);
    expect(c.flock(other, c.LOCK.EX | c.LOCK.NB)).toBe(0);
    expect(c.fcntl(fd, c.F.GETFD, 0)).toBe(1);
  } finally {
    c.close(fd);
    c.close(other);
    require("node:fs").unlinkSync(path);
  }
});

test("umask gives the mask before", () => {
  const before = c.umask(0o077);
  expect(c.umask(before)).toBe(0o077);
});

for (const text of ["127.0.0.1", "::1"]) {
  test(`a non-blocking TCP connection on ${text} inside a namespace: connect, poll, accept, send, receive, close`, () => {
    using namespace = loopbackNamespace("tcp");
    const address = parseAddress(text);
    const family = address.length === 4 ? c.AF.INET : c.AF.INET6;
    const [server, client] = inNamespace(
      namespace,
      () => [newSocket(family, c.SOCK.STREAM), newSocket(family, c.SOCK.STREAM)],
    );
    c.check("reuse", c.setsockoptInt(server!, c.SOL.SOCKET, c.SO.REUSEADDR, 1));
    c.check("bind", c.bind(server!, inetSockaddr({ address, port: 0 })));
    c.check("listen", c.listen(server!, 8));
    const bound = parseInetSockaddr(c.getsockname(server!));
    expect(formatAddress(bound.address)).toBe(text);
    expect(bound.port).toBeGreaterThan(0);
    expect(c.accept4(server!, 0)).toBe(-c.Errno.EAGAIN);
    expect([0, -c.Errno.EINPROGRESS]).toContain(c.connect(client!, inetSockaddr(bound)));
    const [writable, readable] = c.poll(
      [{ fd: client!, events: c.POLL.OUT }, { fd: server!, events: c.POLL.IN }],
      2000,
    );
    expect(writable! & c.POLL.OUT).toBe(c.POLL.OUT);
    expect(readable! & c.POLL.IN).toBe(c.POLL.IN);
    expect(c.getsockoptInt(client!, c.SOL.SOCKET, c.SO.ERROR)).toBe(0);
    const accepted = c.check("accept", c.accept4(server!, c.SOCK.NONBLOCK | c.SOCK.CLOEXEC));
    expect(parseInetSockaddr(c.getpeername(accepted))).toEqual(parseInetSockaddr(c.getsockname(client!)));
    expect(c.send(client!, c.cString("ping"), c.MSG.NOSIGNAL)).toBe(5);
    expect(c.poll([{ fd: accepted, events: c.POLL.IN }], 2000)).toEqual([c.POLL.IN]);
    const into = c.buffer(64);
    expect(c.recv(accepted, into, 0)).toBe(5);
    expect(c.shutdown(client!, 1)).toBe(0);
    expect(c.poll([{ fd: accepted, events: c.POLL.IN }], 2000)[0]! & c.POLL.IN).toBe(c.POLL.IN);
    expect(c.recv(accepted, into, 0)).toBe(0);
    for (const fd of [server!, client!, accepted]) expect(c.close(fd)).toBe(0);
  });
}

test("a refused connection is told by SO_ERROR after poll", () => {
  using namespace = loopbackNamespace("refused");
  const fd = inNamespace(namespace, () => newSocket(c.AF.INET, c.SOCK.STREAM));
  const started = c.connect(fd, inetSockaddr({ address: parseAddress("127.0.0.1"), port: 9 }));
  if (started === -c.Errno.EINPROGRESS) {
    c.poll([{ fd, events: c.POLL.OUT }], 2000);
    expect(c.getsockoptInt(fd, c.SOL.SOCKET, c.SO.ERROR)).toBe(111);
  } else expect(started).toBe(-111);
  c.close(fd);
});

test("datagrams carry their sender, by recvfrom and by recvmsg, empty ones too", () => {
  using namespace = loopbackNamespace("udp");
  const [a, b] = inNamespace(namespace, () => [newSocket(c.AF.INET, c.SOCK.DGRAM), newSocket(c.AF.INET, c.SOCK.DGRAM)]);
  const address = parseAddress("127.0.0.1");
  for (const fd of [a!, b!]) c.check("bind", c.bind(fd, inetSockaddr({ address, port: 0 })));
  const nameA = parseInetSockaddr(c.getsockname(a!)), nameB = parseInetSockaddr(c.getsockname(b!));
  expect(c.sendto(a!, c.cString("one"), 0, inetSockaddr(nameB))).toBe(4);
  const into = c.buffer(32);
  const got = c.recvfrom(b!, into, 0);
  expect(got.count).toBe(4);
  expect(parseInetSockaddr(got.from)).toEqual(nameA);
  expect(c.recvfrom(b!, into, 0)).toEqual({ count: -c.Errno.EAGAIN, from: new Uint8Array(0) });
  expect(c.sendto(a!, c.buffer(0), 0, inetSockaddr(nameB))).toBe(0);
  expect(c.recv(b!, into, 0)).toBe(0);

  const parts = [c.cString("ab"), c.cString("cd")];
  expect(c.sendmsg(a!, c.messageHeader(parts, inetSockaddr(nameB)), 0)).toBe(6);
  const first = c.buffer(4), second = c.buffer(8), name = c.buffer(32);
  const received = c.recvmsg(b!, c.messageHeader([first, second], name, c.buffer(64)), 0);
  expect(received.count).toBe(6);
  expect(hex(first) + hex(second.subarray(0, 2))).toBe("616200636400");
  expect(parseInetSockaddr(name.subarray(0, received.nameBytes))).toEqual(nameA);
  c.close(a!);
  c.close(b!);
});

test("poll times out with all zeros, tells of a bad descriptor, and takes hundreds of entries", () => {
  using namespace = loopbackNamespace("poll");
  const fds = inNamespace(namespace, () => Array.from({ length: 300 }, () => newSocket(c.AF.INET, c.SOCK.DGRAM)));
  expect(c.poll([{ fd: fds[0]!, events: c.POLL.IN }], 1)).toEqual([0]);
  const ready = c.poll(fds.map((fd) => ({ fd, events: c.POLL.OUT })), 0);
  expect(ready.every((bits) => bits === c.POLL.OUT)).toBe(true);
  for (const fd of fds) c.close(fd);
  expect(c.poll([{ fd: 999_999, events: c.POLL.IN }], 0)).toEqual([c.POLL.NVAL]);
});

test("a receive timeout bounds a blocking socket", () => {
  using namespace = loopbackNamespace("timeout");
  const fd = inNamespace(namespace, () => c.check("socket", c.socket(c.AF.INET, c.SOCK.DGRAM | c.SOCK.CLOEXEC, 0)));
  c.check("timeout", c.setsockoptTimeout(fd, c.SO.RCVTIMEO, 20));
  expect(c.recv(fd, c.buffer(8), 0)).toBe(-c.Errno.EAGAIN);
  c.close(fd);
});

test("socket addresses that are neither v4 nor v6 are a decode error", () => {
  for (
    const bytes of [
      new Uint8Array(0),
      new Uint8Array([2]),
      new Uint8Array([2, 0, 1, 2]),
      new Uint8Array([10, 0, 0, 0, 0, 0, 0, 0]),
      new Uint8Array(30),
    ]
  ) {
    expect(() => parseInetSockaddr(bytes)).toThrow("decode at byte 0");
  }
});
