import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import vectors from "../../test/vectors/cni-versions.json";
import type { AddReply, ErrorReply } from "../sdk/attach.ts";
import { VERBS } from "./environment.ts";
import { callDaemon, type Exchange } from "./daemon.ts";
import { type Ask, runCni } from "./run.ts";
import { SUPPORTED_VERSIONS } from "./version.ts";

const directory = mkdtempSync(join(tmpdir(), "manx-cni-"));
const socket = join(directory, "manx.sock");
/** What the daemon of these tests answers, and what it was asked. */
let answer: { status: number; body: unknown };
let asked: { method: string; path: string; body: unknown }[];
const server = Bun.serve({
  unix: socket,
  async fetch(request) {
    const text = await request.text();
    asked.push({
      method: request.method,
      path: new URL(request.url).pathname,
      body: text === "" ? undefined : JSON.parse(text),
    });
    return answer.body === undefined
      ? new Response(null, { status: answer.status })
      : Response.json(answer.body, { status: answer.status });
  },
});
afterAll(async () => {
  await server.stop(true);
  rmSync(directory, { recursive: true });
});

const REPLY: AddReply = {
  interfaceName: "eth0",
  mac: "0a:58:0a:f4:00:05",
  hostInterface: "mx0a1b2c3d4e5",
  hostMac: "ee:ee:ee:ee:ee:ee",
  mtu: 1450,
  addresses: [
    { address: "10.244.0.5/32", gateway: "169.254.1.1" },
    { address: "fd00:10:244::5/128", gateway: "fe80::1" },
  ],
  routes: [{ dst: "0.0.0.0/0", gw: "169.254.1.1" }, { dst: "::/0", gw: "fe80::1" }],
  timing: { leaseMs: 1, wiringMs: 1, policyMs: 1, totalMs: 3 },
};
beforeEach(() => {
  asked = [];
  answer = { status: 200, body: REPLY };
});

// Any namespace but our own passes for the container's here: a file of this test's is one.
const netns = join(directory, "netns");
await Bun.write(netns, "");
const ENV = { CNI_CONTAINERID: "c0ffee", CNI_NETNS: netns, CNI_IFNAME: "eth0", CNI_PATH: "/opt/cni/bin" };
const CONFIG = { cniVersion: "1.1.0", name: "pods", type: "manx", socket };

/** What `blocking_io` does, beside the daemon that lives in this process. */
const exchange: Exchange = (path, request, { enough }) =>
  new Promise((resolve, reject) => {
    let answer = new Uint8Array();
    Bun.connect({
      unix: path,
      socket: {
        open: (connection) => void connection.write(request),
        data(connection, data) {
          answer = Buffer.concat([answer, data]);
          if (enough(answer)) connection.end();
        },
        close: () => resolve(answer),
      },
    }).catch((cause) => reject(Object.assign(cause, { errno: cause.code === "ENOENT" ? 2 : 111 })));
  });

const ask: Ask = (path, ...request) => callDaemon(exchange, path, ...request);

async function call(verb: string, config: unknown, env: Record<string, string | undefined> = {}) {
  const written: string[] = [];
  const stdin = typeof config === "string" ? config : JSON.stringify(config);
  const status = await runCni(
    { ...ENV, CNI_COMMAND: verb, ...env },
    { readStdin: () => stdin, write: (text) => written.push(text), ask },
  );
  expect(written.length).toBeLessThanOrEqual(1);
  return { status, out: written.length === 0 ? undefined : JSON.parse(written[0]!) };
}

/** The error's number and text, after checking that it is a whole error object and nothing more. */
async function refusal(verb: string, config: unknown, env: Record<string, string | undefined> = {}) {
  const { status, out } = await call(verb, config, env);
  expect(status).toBe(1);
  expect(Object.keys(out).filter((key) => !["cniVersion", "code", "msg", "details"].includes(key))).toEqual([]);
  expect(out.cniVersion).toMatch(/^\d+\.\d+\.\d+$/);
  expect(out.msg).not.toContain("    at ");
  return { code: out.code as number, msg: out.msg as string, details: out.details as string | undefined };
}

type Fields = Readonly<Record<string, { type: string; presence: string; fields?: Fields }>>;

/** Every key is one the version defines and every required one is there. */
function checkFields(value: Record<string, unknown>, fields: Fields, path: string): void {
  for (const key of Object.keys(value)) {
    if (!(key in fields)) throw new Error(`${path}.${key} is not in this version`);
  }
  for (const [key, field] of Object.entries(fields)) {
    const found = value[key];
    if (found === undefined) {
      if (field.presence === "required" || field.presence === "omitted-by-ipam") {
        throw new Error(`${path}.${key} is missing`);
      }
      continue;
    }
    if (field.type === "string") expect(typeof found).toBe("string");
    if (field.type === "uint") expect(Number.isInteger(found) && (found as number) >= 0).toBe(true);
    if (field.type.startsWith("[]")) expect(Array.isArray(found)).toBe(true);
    if (field.fields === undefined) continue;
    const items = (Array.isArray(found) ? found : [found]) as Record<string, unknown>[];
    items.forEach((item, i) => checkFields(item, field.fields!, `${path}.${key}[${i}]`));
  }
}

describe.each([...SUPPORTED_VERSIONS])("cniVersion %s", (version) => {
  const facts = vectors.versions[version];
  const config = { ...CONFIG, cniVersion: version };

  test("ADD gives a result of the version's fields and no others", async () => {
    const { status, out } = await call("ADD", config);
    expect(status).toBe(0);
    expect(out.cniVersion).toBe(version);
    checkFields(out, facts.result as unknown as Fields, "result");
  });

  test("ADD gives the result of the vectors for the vectors' addresses", async () => {
    const example: any = facts.examples.result;
    answer.body = {
      ...REPLY,
      hostInterface: example.interfaces[0].name,
      routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0", gw: "fe80::1" }],
    };
    const { out } = await call("ADD", { ...config, dns: example.dns }, { CNI_NETNS: netns });
    const mtu = version === "1.1.0" ? { mtu: 1450 } : {};
    expect(out).toEqual({
      ...example,
      interfaces: [{ ...example.interfaces[0], ...mtu }, { ...example.interfaces[1], sandbox: netns, ...mtu }],
      routes: example.routes.slice(0, 2),
    });
  });

  test("every variable a verb requires is required", async () => {
    for (const [verb, { requiredEnv }] of Object.entries(facts.verbs) as [string, { requiredEnv: string[] }][]) {
      for (const name of requiredEnv) {
        // 0.3.x lists it for DEL; later versions want DEL to succeed without, and so do we for all.
        if (verb === "DEL" && name === "CNI_NETNS") continue;
        for (const value of [undefined, ""]) {
          const { code, msg } = await refusal(verb, { ...config, prevResult: {} }, { [name]: value });
          expect([verb, name, code]).toEqual([verb, name, 4]);
          expect(msg).toContain(name);
        }
      }
    }
  });

  test("verbs of the version are served and later ones refused with 1", async () => {
    for (const verb of ["DEL", "CHECK", "GC", "STATUS"] as const) {
      answer = { status: 204, body: undefined };
      const full = { ...config, prevResult: verb === "CHECK" ? {} : undefined, "cni.dev/valid-attachments": [] };
      if (verb in facts.verbs) expect([verb, await call(verb, full)]).toEqual([verb, { status: 0, out: undefined }]);
      else {expect(await refusal(verb, full)).toMatchObject({
          code: 1,
          msg: expect.stringContaining(VERBS[verb].since),
        });}
    }
  });

  test("VERSION echoes the version and lists what is supported", async () => {
    const { status, out } = await call("VERSION", { cniVersion: version }, {
      CNI_CONTAINERID: undefined,
      CNI_NETNS: undefined,
    });
    expect(status).toBe(0);
    expect(out).toEqual({ cniVersion: version, supportedVersions: [...SUPPORTED_VERSIONS] });
    expect(asked).toEqual([]);
  });

  test("errors carry the caller's version", async () => {
    answer = { status: 503, body: { error: { code: "unavailable", message: "not in sync" } } satisfies ErrorReply };
    const { out } = await call("ADD", config);
    expect(out).toEqual({ cniVersion: version, code: 11, msg: "not in sync" });
  });
});

describe("VERSION", () => {
  test.each(["", "nonsense", "[]", '{"cniVersion":7}', '{"cniVersion":"../.."}'])(
    "answers in the newest for %j",
    async (stdin) => {
      expect((await call("VERSION", stdin)).out.cniVersion).toBe("1.1.0");
    },
  );
  test("answers where stdin cannot be read", async () => {
    const written: string[] = [];
    const readStdin = () => {
      throw new Error("EBADF");
    };
    const status = await runCni({ CNI_COMMAND: "VERSION" }, {
      readStdin,
      write: (text) => written.push(text),
      ask,
    });
    expect(status).toBe(0);
    expect(JSON.parse(written[0]!).supportedVersions).toContain("0.3.0");
  });
});

describe("environment", () => {
  test.each([
    [{ CNI_COMMAND: "UPDATE" }, "CNI_COMMAND"],
    [{ CNI_COMMAND: "add" }, "CNI_COMMAND"],
    [{ CNI_COMMAND: "toString" }, "CNI_COMMAND"],
    [{ CNI_CONTAINERID: "-a" }, "CNI_CONTAINERID"],
    [{ CNI_CONTAINERID: "a/b" }, "CNI_CONTAINERID"],
    [{ CNI_CONTAINERID: "a\n" }, "CNI_CONTAINERID"],
    [{ CNI_IFNAME: "." }, "CNI_IFNAME"],
    [{ CNI_IFNAME: ".." }, "CNI_IFNAME"],
    [{ CNI_IFNAME: "a/b" }, "CNI_IFNAME"],
    [{ CNI_IFNAME: "a:b" }, "CNI_IFNAME"],
    [{ CNI_IFNAME: "a b" }, "CNI_IFNAME"],
    [{ CNI_IFNAME: "sixteen-letters-" }, "CNI_IFNAME"],
    [{ CNI_ARGS: "A=1;B" }, "CNI_ARGS"],
    [{ CNI_ARGS: "=1" }, "CNI_ARGS"],
  ])("%j is refused with 4", async (env, name) => {
    expect(await refusal("ADD", CONFIG, env as Record<string, string>)).toMatchObject({
      code: 4,
      msg: expect.stringContaining(name),
    });
    expect(asked).toEqual([]);
  });
  test("several missing variables are all named", async () => {
    const { msg } = await refusal("ADD", CONFIG, { CNI_NETNS: undefined, CNI_IFNAME: "" });
    expect(msg).toBe("CNI ADD: CNI_NETNS, CNI_IFNAME not set, wanted in the environment");
  });
});

describe("network configuration", () => {
  test.each(["", " \n", "{", "nonsense", "7", "null", "[]", '"text"', "{}x"])(
    "%j on stdin is refused with 6",
    async (stdin) => {
      expect((await refusal("ADD", stdin)).code).toBe(6);
    },
  );
  test.each([
    [{ cniVersion: "0.2.0" }, 1, "cniVersion"],
    [{ cniVersion: "2.0.0" }, 1, "cniVersion"],
    [{ cniVersion: undefined }, 1, "0.1.0"],
    [{ cniVersion: "1.1" }, 6, "cniVersion"],
    [{ cniVersion: 1 }, 6, "cniVersion"],
    [{ name: undefined }, 7, "name"],
    [{ name: "a b" }, 7, "name"],
    [{ name: "" }, 7, "name"],
    [{ sokcet: "/x" }, 2, 'sokcet: found "/x"'],
    [{ logLevel: "debug" }, 2, "logLevel"],
    [{ ipMasq: true }, 2, "ipMasq"],
    [{ ipam: { type: "host-local" } }, 2, "ipam.type"],
    [{ ipam: 4 }, 7, "ipam"],
    [{ socket: "manx.sock" }, 7, "socket"],
    [{ socket: `/${"x".repeat(107)}` }, 7, "socket"],
    [{ mtu: 67 }, 7, "mtu"],
    [{ mtu: "1500" }, 7, "mtu"],
    [{ pools: "a" }, 7, "pools"],
    [{ pools: [""] }, 7, "pools[0]"],
    [{ families: [] }, 7, "families"],
    [{ families: [5] }, 7, "families"],
    [{ routes: [{ dst: "10.0.0.0/33" }] }, 7, "routes[0]"],
    [{ routes: [{ dst: "10.0.0.0" }] }, 7, "routes[0].dst"],
    [{ routes: [{ dst: "10.0.0.0/8", gw: "fe80::1" }] }, 7, "routes[0].gw"],
    [{ routes: [{ dst: "10.0.0.0/8", mtu: 1400 }] }, 2, "routes[0].mtu"],
    [{ args: { cni: { labels: { a: "b" } } } }, 7, "args.cni.labels"],
    [{ args: { cni: { labels: [{ key: "a", value: 1 }] } } }, 7, "args.cni.labels[0].value"],
    [{ args: { cni: { labels: [{ key: "a", value: "1" }, { key: "a", value: "2" }] } } }, 7, "args.cni.labels[1].key"],
    [{ args: { cni: { ips: ["10.0.0.256"] } } }, 7, "args.cni.ips[0]"],
    [{ runtimeConfig: { ips: ["10.0.0.1", "10.0.0.2"] } }, 7, "runtimeConfig.ips[1]"],
    [{ runtimeConfig: { mac: "01:00:5e:00:00:01" } }, 7, "unicast"],
    [{ runtimeConfig: { mac: "xx" } }, 7, "runtimeConfig.mac"],
    [{ prevResult: {} }, 7, "first plugin"],
    [{ prevResult: [] }, 7, "prevResult"],
  ])("%j is refused with %j", async (change, code, text) => {
    expect(await refusal("ADD", { ...CONFIG, ...change })).toMatchObject({ code, msg: expect.stringContaining(text) });
    expect(asked).toEqual([]);
  });
  test("standard keys pass, whatever runtimes add", async () => {
    const { status } = await call("ADD", {
      ...CONFIG,
      cniVersions: ["1.0.0"],
      ipam: {},
      capabilities: { ips: true },
      runtimeConfig: { portMappings: [{ hostPort: 80 }], cgroupPath: "/x" },
      disableCheck: true,
      disableGC: true,
      loadOnlyInlinedPlugins: true,
      prevResult: null,
      "cni.dev/attachments": [],
      args: { "org.example": 1 },
    });
    expect(status).toBe(0);
  });
});

describe("requests", () => {
  test("ADD carries what the configuration and the environment say", async () => {
    await call("ADD", {
      ...CONFIG,
      mtu: 1400,
      pools: ["red"],
      families: [4],
      routes: [{ dst: "10.0.0.0/8" }],
      args: { cni: { labels: [{ key: "app", value: "web" }], ips: ["10.0.0.9"] } },
    }, { CNI_ARGS: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;MAC=0A:58:0A:00:00:09;IP=10.0.0.1" });
    expect(asked).toEqual([{
      method: "POST",
      path: "/v1/cni/add",
      body: {
        network: "pods",
        containerId: "c0ffee",
        ifName: "eth0",
        netns,
        args: {
          IgnoreUnknown: "1",
          K8S_POD_NAMESPACE: "shop",
          K8S_POD_NAME: "web-0",
          MAC: "0A:58:0A:00:00:09",
          IP: "10.0.0.1",
        },
        labels: { app: "web" },
        ips: ["10.0.0.9"],
        mac: "0a:58:0a:00:00:09",
        mtu: 1400,
        pools: ["red"],
        families: [4],
        routes: [{ dst: "10.0.0.0/8" }],
      },
    }]);
  });
  test("runtimeConfig wins over args, args over CNI_ARGS; prefix lengths go", async () => {
    const args = { cni: { ips: ["10.0.0.2/24"], mac: "02:00:00:00:00:02" } };
    const sent = async (config: object, env = {}) => {
      await call("ADD", { ...CONFIG, ...config }, { CNI_ARGS: "IP=10.0.0.3/16,fd00::3;MAC=02:00:00:00:00:03", ...env });
      const { ips, mac } = asked.at(-1)!.body as { ips: string[]; mac: string };
      return [...ips, mac];
    };
    expect(await sent({ args, runtimeConfig: { ips: ["10.0.0.1/24", "fd00::1"], mac: "02:00:00:00:00:01" } }))
      .toEqual(["10.0.0.1", "fd00::1", "02:00:00:00:00:01"]);
    expect(await sent({ args })).toEqual(["10.0.0.2", "02:00:00:00:00:02"]);
    expect(await sent({})).toEqual(["10.0.0.3", "fd00::3", "02:00:00:00:00:03"]);
  });
  test("the runtime's dns is in the result", async () => {
    const { out } = await call("ADD", {
      ...CONFIG,
      dns: { nameservers: ["10.96.0.1"], domain: "a.example" },
      runtimeConfig: { dns: { servers: ["10.96.0.10"], searches: ["b.example"], options: ["ndots:5"] } },
    });
    expect(out.dns).toEqual({
      nameservers: ["10.96.0.10"],
      domain: "a.example",
      search: ["b.example"],
      options: ["ndots:5"],
    });
  });
  test("DEL goes out without a namespace and without looking for it", async () => {
    answer = { status: 204, body: undefined };
    expect(await call("DEL", CONFIG, { CNI_NETNS: "" })).toEqual({ status: 0, out: undefined });
    expect(await call("DEL", CONFIG, { CNI_NETNS: "/run/netns/gone" })).toEqual({ status: 0, out: undefined });
    const attachment = { network: "pods", containerId: "c0ffee", ifName: "eth0" };
    expect(asked.map(({ body }) => body)).toEqual([attachment, { ...attachment, netns: "/run/netns/gone" }]);
  });
  test("CHECK sends the addresses of our interface only", async () => {
    answer = { status: 200, body: {} };
    const prevResult = {
      interfaces: [{ name: "mx1" }, { name: "eth0", sandbox: netns }, { name: "eth1", sandbox: netns }],
      ips: [{ address: "10.0.0.1/32", interface: 1 }, { address: "10.9.0.1/24", interface: 2 }, {
        address: "fd00::1/128",
      }],
    };
    expect((await call("CHECK", { ...CONFIG, prevResult })).status).toBe(0);
    expect((asked[0]!.body as { addresses: unknown }).addresses).toEqual(["10.0.0.1/32", "fd00::1/128"]);
    expect(await refusal("CHECK", CONFIG)).toMatchObject({ code: 7, msg: expect.stringContaining("prevResult") });
    const broken = { ...prevResult, ips: [{ address: "10.0.0.1/32", interface: 9 }] };
    expect(await refusal("CHECK", { ...CONFIG, prevResult: broken })).toMatchObject({ code: 7 });
  });
  test("GC sends the valid attachments under either key, and removes nothing without a list", async () => {
    answer = { status: 200, body: {} };
    const valid = [{ containerID: "a", ifname: "eth0" }];
    for (const key of ["cni.dev/valid-attachments", "cni.dev/attachments"]) {
      await call("GC", { ...CONFIG, [key]: valid });
    }
    await call("GC", { ...CONFIG, "cni.dev/valid-attachments": null, "cni.dev/attachments": null });
    expect(asked.map(({ body }) => (body as { valid: unknown }).valid))
      .toEqual([[{ containerId: "a", ifName: "eth0" }], [{ containerId: "a", ifName: "eth0" }], []]);
    expect(await refusal("GC", CONFIG)).toMatchObject({ code: 7 });
    expect(await refusal("GC", { ...CONFIG, "cni.dev/valid-attachments": [{ containerID: "a" }] })).toMatchObject({
      code: 7,
    });
    expect(asked).toHaveLength(3);
  });
  test("STATUS asks the daemon", async () => {
    answer = { status: 200, body: {} };
    expect(await call("STATUS", CONFIG)).toEqual({ status: 0, out: undefined });
    expect(asked).toEqual([{ method: "GET", path: "/v1/cni/status", body: undefined }]);
  });
});

describe("the daemon's refusals", () => {
  test.each([
    ["unavailable", undefined, 11],
    ["conflict", undefined, 11],
    ["exhausted", undefined, 101],
    ["config", undefined, 7],
    ["refused", undefined, 7],
    ["internal", undefined, 100],
    ["anything", undefined, 100],
    ["anything", 3, 3],
  ])("%j with number %j is error %j", async (code, cni, wanted) => {
    answer = { status: 500, body: { error: { code, message: "why", details: ["a", "b"], cni } } satisfies ErrorReply };
    expect(await refusal("ADD", CONFIG)).toEqual({ code: wanted, msg: "why", details: "a\nb" });
  });
  test("STATUS turns them into 50, and keeps 51", async () => {
    answer = { status: 503, body: { error: { code: "exhausted", message: "no address left" } } };
    expect(await refusal("STATUS", CONFIG)).toMatchObject({ code: 50, msg: "no address left" });
    answer = { status: 503, body: { error: { code: "unavailable", message: "out of sync", cni: 51 } } };
    expect(await refusal("STATUS", CONFIG)).toMatchObject({ code: 51 });
  });
  test("an answer that is none is 11", async () => {
    answer = { status: 502, body: "?" };
    expect(await refusal("DEL", CONFIG)).toMatchObject({ code: 11 });
  });
});

describe("the daemon away", () => {
  test.each([
    ["ADD", 11],
    ["DEL", 11],
    ["CHECK", 11],
    ["GC", 11],
    ["STATUS", 50],
  ])("%s fails with %d", async (verb, code) => {
    const config = { ...CONFIG, socket: join(directory, "nobody.sock"), "cni.dev/valid-attachments": [] };
    const full = verb === "CHECK" ? { ...config, prevResult: {} } : config;
    expect(await refusal(verb, full)).toMatchObject({ code, msg: expect.stringContaining("nobody listens there") });
  });
  test("a daemon that dies before it answers is 11", async () => {
    const path = join(directory, "dying.sock");
    using _listener = {
      server: Bun.listen({ unix: path, socket: { data: (connection) => void connection.terminate() } }),
      [Symbol.dispose]() {
        this.server.stop(true);
      },
    };
    expect(await refusal("ADD", { ...CONFIG, socket: path })).toMatchObject({ code: 11 });
  });
});
