import { expect, test } from "bun:test";
import { parseAddress } from "../model/address.ts";
import type { PolicyList } from "../model/desired.ts";
import type { NeutralPolicy } from "../model/rule.ts";
import type { WorldChange } from "../model/world.ts";
import { createCalc, DEFAULT_FAILSAFE } from "./mod.ts";
import { dump, membersText } from "./testing/dump.ts";
import { parseWorld } from "./testing/world_text.ts";

const newCalc = (node = "n1") => createCalc({ node, failsafe: DEFAULT_FAILSAFE });
const gone = (...origins: string[]): WorldChange[] => origins.map((origin) => ({ origin, objects: [] }));

/** Node n1's set titles and members, in order of title. */
const setsText = (calc: ReturnType<typeof newCalc>): string[] =>
  [...calc.current.desired.sets.values()].map((set) => `${set.kind} ${set.title}: ${membersText(set)}`).sort();

test("before the first step everything is empty, at generation 0", () => {
  const { desired, routes } = newCalc().current;
  expect([desired.generation, routes.generation]).toEqual([0, 0]);
  expect([desired.sets.size, desired.workloads.size, desired.hostEndpoints.size, routes.routes.size]).toEqual([
    0,
    0,
    0,
    0,
  ]);
  expect(desired.failsafe).toEqual({ inbound: [], outbound: [] });
});

test("the generation counts changes of content, policy and routes apart", () => {
  const calc = newCalc();
  const generations = (world: string) => {
    const { desired, routes } = calc.step(parseWorld(world));
    return [desired.generation, routes.generation];
  };
  expect(generations("pod a 10.0.0.1")).toEqual([1, 0]);
  expect(generations("pod a 10.0.0.1")).toEqual([1, 0]);
  expect(generations("remote far 10.1.0.1")).toEqual([1, 0]);
  expect(generations("node n2 192.168.2.2")).toEqual([1, 0]);
  expect(generations("block b 10.2.0.0/24 on=n2")).toEqual([1, 1]);
  expect(generations("policy p selects all()\n ingress allow from [all()]")).toEqual([2, 1]);
});

test("policies that select nothing here are not compiled, and their sets do not exist", () => {
  const calc = newCalc();
  calc.step(parseWorld(`
    pod a 10.0.0.1 app=a
    pod b 10.0.0.2 app=b on=n2
    remote far 10.1.0.1 app=far
    policy here selects app == "a"
      ingress allow from [app == "far"]
    policy there selects app == "b"
      ingress allow from [app == "a"]
    policy remote selects app == "far"
      ingress allow from [app == "b"]`));
  expect(setsText(calc)).toEqual(['net app == "far": 10.1.0.1/32']);
  expect(calc.selectedBy("here")).toEqual(["a"]);
  expect(calc.selectedBy("there")).toEqual([]);
  expect([...calc.current.desired.workloads.keys()]).toEqual(["a"]);
  calc.step(gone("workload/a"));
  expect(setsText(calc)).toEqual([]);
});

test("endpoints with the same policies share one list, whatever their labels", () => {
  const calc = newCalc();
  calc.step(parseWorld(`
    pod a 10.0.0.1 app=a color=red
    pod b 10.0.0.2 app=b color=blue
    policy p selects has(app)
      ingress allow from [app == "a"]`));
  const [a, b] = ["a", "b"].map((id) => calc.current.desired.workloads.get(id)!);
  expect(a!.ingress).toBe(b!.ingress);
  expect(a!.egress).toBe(b!.egress);
  const again = newCalc();
  again.step(parseWorld(`
    pod z 10.0.0.9 app=z
    policy p selects has(app)
      ingress allow from [app == "a"]`));
  expect(again.current.desired.workloads.get("z")!.ingress.id).toBe(a!.ingress.id);
});

test("members with several contributors stay until the last one is gone", () => {
  const calc = newCalc();
  calc.step(parseWorld(`
    pod a 10.0.0.1 app=a
    remote x 10.1.0.1 app=x
    remote y 10.1.0.1 app=x
    set s 10.1.0.1/32 10.1.0.0/24 app=x
    policy p selects app == "a"
      ingress allow from [app == "x"]`));
  expect(setsText(calc)).toEqual(['net app == "x": 10.1.0.0/24 10.1.0.1/32']);
  calc.step(gone("pod/default/x"));
  calc.step(gone("networkSet//s"));
  expect(setsText(calc)).toEqual(['net app == "x": 10.1.0.1/32']);
  calc.step(gone("pod/default/y"));
  expect(setsText(calc)).toEqual(['net app == "x": ']);
});

test("a change that comes to nothing within one step keeps every object", () => {
  const calc = newCalc();
  const world = parseWorld(`
    pod a 10.0.0.1 app=a
    remote x 10.1.0.1 app=x
    policy p selects app == "a"
      ingress allow from [app == "x"]`);
  const before = calc.step(world);
  const other = parseWorld(`
    pod a 10.0.0.7 app=b
    remote x 10.1.0.9 app=z`);
  expect(calc.step([...other, ...gone("policy/p"), ...world])).toBe(before);
});

test("one (kind, id) from several origins: the smallest origin counts, and the next after it", () => {
  const pods = ["10.1.0.1", "10.1.0.2", "10.1.0.3"].map((address) =>
    parseWorld(`remote x ${address} app=x`)[0]!.objects[0]!
  );
  const calc = newCalc();
  calc.step(parseWorld(`
    pod a 10.0.0.1 app=a
    policy p selects app == "a"
      ingress allow from [app == "x"]`));
  calc.step([{ origin: "m", objects: [pods[1]!, pods[2]!] }]);
  expect(setsText(calc)).toEqual(['net app == "x": 10.1.0.2/32']);
  calc.step([{ origin: "a", objects: [pods[0]!] }, { origin: "z", objects: [pods[2]!] }]);
  expect(setsText(calc)).toEqual(['net app == "x": 10.1.0.1/32']);
  calc.step(gone("a", "m"));
  expect(setsText(calc)).toEqual(['net app == "x": 10.1.0.3/32']);
});

test("sets are told apart by what they stand for, even where canonical text cannot quote it", () => {
  const tricky = (value: string): WorldChange => ({
    origin: value,
    objects: [{
      kind: "policy",
      id: value,
      tier: "default",
      sortName: value,
      selects: { op: "all" },
      stage: "normal",
      staged: false,
      ingress: [{
        action: "allow",
        source: { selector: { op: "eq", label: "app", value } },
        destination: {},
        origin: { policy: value, direction: "ingress", index: 0 },
      }],
    }],
  });
  const calc = newCalc();
  calc.step([...parseWorld("pod a 10.0.0.1"), tricky("x\" || 'y"), tricky("x' || \"y")]);
  expect(calc.current.desired.sets.size).toBe(2);
});

test("the wish to log what is denied reaches lists and makes them other lists; fixed tiers take it too", () => {
  const calc = newCalc();
  const world = (tier: string, policy: string) => {
    calc.step(parseWorld(`pod a 10.0.0.1\ntier default${tier}\npolicy p selects all()${policy}\n ingress deny tcp`));
    return calc.current.desired.workloads.get("a")!.ingress;
  };
  const logged = (list: PolicyList) =>
    list.tiers.map(({ logDenied, defaultAction, policies }) => [logDenied, defaultAction, policies[0]!.logDenied]);
  const quiet = world("", ""), tier = world(" log-denied", ""), policy = world("", " log-denied");
  expect(logged(quiet)).toEqual([[undefined, "deny", undefined]]);
  expect(logged(tier)).toEqual([[true, "deny", undefined]]);
  expect(logged(policy)).toEqual([[undefined, "deny", true]]);
  expect(new Set([quiet, tier, policy].map(({ id }) => id)).size).toBe(3);
  expect(world("", "")).toEqual(quiet);
});

test("what is for people alone is found by a policy's id and makes no other list", () => {
  const noted = (annotations: Record<string, string>): WorldChange[] => {
    const [change] = parseWorld("policy p selects all()\n ingress deny tcp");
    const [policy] = change!.objects as [NeutralPolicy];
    return [{ ...change!, objects: [{ ...policy, ingress: [{ ...policy.ingress![0]!, annotations }] }] }];
  };
  const calc = newCalc();
  calc.step([...parseWorld("pod a 10.0.0.1"), ...noted({ ticket: "1" })]);
  const before = calc.current;
  calc.step(noted({ ticket: "2" }));
  expect(calc.current).toBe(before);
  expect(calc.object("policy", "p")!.ingress![0]!.annotations).toEqual({ ticket: "2" });
  expect(calc.object("policy", "q")).toBeUndefined();
});

test("policies in a tier that nobody has described are told as problems until somebody does", () => {
  const calc = newCalc();
  const told = () => calc.problems().map(({ subject, path, effect }) => [subject.name, path, effect]);
  calc.step(parseWorld(`
    policy K//p selects all() tier=t
    policy K//q selects all() tier=default
    policy K//s selects all() tier=t staged`));
  expect(told()).toEqual([["p", "spec.tier", "fail-closed"]]);
  calc.step(parseWorld("tier t order=1"));
  expect(told()).toEqual([]);
  calc.step(gone("tier/t"));
  expect(told()).toEqual([["p", "spec.tier", "fail-closed"]]);
});

test("failsafe ports are there while a local host endpoint is", () => {
  const calc = newCalc();
  expect(calc.step(parseWorld("host far if=eth0 on=n2")).desired.failsafe.inbound).toEqual([]);
  expect(calc.step(parseWorld("host here if=eth0")).desired.failsafe).toBe(DEFAULT_FAILSAFE);
  expect(calc.step(gone("hostEndpoint/here")).desired.failsafe.inbound).toEqual([]);
});

test("interfaces of host endpoints follow links and one another", () => {
  const calc = newCalc();
  const interfaces = (world: string) => {
    calc.step(parseWorld(world));
    return [...calc.current.desired.hostEndpoints].map(([id, { interfaces }]) => `${id}: ${interfaces}`).sort();
  };
  expect(interfaces("host b 192.168.2.1 192.168.3.1")).toEqual(["b: "]);
  expect(interfaces("link eth1 192.168.3.1\nlink eth0 192.168.2.1\nlink eth2 192.168.4.1")).toEqual(["b: eth0,eth1"]);
  expect(interfaces("host c if=eth0")).toEqual(["b: eth1", "c: eth0"]);
  expect(interfaces("host a 192.168.3.1\nhost all if=*\nhost also if=*")).toEqual([
    "a: eth1",
    "all: *",
    "also: ",
    "b: ",
    "c: eth0",
  ]);
  expect(interfaces("link eth1 192.168.9.1")).toEqual(["a: ", "all: *", "also: ", "b: ", "c: eth0"]);
});

test("an interface of a workload is no host endpoint's, whoever names it or expects its address", () => {
  const calc = newCalc();
  const interfaces = (changes: readonly WorldChange[]) => {
    calc.step(changes);
    return [...calc.current.desired.hostEndpoints].map(([id, { interfaces }]) => `${id}: ${interfaces}`).sort();
  };
  const hosts = "host named if=tap0\nhost expecting 192.168.3.1\nlink eth1 192.168.3.1";
  expect(interfaces(parseWorld(hosts))).toEqual(["expecting: eth1", "named: tap0"]);
  expect(interfaces(parseWorld("pod vm 10.0.0.1 if=tap0"))).toEqual(["expecting: eth1", "named: "]);
  expect(interfaces(parseWorld("pod other 10.0.0.2 if=eth1"))).toEqual(["expecting: ", "named: "]);
  expect(interfaces(gone("workload/other"))).toEqual(["expecting: eth1", "named: "]);
  expect(interfaces(parseWorld("pod vm 10.0.0.1 if=tap1"))).toEqual(["expecting: eth1", "named: tap0"]);
});

test("routes lead to other nodes' blocks by an address of the same family, and the own blocks are named", () => {
  const calc = newCalc();
  calc.step(parseWorld(`
    node n1 192.168.2.1 fd01::1
    node n2 192.168.2.2 fd01::2
    node n3 192.168.2.3
    block a 10.1.0.0/24 on=n1
    block b 10.2.0.0/24 on=n2
    block c fd00:2::/64 on=n2
    block d fd00:3::/64 on=n3
    block e 10.4.0.0/24 on=n4
    block f fd00:1::/64 on=n1
    block g 10.2.0.0/24 on=n3`));
  const lines = () => dump(calc.current).split("\n").filter((line) => /^(route|local|masq)/.test(line));
  expect(lines()).toEqual([
    "masquerade  outside ",
    "route 10.2.0.0/24 10.2.0.0/24 n2 192.168.2.2",
    "route fd00:2::/64 fd00:2::/64 n2 fd01::2",
    "local 10.1.0.0/24,fd00:1::/64",
  ]);
  calc.step([
    ...parseWorld("node n2 192.168.2.20\nnode n4 192.168.2.4\nblock f fd00:1::/64 on=n2"),
    ...gone("block/b"),
  ]);
  expect(lines()).toEqual([
    "masquerade  outside ",
    "route 10.2.0.0/24 10.2.0.0/24 n3 192.168.2.3",
    "route 10.4.0.0/24 10.4.0.0/24 n4 192.168.2.4",
    "local 10.1.0.0/24",
  ]);
});

test("what leaves all pools is masqueraded where its pool asks for it", () => {
  const calc = newCalc();
  calc.step(parseWorld("pool a 10.0.0.0/16 nat\npool b fd00::/48\npool c 10.1.0.0/16\npool d 10.0.0.0/16"));
  expect(dump(calc.current)).toContain("masquerade 10.0.0.0/16 outside 10.0.0.0/16,10.1.0.0/16,fd00::/48");
  const before = calc.current;
  expect(calc.step(parseWorld("pool d 10.1.0.0/16"))).toBe(before);
});

test("names that try to be others stay themselves", () => {
  const workload = (
    id: string,
    namespace: string,
    serviceAccount: string | undefined,
    address: string,
  ): WorldChange => ({
    origin: id,
    objects: [{
      kind: "workload",
      id,
      node: "n1",
      namespace,
      interfaceName: id,
      addresses: [parseAddress(address)],
      labels: new Map(),
      ports: [],
      serviceAccount,
      orchestrator: "cni",
    }],
  });
  const calc = newCalc();
  calc.step([
    workload("1", "a", 'b","c', "10.0.0.1"),
    workload("2", 'a","b', "c", "10.0.0.2"),
    workload("3", "", undefined, "10.0.0.3"),
    workload("__proto__", "constructor", "toString", "10.0.0.4"),
    ...parseWorld(`policy p selects all()
      ingress allow from [projectcalico.org/namespace == "a"]
      ingress allow from [projectcalico.org/serviceaccount == "c"]
      ingress allow from [projectcalico.org/namespace == ""]
      ingress allow from [pcsa.projectcalico.org/name == "toString"]
      ingress allow from [global()]`),
  ]);
  expect(setsText(calc)).toEqual([
    "net global(): ",
    'net pcsa.projectcalico.org/name == "toString": 10.0.0.4/32',
    'net projectcalico.org/namespace == "": 10.0.0.3/32',
    'net projectcalico.org/namespace == "a": 10.0.0.1/32',
    'net projectcalico.org/serviceaccount == "c": 10.0.0.2/32',
  ]);
  expect(calc.current.desired.workloads.size).toBe(4);
});
