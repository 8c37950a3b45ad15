/** What a state of services becomes: IPVS services, addresses, the gate's elements. Pure: the kernel's part is test/vm. */
import { expect, test } from "bun:test";
import { type Address, formatAddress, parseAddress, parseCidr } from "../../src/model/address.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { type BackendList, frontendKey, type ServiceFrontend, type ServiceState } from "../../src/model/services.ts";
import { ConfigError } from "../../src/sdk/errors.ts";
import { Claims } from "./claims.ts";
import { parseConfig } from "./config.ts";
import { chainText, fixedChains } from "./gate.ts";
import { OUR_FLAG, Renderer, servicePlaces } from "./render.ts";
import { serviceText } from "./found_servers.ts";

const CONFIG = parseConfig(undefined);
const LOCAL = ["192.0.2.9", "fd00::9"].map(parseAddress);

const backends = (texts: readonly string[], empty: BackendList["empty"] = "reject"): BackendList => ({
  id: texts.join() + empty,
  backends: texts.map((text) => {
    const [address, port, draining] = text.split(" ");
    return {
      address: parseAddress(address!),
      port: Number(port),
      ...draining === undefined ? {} : { draining: true as const },
    };
  }),
  empty,
});

function frontend(
  address: string | undefined,
  port: number,
  list: BackendList,
  more: Partial<ServiceFrontend> = {},
): ServiceFrontend {
  const parts = {
    ...address === undefined ? {} : { address: parseAddress(address) },
    family: address?.includes(":") ? 6 as const : 4 as const,
    protocol: 6,
    port,
  };
  return {
    key: frontendKey({ ...parts, ...more }),
    ...parts,
    scope: address === undefined ? "node" : "cluster",
    title: `test ${port}`,
    backends: list,
    masqueradeOutside: false,
    ...more,
  };
}

const state = (frontends: readonly ServiceFrontend[], more: Partial<ServiceState> = {}) => ({
  workloads: persistentMap<string, never>(),
  services: {
    frontends: persistentMap(frontends.map((one) => [one.key, one] as const)),
    healthChecks: persistentMap<string, never>(),
    nodePortAddresses: [],
    podNets: [],
    ...more,
  },
});

/** All that is wanted, as sorted text. */
function text(renderer: Renderer): string {
  const lines: string[] = [];
  for (const key of renderer.services.keys()) {
    const { service, servers } = renderer.services.get(key)!;
    const to = [...servers.values()].map(({ address, port, weight }) => `${formatAddress(address)}:${port}×${weight}`);
    const stays = service.persistenceSeconds === undefined ? "" : ` stays ${service.persistenceSeconds}`;
    expect(service.flags).toBe(OUR_FLAG);
    lines.push(`${serviceText(service)} ${service.scheduler}${stays} → ${to.join(" ")}`);
  }
  for (const address of renderer.addresses.keys()) lines.push(`address ${formatAddress(address as Address)}`);
  const chains = [...renderer.chains.keys()].filter((name) =>
    name.includes("-") && /^(way|from|list|rest)-/.test(name)
  );
  lines.push(`${chains.length} chains`);
  return lines.sort().join("\n");
}

const render = (...args: Parameters<typeof state>): Renderer => {
  const renderer = new Renderer(CONFIG);
  renderer.update(state(...args), LOCAL);
  return renderer;
};

test("addresses become services, node ports one on each address of the node, and terminating servers get nothing new", () => {
  const list = backends(["10.0.0.2 8080", "10.0.0.3 8080 draining"]);
  expect(text(render([
    frontend("10.96.0.1", 80, list, { affinitySeconds: 60 }),
    frontend("fd00:96::1", 80, backends(["fd00::2 8080"])),
    frontend("10.96.0.2", 80, backends([])),
    frontend(undefined, 30080, list),
    frontend(undefined, 30080, backends(["fd00::2 8080"]), { family: 6 }),
    frontend("192.0.2.9", 443, list, { scope: "external" }),
  ]))).toBe(`\
0 chains
address 10.96.0.1
address 10.96.0.2
address fd00:96::1
tcp 10.96.0.1:80 rr stays 60 → 10.0.0.2:8080×1 10.0.0.3:8080×0
tcp 192.0.2.9:30080 rr → 10.0.0.2:8080×1 10.0.0.3:8080×0
tcp 192.0.2.9:443 rr → 10.0.0.2:8080×1 10.0.0.3:8080×0
tcp [fd00:96::1]:80 rr → fd00::2:8080×1
tcp [fd00::9]:30080 rr → fd00::2:8080×1`);
});

test("servers for traffic from outside are a service of their own, shared by those that share the list", () => {
  const inner = backends(["10.0.0.2 80"]), outside = backends(["10.0.0.3 80"]);
  const found = text(render([
    frontend(undefined, 30080, inner, { outside }),
    frontend("198.51.100.1", 80, inner, { scope: "external", outside }),
    frontend("198.51.100.2", 80, inner, { scope: "external", outside: backends([], "drop") }),
    frontend("198.51.100.3", 80, inner, { scope: "external", outside: inner, masqueradeOutside: true }),
  ]));
  expect(found.match(/^mark 0x[0-9a-f]+ IPv4 rr → 10\.0\.0\.3:80×1$/gm)).toHaveLength(1);
  const mark = Number(/mark (0x[0-9a-f]+)/.exec(found)![1]);
  expect([mark & 0xffff, (mark & CONFIG.forwardMark) !== 0, mark & CONFIG.masqueradeMark]).toEqual([0, true, 0]);
});

test("what comes of changes is what comes of the state at once, and all of it goes again", () => {
  const seeds = [1, 2, 3];
  for (const seed of seeds) {
    let random = seed * 2654435761 >>> 0;
    const next = (below: number) => (random = (Math.imul(random, 1664525) + 1013904223) >>> 0) % below;
    const step = new Renderer(CONFIG);
    let now = state([]);
    for (let round = 0; round < 60; round++) {
      const port = 80 + next(6);
      const list = backends(
        Array.from({ length: next(3) }, (_, i) => `10.0.0.${i + next(4)} 80`),
        next(2) ? "drop" : "reject",
      );
      const one = frontend(next(4) === 0 ? undefined : `10.96.0.${next(4)}`, port, list, {
        ...next(3) === 0 ? { outside: backends([`10.0.1.${next(3)} 80`]) } : {},
        ...next(3) === 0 ? { sources: [parseCidr(`192.0.${next(3)}.0/24`), parseCidr("192.0.0.0/16")] } : {},
        ...next(3) === 0 ? { affinitySeconds: 30 } : {},
        masqueradeOutside: next(2) === 0,
      });
      const frontends = next(3) === 0
        ? now.services.frontends.delete(one.key)
        : now.services.frontends.set(one.key, one);
      now = { ...now, services: { ...now.services, frontends } };
      step.update(now, LOCAL);
    }
    const whole = new Renderer(CONFIG);
    whole.update(now, LOCAL);
    expect(text(step)).toBe(text(whole));
    for (const part of ["services", "addresses", "chains", "sets", "elements"] as const) {
      expect([part, [...step[part].keys()].sort()]).toEqual([part, [...whole[part].keys()].sort()]);
    }
    step.update(state([]), LOCAL);
    expect(text(step)).toBe(text(render([])));
    expect([...step.elements.keys()]).toEqual([]);
  }
});

test("one service changed touches what is its own, whatever the number of the others", () => {
  const counts = [10, 2_000].map((count) => {
    const all = Array.from(
      { length: count },
      (_, i) => frontend(`10.96.${i >> 8}.${i & 255}`, 80, backends([`10.0.${i >> 8}.${i & 255} 80`])),
    );
    const renderer = new Renderer(CONFIG);
    const before = state(all);
    renderer.update(before, LOCAL);
    const parts = [renderer.services, renderer.addresses, renderer.chains, renderer.sets, renderer.elements];
    for (const part of parts) part.takeTouched();
    const one = frontend("10.96.0.1", 80, backends(["10.9.9.9 80"]));
    const frontends = before.services.frontends.set(one.key, one);
    renderer.update({ ...before, services: { ...before.services, frontends } }, LOCAL);
    return parts.map((part) => part.takeTouched().size);
  });
  expect(counts[1]).toEqual(counts[0]!);
});

/** Where packets to `where` go, by `set`: the chain, and where its last rule leads where it is one of the frontend's own. */
function wayOf(renderer: Renderer, set: string, where: string): string | undefined {
  const at = where.lastIndexOf(":"), address = parseAddress(where.slice(0, at)), port = Number(where.slice(at + 1));
  const key = `${address}\x06\0\0\0${String.fromCharCode(port >> 8, port & 255)}\0\0`;
  const value = renderer.elements.get(`${set} ${key}`);
  if (value === undefined || value === true || !("chain" in value)) return undefined;
  const chain = renderer.chains.get(value.chain)!;
  const last = chain.rules.at(-1)!.at(-1)!;
  return value.chain.startsWith("rest-") && last.op === "verdict" && "chain" in last.verdict
    ? `known, else ${last.verdict.chain}`
    : value.chain.replace(/-[^-]*$/, (tail) => tail.length > 12 ? "" : tail);
}

test("the node's own processes are refused what has no servers, and what is not for the node's addresses", () => {
  const list = backends(["10.0.0.2 80"]);
  const renderer = render([
    frontend("10.96.0.1", 80, list),
    frontend("10.96.0.2", 80, backends([])),
    frontend("10.96.0.3", 80, backends([], "drop")),
    frontend("198.51.100.1", 80, list, { scope: "external", sources: [parseCidr("192.0.2.0/24")] }),
    frontend("198.51.100.2", 80, list, { scope: "external", sources: [parseCidr("203.0.113.0/24")] }),
  ]);
  const closed = (where: string) => wayOf(renderer, "closed4", `${where}:80`);
  expect(["10.96.0.1", "10.96.0.2", "10.96.0.3", "198.51.100.1", "198.51.100.2"].map(closed)).toEqual([
    undefined,
    "end-reject",
    "end-drop",
    undefined,
    "end-drop",
  ]);
});

test("where all servers terminate, established flows go on and new ones are told, inside and outside", () => {
  const gone = backends(["10.0.0.2 80 draining"]), goneSilently = backends(["10.0.0.2 81 draining"], "drop");
  const renderer = render([
    frontend("10.96.0.1", 80, gone),
    frontend("10.96.0.2", 80, goneSilently),
    frontend("10.96.0.3", 80, backends(["10.0.0.2 80 draining", "10.0.0.3 80"])),
    frontend("198.51.100.1", 80, gone, { scope: "external", outside: gone }),
  ]);
  const both = (where: string) => ["services4", "closed4"].map((set) => wayOf(renderer, set, `${where}:80`));
  expect(both("10.96.0.1")).toEqual(["known, else end-reject", "known, else end-reject"]);
  expect(both("10.96.0.2")).toEqual(["known, else end-drop", "known, else end-drop"]);
  expect(both("10.96.0.3")).toEqual(["serve", undefined]);
  expect(both("198.51.100.1")).toEqual(["known, else end-reject", "known, else end-reject"]);
  expect([...renderer.services.keys()].length).toBe(4);
});

test("frontends are known again by the elements of the gate", () => {
  const renderer = render([
    frontend("10.96.0.1", 80, backends(["10.0.0.2 80"])),
    frontend("fd00:96::1", 53, backends([]), { protocol: 17 }),
    frontend(undefined, 30080, backends(["10.0.0.2 80"])),
  ]);
  expect(servicePlaces(renderer.elements.keys(), LOCAL).toSorted((a, b) => a.port - b.port)).toEqual([
    { family: 6, protocol: 17, port: 53, address: parseAddress("fd00:96::1") },
    { family: 4, protocol: 6, port: 80, address: parseAddress("10.96.0.1") },
    { family: 4, protocol: 6, port: 30080 },
  ]);
});

test("of two who want one thing the smaller name has it, in whatever order they came", () => {
  for (const order of [["a", "b"], ["b", "a"]]) {
    const claims = new Claims<string>();
    for (const owner of order) claims.put("port", owner, `${owner}'s`);
    expect(claims.get("port")).toBe("a's");
    claims.drop("port", "a");
    expect(claims.get("port")).toBe("b's");
    claims.drop("port", "nobody");
    claims.drop("port", "b");
    expect([claims.get("port"), claims.size, [...claims.takeTouched()]]).toEqual([undefined, 0, ["port"]]);
  }
});

test("a protocol that IPVS does not know is a problem, not a service", () => {
  const renderer = render([frontend("10.96.0.1", 80, backends(["10.0.0.2 80"]), { protocol: 136 })]);
  expect([...renderer.problems.values()]).toEqual(["test 80: found protocol 136, wanted TCP, UDP or SCTP"]);
  expect(renderer.services.size).toBe(0);
});

test("the chains that are always there have a text each, and differ", () => {
  const texts = [...fixedChains(CONFIG).values()].map(chainText);
  expect(new Set(texts).size).toBe(texts.length);
});

test("configuration that cannot be used is refused with its key", () => {
  const refused = (raw: unknown): string => {
    try {
      parseConfig(raw);
    } catch (error) {
      if (error instanceof ConfigError) return error.message;
    }
    return "taken";
  };
  expect([
    refused({ scheduler: "dh" }),
    refused({ drainSeconds: -1 }),
    refused({ forwardMark: 3 }),
    refused({ forwardMark: 0x80000 }),
    refused({ forwardMark: 0x0080_0000 }),
    refused({ mark: 1 }),
    refused({ scheduler: "mh", drainSeconds: 0 }),
  ]).toEqual([
    'scheduler: found "dh", wanted one of rr, wrr, lc, sh, mh',
    "drainSeconds: found -1, wanted a whole number from 0 to 86400",
    "forwardMark: found 0x3, wanted one bit, none of 0xff380000",
    "forwardMark: found 0x80000, wanted one bit, none of 0xff380000",
    "masqueradeMark: found the bit of forwardMark, wanted another one",
    "mark: found an unknown key, wanted one of scheduler, drainSeconds, resyncSeconds, forwardMark, masqueradeMark",
    "taken",
  ]);
});
