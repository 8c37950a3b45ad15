/** NetworkPolicy and GlobalNetworkPolicy of Calico, its Tiers and its Profiles. */
import { accountQuestion, readCalicoRule, type RuleContext } from "./calico_rule.ts";
import { specOf } from "./core_objects.ts";
import type { Endpoint, Holder, Resource } from "./holder.ts";
import { isGiven, readFlag, readGivenText, readList, readNumber, readWord, refuse } from "./manifest.ts";
import type { Population } from "./population.ts";
import { createReading, type Direction, DIRECTIONS, finish, type Policy, type Rule } from "./rule.ts";
import { readPlainSelector } from "./selector.ts";

type Spec = Readonly<Record<string, unknown>>;

/** Never throws: what it cannot read denies. */
export function readCalicoPolicy(
  resource: Resource,
  population: Population,
): { readonly policy: Policy; readonly problems: readonly string[] } {
  const { kind, name, where } = resource.identity;
  const namespace = kind === "NetworkPolicy" ? resource.identity.namespace : undefined;
  const reading = createReading();
  const spec = reading.attempt(() => specOf(resource), {});
  const selected = reading.attempt(() => readSelection(spec, where, namespace), () => true);
  const stage = reading.attempt(() => readStage(spec, where), { stage: "normal" as const, applyOnForward: true });
  const directions = reading.attempt(() => readTypes(spec, where), DIRECTIONS);
  const selects = (holder: Holder) =>
    holder.kind !== "network set" && (namespace === undefined || holder.namespace?.name === namespace) &&
    selected(holder);
  // What is forwarded, or judged before DNAT, goes to others than the policy's own endpoint.
  const ownEnd = stage.stage === "normal" && !stage.applyOnForward ? selects : undefined;
  const rules = (direction: Direction) =>
    reading.attempt(
      () => readRules(spec[direction], direction, where, { population, namespace, direction, selects: ownEnd }),
      [],
    );
  const tier = reading.attempt(() => readGivenText(spec.tier, `${where}: spec.tier`) ?? "default", undefined);
  const order = reading.attempt(() => readNumber(spec.order, `${where}: spec.order`) ?? Infinity, undefined);
  const policy: Policy = {
    title: where,
    kind,
    namespace: namespace ?? "",
    name,
    // Before all others where its place cannot be read.
    tier: tier ?? "kube-admin",
    order: tier === undefined ? -Infinity : order ?? -Infinity,
    directions,
    ...stage,
    selects,
    rules: { ingress: rules("ingress"), egress: rules("egress") },
  };
  return { policy: finish(policy, reading), problems: reading.problems };
}

/** Over endpoints, and besides over their service accounts and, in a global policy, their namespaces. */
function readSelection(spec: Spec, where: string, namespace: string | undefined): (holder: Holder) => boolean {
  const text = (field: string) => readGivenText(spec[field], `${where}: spec.${field}`);
  const questions: ((holder: Holder) => boolean)[] = [];
  const matches = readPlainSelector(text("selector") ?? "all()", `${where}: spec.selector`);
  questions.push(({ labels }) => matches(labels));
  const accounts = text("serviceAccountSelector");
  if (accounts !== undefined) questions.push(accountQuestion(accounts, `${where}: spec.serviceAccountSelector`));
  const namespaces = text("namespaceSelector");
  if (namespaces !== undefined) {
    if (namespace !== undefined) refuse(`${where}: spec.namespaceSelector`, namespaces, "none in a namespaced policy");
    const inThese = readPlainSelector(namespaces, `${where}: spec.namespaceSelector`);
    questions.push((holder) => holder.namespace !== undefined && inThese(holder.namespace.labels));
  }
  return (holder) => questions.every((question) => question(holder));
}

function readStage(spec: Spec, where: string): Pick<Policy, "stage" | "applyOnForward"> {
  const flag = (field: string) => readFlag(spec[field], `${where}: spec.${field}`);
  const [preDnat, untracked, applyOnForward] = [flag("preDNAT"), flag("doNotTrack"), flag("applyOnForward")];
  if ((preDnat || untracked) && !applyOnForward) {
    refuse(`${where}: spec.applyOnForward`, spec.applyOnForward, "true with preDNAT or doNotTrack");
  }
  if (preDnat && untracked) refuse(`${where}: spec.preDNAT`, true, "preDNAT or doNotTrack, not both");
  if (preDnat && readTypes(spec, where).includes("egress")) refuse(`${where}: spec.types`, spec.types, "Ingress alone");
  return { stage: preDnat ? "preDnat" : untracked ? "untracked" : "normal", applyOnForward };
}

/** Without types: those that have rules; Ingress where none has. */
function readTypes(spec: Spec, where: string): readonly Direction[] {
  const types = readList(spec.types, `${where}: spec.types`).map((type) =>
    readWord(type, ["Ingress", "Egress"], `${where}: spec.types`) === "Ingress" ? "ingress" : "egress"
  );
  if (types.length > 0) return types;
  const given = DIRECTIONS.filter((direction) => readList(spec[direction], `${where}: spec.${direction}`).length > 0);
  return given.length > 0 ? given : ["ingress"];
}

function readRules(value: unknown, direction: Direction, where: string, context: RuleContext): readonly Rule[] {
  return readList(value, `${where}: spec.${direction}`).map((rule, i) => ({
    ...readCalicoRule(rule, `${where}: ${direction}[${i}]`, context),
    where: `${direction}[${i}]`,
  }));
}

export interface Tier {
  readonly name: string;
  /** Infinity: last. */
  readonly order: number;
  readonly defaultAction: "Deny" | "Pass";
}

/** Those that are always there, as they are. */
const FIXED_TIERS: readonly Tier[] = [
  { name: "kube-admin", order: 1_000, defaultAction: "Pass" },
  { name: "default", order: 1_000_000, defaultAction: "Deny" },
  { name: "kube-baseline", order: 10_000_000, defaultAction: "Pass" },
];

/** By name. @throws {ManifestError} */
export function readTiers(resources: readonly Resource[]): ReadonlyMap<string, Tier> {
  const given = resources.map((resource): Tier => {
    const { name, where } = resource.identity;
    const { order, defaultAction } = specOf(resource);
    return {
      name,
      order: readNumber(order, `${where}: spec.order`) ?? Infinity,
      defaultAction: isGiven(defaultAction) && defaultAction !== ""
        ? readWord(defaultAction, ["Deny", "Pass"], `${where}: spec.defaultAction`)
        : "Deny",
    };
  });
  return new Map([...given, ...FIXED_TIERS].map((tier) => [tier.name, tier]));
}

export type ProfileRules = Readonly<Record<Direction, readonly Rule[]>>;

const ALLOW: readonly Rule[] = [{ where: "rule", action: "allow", conditions: [] }];
const ALLOW_BOTH: ProfileRules = { ingress: ALLOW, egress: ALLOW };

/** The rules behind the name of an endpoint's profile; that of its namespace allows both ways. @throws {ManifestError} */
export function readProfiles(
  resources: readonly Resource[],
  population: Population,
): (name: string, endpoint: Endpoint) => ProfileRules | undefined {
  const given = new Map(
    resources.map((resource) => {
      const { name, where } = resource.identity;
      const spec = specOf(resource);
      const rules = (direction: Direction) => readRules(spec[direction], direction, where, { population, direction });
      return [name, { ingress: rules("ingress"), egress: rules("egress") }] as const;
    }),
  );
  const isOpen = (name: string, { namespace }: Endpoint) =>
    name === "projectcalico-default-allow" || (namespace !== undefined && name === `kns.${namespace.name}`);
  return (name, endpoint) => given.get(name) ?? (isOpen(name, endpoint) ? ALLOW_BOTH : undefined);
}
