import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serveApi } from "../api/server.ts";
import type { KernelDoor } from "../sdk/kernel_door.ts";
import { type Config, parseConfig } from "./config.ts";
import { runDaemon } from "./daemon.ts";
import { createLog } from "./log.ts";
import { rehearse } from "./rehearsal.ts";

const directory = mkdtempSync(join(tmpdir(), "manx-rehearsal-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const configOf = (text = ""): Config =>
  parseConfig(
    `node: a\nstateDirectory: ${directory}\napi: { socket: ${join(directory, "real.sock")} }\n${text}`,
    "manx.yaml",
  );
const run = (config: Config, kernel: KernelDoor, signal: AbortSignal) =>
  runDaemon(config, {
    signal,
    kernel,
    serve: serveApi,
    log: createLog({ level: "error", format: "text" }),
    isRehearsal: true,
  });
const never = new AbortController().signal;

test("a rehearsal attaches and removes pods through a real daemon, away from this node, and leaves nothing", async () => {
  const own = readlinkSync("/proc/self/ns/net");
  const links = readdirSync("/sys/class/net");
  const seen: Config[] = [];
  await rehearse(configOf(), (config, kernel, signal) => {
    seen.push(config);
    return run(config, kernel, signal);
  }, never);
  expect(seen.map(({ datastore, api, routing }) => [datastore.use, api.socket.startsWith(directory), routing.use]))
    .toEqual([
      ["sqlite", true, "none"],
    ]);
  expect(seen[0]!.api.socket).not.toBe(join(directory, "real.sock"));
  expect(readdirSync("/sys/class/net")).toEqual(links);
  expect(readlinkSync("/proc/self/ns/net")).toBe(own);
  expect(existsSync(join(directory, "rehearsal"))).toBe(false);
});

test("what an ADD would be refused with fails the rehearsal", async () => {
  const broken = (config: Config, kernel: KernelDoor, signal: AbortSignal) =>
    run({ ...config, ipam: { ...config.ipam, config: {} } }, kernel, signal);
  expect(rehearse(configOf(), broken, never)).rejects.toThrow(/ADD: .*pool/);
});

test("a daemon that ends by itself fails the rehearsal", () => {
  expect(rehearse(configOf(), () => Promise.resolve(), never)).rejects.toThrow("ended by itself");
});

test("a stop ends the rehearsal", async () => {
  const stop = new AbortController();
  const rehearsal = rehearse(configOf(), (config, kernel, signal) => {
    setTimeout(() => stop.abort(), 100);
    return run(config, kernel, signal);
  }, stop.signal);
  expect(rehearsal).rejects.toThrow();
  await rehearsal.catch(() => {});
  expect(existsSync(join(directory, "rehearsal"))).toBe(false);
});

test("with somebody's own plugin nothing is rehearsed", async () => {
  let ran = false;
  await rehearse(configOf("cni: { use: /etc/manx/plugins/own.ts }"), async () => {
    ran = true;
  }, never);
  expect(ran).toBe(false);
});
