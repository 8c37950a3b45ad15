import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { KernelError } from "./errors.ts";
import {
  createNamespace,
  currentNamespace,
  duplicateNamespace,
  inNamespace,
  namespacePath,
  openNamespace,
} from "./netns.ts";
import { getSysctl, setSysctl } from "./sysctl.ts";
import { runIn, thrownBy } from "./testdata/tool_fixture.ts";

const folder = mkdtempSync(join(tmpdir(), "manx-netns-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const here = () => readlinkSync("/proc/thread-self/ns/net");
const refusal = (body: () => unknown): KernelError => {
  const error = thrownBy(body);
  expect(error).toBeInstanceOf(KernelError);
  return error as KernelError;
};

test("a created namespace is a new one and leaves the thread where it was", () => {
  const before = here();
  using a = createNamespace("a");
  using b = createNamespace("b");
  expect(here()).toBe(before);
  const inA = inNamespace(a, here), inB = inNamespace(b, here);
  expect(new Set([before, inA, inB]).size).toBe(3);
  expect(here()).toBe(before);
});

test("switches nest, and each level returns to the one around it", () => {
  const before = here();
  using a = createNamespace("a");
  using b = createNamespace("b");
  const inA = inNamespace(a, here);
  const seen = inNamespace(a, () => {
    const inner = inNamespace(b, here);
    return [inner === inA, here() === inA];
  });
  expect(seen).toEqual([false, true]);
  expect(here()).toBe(before);
});

test("the thread is back after a body that throws", () => {
  const before = here();
  using a = createNamespace("a");
  expect(() =>
    inNamespace(a, () => {
      throw new TypeError("from inside");
    })
  ).toThrow("from inside");
  expect(here()).toBe(before);
});

test("a body that returns a promise is refused, with the thread back", () => {
  const before = here();
  using a = createNamespace("a");
  expect(() => inNamespace(a, () => Promise.resolve(1))).toThrow("must be synchronous");
  expect(() => inNamespace(a, () => ({ then: () => undefined }))).toThrow("must be synchronous");
  expect(here()).toBe(before);
});

test("a thousand switches amid asynchronous work never show the wrong namespace", async () => {
  const before = here();
  using a = createNamespace("a");
  using b = createNamespace("b");
  const inA = inNamespace(a, here), inB = inNamespace(b, here);
  let wrong = 0;
  await Promise.all(Array.from({ length: 20 }, async (_, lane) => {
    for (let round = 0; round < 50; round++) {
      await Bun.file("/proc/self/stat").text();
      if (inNamespace(lane % 2 === 0 ? a : b, here) !== (lane % 2 === 0 ? inA : inB)) wrong++;
      if (here() !== before) wrong++;
    }
  }));
  expect(wrong).toBe(0);
});

test("a held namespace opens by its path, also for another process, and a duplicate outlives the original", () => {
  const a = createNamespace("a");
  const inA = inNamespace(a, here);
  using again = openNamespace(namespacePath(a));
  expect(inNamespace(again, here)).toBe(inA);
  expect(runIn(a, "readlink", "/proc/self/ns/net").trim()).toBe(inA);
  using copy = duplicateNamespace(a);
  a[Symbol.dispose]();
  a[Symbol.dispose]();
  expect(inNamespace(copy, here)).toBe(inA);
  expect(() => inNamespace(a, here)).toThrow("used after it was closed");
});

test("the current namespace can be held and entered", () => {
  using own = currentNamespace();
  expect(inNamespace(own, here)).toBe(here());
});

test("a missing path is ENOENT with the path in the message", () => {
  const error = refusal(() => openNamespace("/run/netns/no-such-namespace"));
  expect(error.errnoName).toBe("ENOENT");
  expect(error.message).toContain("/run/netns/no-such-namespace");
});

test("paths that are not a network namespace are EINVAL and never block: a file, a directory, a fifo, a device, another namespace", () => {
  const file = join(folder, "plain");
  writeFileSync(file, "x");
  const fifo = join(folder, "fifo");
  expect(Bun.spawnSync(["mkfifo", fifo]).exitCode).toBe(0);
  for (const path of [file, folder, fifo, "/dev/null", "/proc/self/ns/mnt", "/proc/self/ns/pid", "/proc/self/status"]) {
    const error = refusal(() => openNamespace(path));
    expect([path, error.errnoName]).toEqual([path, "EINVAL"]);
    expect(error.message).toContain(path);
  }
});

test("hostile paths are refused with an errno: NUL inside, too long, a loop, empty", () => {
  const loop = join(folder, "loop");
  expect(Bun.spawnSync(["ln", "-s", loop, loop]).exitCode).toBe(0);
  expect(refusal(() => openNamespace("/proc/self/ns/net\0/../../etc")).errnoName).toBe("EINVAL");
  expect(refusal(() => openNamespace("/" + "x".repeat(300))).errnoName).toBe("ENAMETOOLONG");
  expect(refusal(() => openNamespace("/x".repeat(4000))).errnoName).toBe("ENAMETOOLONG");
  expect(refusal(() => openNamespace(loop)).errnoName).toBe("ELOOP");
  expect(refusal(() => openNamespace("")).errnoName).toBe("ENOENT");
});

test("refused opens leave no file descriptor behind", () => {
  const count = () => Array.from(new Bun.Glob("*").scanSync({ cwd: "/proc/self/fd", onlyFiles: false })).length;
  const before = count();
  for (let i = 0; i < 50; i++) {
    expect(() => openNamespace("/dev/null")).toThrow();
    expect(() => openNamespace("/proc/self/ns/mnt")).toThrow();
    using held = createNamespace("short");
    inNamespace(held, () => undefined);
  }
  // Fewer where what an earlier test left to the collector goes meanwhile.
  expect(count()).toBeLessThanOrEqual(before);
});

test("a sysctl lands in the namespace of the switch and nowhere else", () => {
  const own = getSysctl("ipv4/ip_forward");
  using a = createNamespace("a");
  using b = createNamespace("b");
  const other = own === "1" ? "0" : "1";
  inNamespace(a, () => setSysctl("ipv4/ip_forward", other));
  expect(runIn(a, "cat", "/proc/sys/net/ipv4/ip_forward").trim()).toBe(other);
  expect(inNamespace(a, () => getSysctl("ipv4/ip_forward"))).toBe(other);
  expect(getSysctl("ipv4/ip_forward")).toBe(own);
  inNamespace(b, () => setSysctl("ipv4/ip_forward", "0"));
  expect(runIn(b, "cat", "/proc/sys/net/ipv4/ip_forward").trim()).toBe("0");
  expect(runIn(a, "cat", "/proc/sys/net/ipv4/ip_forward").trim()).toBe(other);
});

test("a sysctl of several words is compared word by word, and a refused value is a kernel error", () => {
  using a = createNamespace("a");
  inNamespace(a, () => {
    setSysctl("ipv4/ip_local_port_range", "40000 50000");
    expect(getSysctl("ipv4/ip_local_port_range")).toBe("40000\t50000");
    setSysctl("ipv4/ip_local_port_range", "40000 50000");
    const error = refusal(() => setSysctl("ipv4/ip_local_port_range", "5 4"));
    expect(error.errnoName).toBe("EINVAL");
    expect(error.operation).toBe("set sysctl net/ipv4/ip_local_port_range to 5 4");
  });
});

test("a sysctl path cannot leave /proc/sys/net, and a missing one is ENOENT", () => {
  for (
    const path of [
      "../kernel/hostname",
      "ipv4/../../kernel/hostname",
      "/etc/passwd",
      "",
      "ipv4//ip_forward",
      "ipv4/ip_forward\0",
    ]
  ) {
    expect([path, refusal(() => setSysctl(path, "x")).errnoName]).toEqual([path, "EINVAL"]);
  }
  expect(refusal(() => getSysctl("ipv4/conf/nosuchlink/forwarding")).errnoName).toBe("ENOENT");
});
