/**
 * What a new flow goes through on its way to a service. Services are elements of maps of data, never verdicts: changing one makes
 * the kernel check nothing. A frontend's element says its kind (how many backends, which questions), and frontends of one kind
 * share their chains. Pure.
 *
 * What one lookup finds is a key of the next. `nft list` dies of rules where a register goes from lookup to lookup, so it goes by way of
 * the packet's priority, which is 0 again before the packet goes on. Only first packets of flows come here.
 *
 * Keys begin with the frontend: address, protocol, port. That of a node port has the address 0.0.0.0 or ::.
 */
import { type Address, type Family, parseAddress } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { hostWord } from "./packet_tests.ts";
import { DROP, goto, isFamily, isProtocol, jump, loadAddress, verdict } from "./expressions.ts";
import {
  type Expression,
  interfaceKey,
  type KeyField,
  type NftChain,
  type NftSet,
  type Rule,
  type Verdict,
} from "./ruleset.ts";

/** `node`: every address of the node. */
export type Place = "address" | "node";
/** How many backends take new flows; of none, what becomes of the packet. */
export type BackendCount = number | "reject" | "drop";

/** A backend is to be chosen. */
export interface PickKind {
  readonly family: Family;
  readonly place: Place;
  readonly count: BackendCount;
  readonly affinitySeconds?: number;
}

/** Something is to be asked before. */
export interface AskKind {
  readonly family: Family;
  readonly place: Place;
  /** Whether what comes from outside has backends of its own. */
  readonly hasOutside: boolean;
  /** Whether what comes from outside leaves with the node's address. */
  readonly masquerades: boolean;
  /** Whether only some sources reach it. */
  readonly isRestricted: boolean;
}

/** A kind is one 32-bit word: 14 bits for the count, 17 for the seconds, one for the place. */
export const BACKENDS_MAX = 0x3ffd;
const DROP_COUNT = 0x3fff;
const SECONDS_SHIFT = 14, SECONDS_MAX = 0x1_fffe, ASKS = 0x1_ffff;
const NODE = 0x8000_0000;

export function pickWord({ place, count, affinitySeconds }: PickKind): string {
  const low = count === "reject" ? 0 : count === "drop" ? DROP_COUNT : count;
  return hostWord((place === "node" ? NODE : 0) | secondsOf(affinitySeconds) << SECONDS_SHIFT | low);
}

export function askWord({ place, hasOutside, masquerades, isRestricted }: AskKind): string {
  const low = (hasOutside ? 1 : 0) | (masquerades ? 2 : 0) | (isRestricted ? 4 : 0);
  return hostWord((place === "node" ? NODE : 0) | ASKS << SECONDS_SHIFT | low);
}

const secondsOf = (affinitySeconds: number | undefined): number =>
  affinitySeconds === undefined ? 0 : Math.min(Math.max(1, affinitySeconds), SECONDS_MAX);

/** Backends of the outside count from here on. */
const OUTSIDE_FIRST = 0x4000_0000;
/** The last field of a backend's key. */
export const backendIndex = (at: number, isOutside: boolean): string => hostWord(at + (isOutside ? OUTSIDE_FIRST : 0));

/** Clients that are remembered, in each family: about 20 MB where all are. */
const CLIENTS_MAX = 131_072;

export type ServiceSet =
  | "services"
  | "service-kinds"
  | "service-inside"
  | "service-inside-kinds"
  | "service-outside"
  | "service-outside-kinds"
  | "service-backends"
  | "service-slots"
  | "service-members"
  | "service-members-outside"
  | "service-sources"
  | "service-clients"
  | "service-pods"
  | "service-nodes";

/** The sets of a family, by what stands before its number in their names. */
export function serviceSets(family: Family): Readonly<Record<ServiceSet, Omit<NftSet, "elements">>> {
  const address: KeyField = family === 4 ? "ipv4_addr" : "ipv6_addr";
  const frontend: readonly KeyField[] = [address, "inet_proto", "inet_service"];
  const backend: readonly KeyField[] = [address, "inet_service"];
  const map = (fields: readonly KeyField[], data: readonly KeyField[]) => ({
    fields,
    interval: false,
    map: true,
    data,
  });
  const verdicts = { fields: ["mark"], interval: false, map: true } as const;
  return {
    /** Frontend → kind. */
    services: map(frontend, ["mark"]),
    /** Kind → its chain. */
    "service-kinds": verdicts,
    /** The same once more for what was asked where it comes from. */
    "service-inside": map(frontend, ["mark"]),
    "service-inside-kinds": verdicts,
    "service-outside": map(frontend, ["mark"]),
    "service-outside-kinds": verdicts,
    /** Frontend and index → backend. */
    "service-backends": map([...frontend, "mark"], backend),
    /** With affinity: frontend and index → backend's number, which stays while others come and go. */
    "service-slots": map([...frontend, "mark"], ["mark"]),
    /** Frontend and backend's number → backend. */
    "service-members": map([...frontend, "mark"], backend),
    "service-members-outside": map([...frontend, "mark"], backend),
    /** Client and frontend → number of the backend that the client stays with. */
    "service-clients": { ...map([address, ...frontend], ["mark"]), dynamic: true, capacity: CLIENTS_MAX },
    /** Frontend and source, of frontends that not everybody reaches. */
    "service-sources": { fields: [...frontend, address], interval: true, map: false },
    /** Where pods are. */
    "service-pods": { fields: [address], interval: true, map: false },
    /** Addresses that node ports answer on, where not all do. */
    "service-nodes": { fields: [address], interval: true, map: false },
  };
}

const ANY: Readonly<Record<Family, string>> = { 4: "\0".repeat(4), 6: "\0".repeat(16) };
export const anyAddress = (family: Family): string => ANY[family];
const LOOPBACK_V6: Address = parseAddress("::1");

const registersOf = (family: Family): number => family === 4 ? 1 : 4;

/** Loads the frontend from register `at` on; answers what comes after it. */
function loadFrontend(family: Family, place: Place, at: number): readonly [readonly Expression[], number] {
  const next = at + registersOf(family);
  return [[
    place === "node" ? { op: "immediate", dreg: at, data: ANY[family] } : loadAddress(family, "destination", at),
    { op: "meta", key: "l4proto", dreg: next },
    { op: "payload", base: "transport", offset: 2, length: 2, dreg: next + 1 },
  ], next + 2];
}

const keepScratch = (sreg: number): Expression => ({ op: "setPriority", sreg });
const scratch = (dreg: number): Expression => ({ op: "meta", key: "priority", dreg });
const clearScratch: readonly Expression[] = [{ op: "immediate", dreg: 0, data: hostWord(0) }, keepScratch(0)];
const map = (set: string, sreg: number, dreg: number): Expression => ({ op: "map", set, sreg, dreg });

/** After a frontend was looked up into a register: on to the chain of its kind. */
const followKind = (found: number, kinds: string): readonly Expression[] => [
  keepScratch(found),
  scratch(0),
  { op: "vmap", set: kinds, sreg: 0 },
];

type Chains = Map<string, NftChain>;

export interface KindChains {
  /** What a map of kinds has for it. */
  readonly to: Verdict;
  /** What that leads through. */
  readonly chains: ReadonlyMap<string, NftChain>;
}

export function pickChains(kind: PickKind, isOutside: boolean): KindChains {
  const { family, place, count, affinitySeconds } = kind;
  if (count === "drop") return { to: DROP, chains: new Map() };
  if (count === "reject") {
    const rules: readonly Rule[] = [[...isProtocol(PROTOCOLS.TCP), { op: "tcpReset" }], [{ op: "portUnreachable" }]];
    return { to: goto("service-reject"), chains: new Map([["service-reject", { rules }]]) };
  }
  const seconds = affinitySeconds === undefined ? undefined : secondsOf(affinitySeconds);
  const [known, chosen] = seconds === undefined
    ? [undefined, chosenChain(family, place)]
    : affinityChains(family, place, isOutside, seconds);
  const chance: Rule = [
    { op: "random", modulus: count, offset: isOutside ? OUTSIDE_FIRST : 0, dreg: 0 },
    keepScratch(0),
    verdict(goto(chosen[0])),
  ];
  const ownName = `service${family}-${place}${isOutside ? "-outside" : ""}-${count}${
    seconds === undefined ? "" : `-${seconds}s`
  }`;
  const rules = known === undefined ? [chance] : [[verdict(jump(known[0]))], chance];
  return { to: goto(ownName), chains: new Map([[ownName, { rules }], chosen, ...known === undefined ? [] : [known]]) };
}

const dnat = (family: Family, at: number): readonly Expression[] => [
  ...clearScratch,
  { op: "dnat", family, addressSreg: at, portSreg: at + registersOf(family) },
];

type NamedChain = readonly [string, NftChain];

/**
 * Where chance has chosen. Of all kinds alike: when a chain first names a map, the kernel goes through all its elements.
 * Between two lookups a service may have changed: what finds no backend is dropped, and sent again.
 */
function chosenChain(family: Family, place: Place): NamedChain {
  const [load, end] = loadFrontend(family, place, 0);
  return [`service${family}-${place}-chosen`, {
    rules: [
      // Register 8 and on: where no key of either family is.
      [...load, scratch(end), map(`service-backends${family}`, 0, 8), ...dnat(family, 8)],
      [verdict(DROP)],
    ],
  }];
}

/** For clients with a backend, who do not come back, and for those that chance has chosen for. */
function affinityChains(
  family: Family,
  place: Place,
  isOutside: boolean,
  seconds: number,
): readonly [NamedChain, NamedChain] {
  const name = `service${family}-${place}${isOutside ? "-outside" : ""}`;
  const first = registersOf(family);
  const [loadRest, number] = loadFrontend(family, place, first);
  const load = [loadAddress(family, "source", 0), ...loadRest];
  const clients = `service-clients${family}`;
  const members = `service-members${isOutside ? "-outside" : ""}${family}`;
  const remember: Expression = { op: "dynamic", action: "update", set: clients, keySreg: 0, dataSreg: number, seconds };
  const known: readonly Rule[] = [
    // No backend has the number 0.
    clearScratch,
    [...load, map(clients, 0, number), keepScratch(number)],
    [...load, scratch(number), map(members, first, number + 1), remember, ...dnat(family, number + 1)],
    // Its backend is gone.
    [...load, scratch(number), { op: "dynamic", action: "delete", set: clients, keySreg: 0, dataSreg: number }],
  ];
  const chosen: readonly Rule[] = [
    [...load, scratch(number), map(`service-slots${family}`, first, number), keepScratch(number)],
    // Where no more clients can be remembered, only this rule ends.
    [...load, scratch(number), remember],
    [...load, scratch(number), map(members, first, number + 1), ...dnat(family, number + 1)],
    [verdict(DROP)],
  ];
  return [[`${name}-known-${seconds}s`, { rules: known }], [`${name}-chosen-${seconds}s`, { rules: chosen }]];
}

/** `masqueradeMark`: one bit of the packet mark. */
export function askChains(kind: AskKind, masqueradeMark: number): KindChains {
  const { family, place, hasOutside, masquerades, isRestricted } = kind;
  const chains: Chains = new Map();
  const side = (which: "inside" | "outside"): Verdict => {
    const name = `service${family}-${place}-${which}`;
    const set = `service-${which}`;
    const rules: readonly Rule[] = [
      [...loadFrontend(family, place, 0)[0], map(`${set}${family}`, 0, 8), ...followKind(8, `${set}-kinds${family}`)],
      [verdict(DROP)],
    ];
    chains.set(name, { rules });
    return goto(name);
  };
  const rules: Rule[] = [];
  if (isRestricted) {
    const [load, end] = loadFrontend(family, place, 0);
    rules.push([
      ...load,
      loadAddress(family, "source", end),
      { op: "lookup", set: `service-sources${family}`, sreg: 0, invert: true },
      verdict(DROP),
    ]);
  }
  if (hasOutside || masquerades) {
    const iifname: Expression = { op: "meta", key: "iifname", dreg: 0 };
    rules.push(
      // Processes of the node: on their way out packets have come from nowhere.
      [iifname, { op: "cmp", sreg: 0, is: "eq", data: interfaceKey("") }, verdict(side("inside"))],
      [iifname, { op: "lookup", set: "workloads", sreg: 0, invert: false }, verdict(side("inside"))],
      [
        loadAddress(family, "source", 0),
        { op: "lookup", set: `service-pods${family}`, sreg: 0, invert: false },
        verdict(side("inside")),
      ],
    );
  }
  if (masquerades) {
    rules.push([
      { op: "meta", key: "mark", dreg: 0 },
      { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(~masqueradeMark), xor: hostWord(masqueradeMark) },
      { op: "setMark", sreg: 0 },
    ]);
  }
  rules.push([verdict(side(hasOutside ? "outside" : "inside"))]);
  const name = `service${family}-${place}-ask${hasOutside ? "-outside" : ""}${masquerades ? "-masquerade" : ""}${
    isRestricted ? "-sources" : ""
  }`;
  chains.set(name, { rules });
  return { to: goto(name), chains };
}

/** What leads there and back out, whatever the services are. `hasNodeAddresses`: node ports answer on those of `service-nodes` only. */
export function serviceBaseChains(hasNodeAddresses: boolean, masqueradeMark: number): ReadonlyMap<string, NftChain> {
  const rules = ([4, 6] as const).flatMap((family) => [toAddress(family), toNodePort(family, hasNodeAddresses)]);
  const nat = (hook: "prerouting" | "output" | "postrouting", priority: number, rules: readonly Rule[]): NftChain => ({
    base: { type: "nat", hook, priority, policy: "accept" },
    rules,
  });
  return new Map([
    // NF_IP_PRI_NAT_DST: after policy before DNAT (-150), and before routing.
    ["service-prerouting", nat("prerouting", -100, rules)],
    ["service-output", nat("output", -100, rules)],
    // Before masquerading (100).
    [
      "service-postrouting",
      nat("postrouting", 99, [
        [
          { op: "meta", key: "mark", dreg: 0 },
          { op: "bitwise", sreg: 0, dreg: 4, mask: hostWord(masqueradeMark), xor: hostWord(0) },
          { op: "cmp", sreg: 4, is: "neq", data: hostWord(0) },
          // A tunnel would hand it on to its own packets.
          { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(~masqueradeMark), xor: hostWord(0) },
          { op: "setMark", sreg: 0 },
          { op: "masquerade" },
        ],
        // A pod that reached itself would see its own address, and take the packet for a forged one.
        [
          { op: "ct", key: "status", dreg: 0 },
          { op: "bitwise", sreg: 0, dreg: 0, mask: hostWord(IPS_DST_NAT), xor: hostWord(0) },
          { op: "cmp", sreg: 0, is: "neq", data: hostWord(0) },
          { op: "meta", key: "iifname", dreg: 0 },
          { op: "meta", key: "oifname", dreg: 4 },
          { op: "lookup", set: "self", sreg: 0, invert: false },
          { op: "masquerade" },
        ],
      ]),
    ],
  ]);
}

/** include/uapi/linux/netfilter/nf_conntrack_common.h. */
const IPS_DST_NAT = 0x20;
/** RTN_LOCAL of include/uapi/linux/rtnetlink.h. */
const LOCAL = 2;

const findKind = (family: Family, place: Place): readonly Expression[] => [
  ...isFamily(family),
  ...loadFrontend(family, place, 0)[0],
  map(`services${family}`, 0, 8),
];

const toAddress = (family: Family): Rule => [
  ...findKind(family, "address"),
  ...followKind(8, `service-kinds${family}`),
];

function toNodePort(family: Family, hasNodeAddresses: boolean): Rule {
  const load = loadAddress(family, "destination", 0);
  const answers: readonly Expression[] = hasNodeAddresses
    ? [load, { op: "lookup", set: `service-nodes${family}`, sreg: 0, invert: false }]
    : family === 4
    ? [
      load,
      { op: "bitwise", sreg: 0, dreg: 0, mask: "\xff\0\0\0", xor: ANY[4] },
      { op: "cmp", sreg: 0, is: "neq", data: "\x7f\0\0\0" },
    ]
    : [load, { op: "cmp", sreg: 0, is: "neq", data: LOOPBACK_V6 }];
  return [
    // Few packets have a node port: the routing tables are asked last.
    ...findKind(family, "node"),
    ...answers,
    { op: "destinationType", dreg: 0 },
    { op: "cmp", sreg: 0, is: "eq", data: hostWord(LOCAL) },
    ...followKind(8, `service-kinds${family}`),
  ];
}
