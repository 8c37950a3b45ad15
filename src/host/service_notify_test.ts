import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AF, bind, buffer, check, close, MSG, recv, SOCK, socket } from "../kernel/libc.ts";
import { notifyService } from "./service_notify.ts";

function received(path: string, state: string): string {
  const fd = check("socket", socket(AF.UNIX, SOCK.DGRAM, 0));
  try {
    const name = new TextEncoder().encode(path);
    const address = buffer(2 + name.length + (path.startsWith("\0") ? 0 : 1));
    new DataView(address.buffer).setUint16(0, AF.UNIX, true);
    address.set(name, 2);
    check("bind", bind(fd, address));
    expect(notifyService(state, path.replace("\0", "@"))).toBe(true);
    const bytes = buffer(100);
    return new TextDecoder().decode(bytes.subarray(0, check("recv", recv(fd, bytes, MSG.DONTWAIT))));
  } finally {
    close(fd);
  }
}

test("a notice reaches a socket in the file system and an abstract one", () => {
  const directory = mkdtempSync(join(tmpdir(), "manx-notify-"));
  try {
    expect(received(join(directory, "n"), "READY=1")).toBe("READY=1");
    expect(received(`\0manx-notify-${process.pid}`, "STOPPING=1")).toBe("STOPPING=1");
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test("without a service manager, or with one that has gone, nothing happens", () => {
  expect([
    notifyService("READY=1", undefined),
    notifyService("READY=1", "/nowhere/n"),
    notifyService("READY=1", "relative"),
  ])
    .toEqual([false, false, false]);
});
