/** For tests: small worlds. */
import { type Address, type Cidr, hostCidr, parseAddress, parseCidr } from "../address.ts";
import type {
  AddressSet,
  CompiledPolicy,
  DesiredHostEndpoint,
  DesiredState,
  DesiredWorkload,
  PolicyList,
  PolicyTier,
  Rule,
  RuleMatch,
  SetId,
} from "../desired.ts";
import { digest } from "../digest.ts";
import { persistentMap } from "../persistent_map.ts";

export const address = (text: string): Address => parseAddress(text);
export const cidr = (text: string): Cidr => parseCidr(text);
export const setId = (text: string): SetId => text as SetId;

/** `members`: prefixes, or addresses. */
export const netSet = (id: string, ...members: readonly string[]): AddressSet => ({
  id: setId(id),
  kind: "net",
  title: id,
  members: persistentMap(members.map((member) => [cidr(member), true] as const)),
});

/** `members`: `10.0.0.1 6 80`. */
export const portSet = (id: string, ...members: readonly string[]): AddressSet => ({
  id: setId(id),
  kind: "port",
  title: id,
  members: persistentMap(members.map((member) => {
    const [ip, protocol, port] = member.split(" ");
    return [
      parseAddress(ip!) + String.fromCharCode(Number(protocol), Number(port) >> 8, Number(port) & 0xff),
      true,
    ] as const;
  })),
});

export interface RuleFields extends Partial<Omit<Rule, "source" | "destination">> {
  readonly from?: RuleMatch;
  readonly to?: RuleMatch;
}

export function rule(action: Rule["action"], fields: RuleFields = {}): Rule {
  const { from = {}, to = {}, ...rest } = fields;
  return {
    action,
    source: from,
    destination: to,
    origin: { policy: "Test//p", direction: "ingress", index: 0 },
    ...rest,
  };
}

/** Rules are told apart by their place, as those of resources are. */
export const policy = (id: string, ...rules: readonly Rule[]): CompiledPolicy => ({
  id,
  staged: false,
  rules: rules.map((rule, index) => ({ ...rule, origin: { policy: id, direction: rule.origin.direction, index } })),
});
export const tier = (
  name: string,
  defaultAction: "deny" | "pass",
  ...policies: readonly CompiledPolicy[]
): PolicyTier => ({
  name,
  defaultAction,
  policies,
});

export function list(
  tiers: readonly PolicyTier[],
  profiles: readonly CompiledPolicy[] = [],
  end: "deny" | "next" = "deny",
): PolicyList {
  const id = digest(JSON.stringify([tiers, profiles, end]));
  return { id, tiers, profiles, end };
}

export const OPEN = list([], [policy("Profile//open", rule("allow"))]);
export const CLOSED = list([tier("default", "deny", policy("NetworkPolicy/x/closed"))]);
/** One tier, one policy, the rules in order, then deny. */
export const rules = (...all: readonly Rule[]): PolicyList =>
  list([tier("default", "deny", policy("NetworkPolicy/x/p", ...all))]);

export const workload = (
  id: string,
  interfaceName: string,
  addresses: readonly string[],
  lists: { readonly ingress?: PolicyList; readonly egress?: PolicyList } = {},
): DesiredWorkload => ({
  id,
  interfaceName,
  addresses: addresses.map(address),
  ingress: lists.ingress ?? OPEN,
  egress: lists.egress ?? OPEN,
});

export function state(parts: {
  readonly generation?: number;
  readonly sets?: readonly AddressSet[];
  readonly workloads?: readonly DesiredWorkload[];
  readonly hostEndpoints?: readonly DesiredHostEndpoint[];
  readonly failsafe?: DesiredState["failsafe"];
  readonly masquerade?: { readonly sources: readonly string[]; readonly inside: readonly string[] };
}): DesiredState {
  return {
    generation: parts.generation ?? 1,
    sets: persistentMap((parts.sets ?? []).map((set) => [set.id, set] as const)),
    workloads: persistentMap((parts.workloads ?? []).map((one) => [one.id, one] as const)),
    hostEndpoints: persistentMap((parts.hostEndpoints ?? []).map((one) => [one.id, one] as const)),
    failsafe: parts.failsafe ?? { inbound: [], outbound: [] },
    masquerade: {
      sources: (parts.masquerade?.sources ?? []).map(cidr),
      inside: (parts.masquerade?.inside ?? []).map(cidr),
    },
  };
}

/** A set with members that count up from `first`. */
export function manyAddresses(id: string, first: string, count: number, step = 1): AddressSet {
  const start = address(first);
  const value =
    (start.charCodeAt(0) << 24 | start.charCodeAt(1) << 16 | start.charCodeAt(2) << 8 | start.charCodeAt(3)) >>> 0;
  const entries: [string, true][] = [];
  for (let i = 0; i < count; i++) {
    const at = value + i * step;
    entries.push([
      hostCidr(String.fromCharCode(at >>> 24, at >>> 16 & 0xff, at >>> 8 & 0xff, at & 0xff) as Address),
      true,
    ]);
  }
  return { id: setId(id), kind: "net", title: id, members: persistentMap(entries) };
}
