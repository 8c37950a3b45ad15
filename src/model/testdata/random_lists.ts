/** For tests: random policy lists, sets and packets from a seed, dense in collisions and edges. */
import { type Address, type Cidr, makeCidr } from "../address.ts";
import type { CompiledPolicy, DesiredState, PolicyList, PolicyTier, Rule, RuleMatch } from "../desired.ts";
import { persistentMap } from "../persistent_map.ts";
import type { TracedPacket } from "../traced.ts";
import { address, list, policy, rule, setId, tier } from "./small_states.ts";

/** xorshift32: the same numbers from the same seed everywhere. */
export function random(seed: number) {
  let at = seed | 1;
  const next = () => {
    at ^= at << 13;
    at ^= at >>> 17;
    at ^= at << 5;
    return (at >>> 0) / 0x100000000;
  };
  const below = (n: number) => Math.floor(next() * n);
  return { below, chance: (p: number) => next() < p, pick: <T>(from: readonly T[]): T => from[below(from.length)]! };
}
type Random = ReturnType<typeof random>;

const PORT_CHOICES = [0, 1, 22, 53, 79, 80, 81, 443, 8000, 8080, 8999, 9000, 65534, 65535];
const HOSTS4 = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.1.0.1", "10.1.2.3", "192.0.2.1", "255.255.255.255", "0.0.0.0"]
  .map(address);
const HOSTS6 = ["fd00::1", "fd00::2", "fd00:0:0:1::1", "fd01::1", "2001:db8::1", "::1", "::"].map(address);
const PROTOCOL_CHOICES = [6, 6, 6, 17, 132, 136, 1, 58, 47];
export const SET_IDS = ["a", "b", "c", "d", "e", "f", "g", "missing"].map(setId);
const PORT_SET_IDS = ["pa", "pb", "missing-ports"].map(setId);

const someNet = (r: Random): Cidr => {
  const host = r.chance(0.7) ? r.pick(HOSTS4) : r.pick(HOSTS6);
  return makeCidr(host, r.pick(host.length === 4 ? [0, 8, 16, 24, 25, 31, 32, 32] : [0, 8, 16, 64, 127, 128, 128]));
};
const some = <T>(r: Random, make: () => T, most: number): T[] => Array.from({ length: 1 + r.below(most) }, make);

export function someSets(r: Random): DesiredState["sets"] {
  let sets: DesiredState["sets"] = persistentMap();
  // Half of the worlds know single addresses only, as most do.
  const prefixes = r.chance(0.5);
  for (const id of SET_IDS.slice(0, -1)) {
    const nets = r.chance(0.15)
      ? []
      : some(r, () =>
        prefixes && r.chance(0.5) ? someNet(r) : makeCidr(r.chance(0.7) ? r.pick(HOSTS4) : r.pick(HOSTS6), 128), 5);
    sets = sets.set(id, {
      id,
      kind: "net",
      title: id,
      members: persistentMap(nets.map((net) => [fullLength(net), true] as const)),
    });
  }
  for (const id of PORT_SET_IDS.slice(0, -1)) {
    const members = some(
      r,
      () => (r.chance(0.7) ? r.pick(HOSTS4) : r.pick(HOSTS6)) + member(r.pick([6, 17, 132]), r.pick(PORT_CHOICES)),
      6,
    );
    sets = sets.set(id, {
      id,
      kind: "port",
      title: id,
      members: persistentMap(members.map((one) => [one, true] as const)),
    });
  }
  return sets;
}
const member = (protocol: number, port: number) => String.fromCharCode(protocol, port >> 8, port & 0xff);
/** `makeCidr(v4, 128)` of above stands for one address. */
const fullLength = (net: Cidr): Cidr =>
  net.length === 5 && net.charCodeAt(4) > 32 ? makeCidr(net.slice(0, 4) as Address, 32) : net;

function someMatch(r: Random, ports: boolean): RuleMatch {
  const match: { -readonly [K in keyof RuleMatch]: RuleMatch[K] } = {};
  if (r.chance(0.3)) match.nets = some(r, () => someNet(r), 3);
  if (r.chance(0.15)) match.notNets = some(r, () => someNet(r), 2);
  if (r.chance(0.3)) match.sets = some(r, () => r.pick(SET_IDS), 2);
  if (r.chance(0.1)) match.notSets = some(r, () => r.pick(SET_IDS), 2);
  const range = () => {
    const first = r.pick(PORT_CHOICES);
    return r.chance(0.6)
      ? { first, last: first }
      : { first, last: Math.min(65535, first + r.pick([1, 10, 1000, 65535])) };
  };
  if (ports && r.chance(0.6)) match.ports = some(r, range, 3);
  if (ports && r.chance(0.15)) match.portSets = some(r, () => r.pick(PORT_SET_IDS), 2);
  if (r.chance(0.08)) match.notPorts = some(r, range, 2);
  if (r.chance(0.05)) match.notPortSets = [r.pick(PORT_SET_IDS)];
  if (r.chance(0.05)) match.serviceSet = r.pick(PORT_SET_IDS);
  return match;
}

/** As most are: some peers, some ports. */
function plainRule(r: Random, action: Rule["action"]): Rule {
  const first = r.pick(PORT_CHOICES);
  const last = r.chance(0.8) ? first : Math.min(65535, first + r.below(8));
  const peers = r.chance(0.85)
    ? { sets: [r.pick(SET_IDS)] }
    : r.chance(0.5)
    ? { nets: some(r, () => makeCidr(r.pick(HOSTS4), 32), 2) }
    : {};
  const own = r.chance(0.9);
  return rule(action, {
    protocol: r.pick([6, 6, 17]),
    from: own ? peers : {},
    to: { ports: [{ first, last }], ...own ? {} : peers },
  });
}

function someRule(r: Random, action: Rule["action"], plain: boolean): Rule {
  if (plain || r.chance(0.3)) return plainRule(r, action);
  const kind = r.below(10);
  const protocol = kind < 6 ? r.pick([6, 6, 17, 132]) : kind === 6 ? r.pick([1, 58, 47]) : undefined;
  const ports = protocol === undefined ? r.chance(0.2) : protocol === 6 || protocol === 17 || protocol === 132;
  const icmp = protocol === 1 || protocol === 58 || r.chance(0.03);
  return rule(action, {
    protocol,
    family: r.chance(0.1) ? r.pick([4, 6] as const) : undefined,
    notProtocol: r.chance(0.05) ? r.pick(PROTOCOL_CHOICES) : undefined,
    icmp: icmp && r.chance(0.6)
      ? { type: r.pick([0, 8, 128, 129]), code: r.chance(0.3) ? r.below(2) : undefined }
      : undefined,
    notIcmp: r.chance(0.05)
      ? { type: r.pick([0, 8, 128, 129]), code: r.chance(0.3) ? r.below(2) : undefined }
      : undefined,
    from: someMatch(r, ports && r.chance(0.15)),
    to: someMatch(r, ports),
  });
}

function somePolicies(r: Random, actions: readonly Rule["action"][], most: number, long: number): CompiledPolicy[] {
  const plain = r.chance(0.3);
  return Array.from({ length: r.below(most + 1) }, (_, i) => {
    let action = r.pick(actions);
    const all = Array.from({ length: r.below(long) }, () => {
      if (r.chance(0.25)) action = r.pick(actions);
      return someRule(r, action, plain);
    });
    return { ...policy(`p${i}`, ...all), staged: r.chance(0.1), ...r.chance(0.2) ? { logDenied: true } : {} };
  });
}

export function someList(r: Random, long: number): PolicyList {
  const tiers: PolicyTier[] = Array.from({ length: r.below(4) }, (_, i) => (
    {
      ...tier(
        `t${i}`,
        r.chance(0.5) ? "deny" : "pass",
        ...somePolicies(r, ["allow", "allow", "deny", "pass", "log"], 3, long),
      ),
      ...r.chance(0.15) ? { logDenied: true as const } : {},
    }
  )).filter((one) => one.policies.length > 0);
  const profiles = somePolicies(r, ["allow", "deny", "pass"], 2, 4).map((one) => ({
    ...one,
    staged: false,
    logDenied: undefined,
  }));
  return list(tiers, profiles, r.chance(0.8) ? "deny" : "next");
}

export function somePacket(r: Random): TracedPacket {
  const hosts = r.chance(0.6) ? HOSTS4 : HOSTS6;
  const protocol = r.pick(PROTOCOL_CHOICES.filter((one) => one !== (hosts === HOSTS4 ? 58 : 1)));
  const ported = protocol === 6 || protocol === 17 || protocol === 132 || protocol === 136;
  return {
    source: r.pick(hosts),
    destination: r.pick(hosts),
    protocol,
    sourcePort: ported ? r.pick(PORT_CHOICES) : undefined,
    destinationPort: ported ? r.pick(PORT_CHOICES) : undefined,
    icmp: protocol === 1 || protocol === 58 ? { type: r.pick([0, 8, 128, 129]), code: r.below(2) } : undefined,
    state: "new",
  };
}
