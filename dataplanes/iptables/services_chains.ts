/**
 * What becomes of a packet to a service: chains of the table nat that end in a translation, or in a mark that the table filter
 * looks at, because nothing may be dropped or refused here. Pure.
 *
 * Backend lists share their chains, by their id; what is a frontend's own is named by its key.
 */
import type { Cidr, Family } from "../../src/model/address.ts";
import { digest } from "../../src/model/digest.ts";
import { maximalNets } from "../../src/model/prefixes.ts";
import type { BackendList, ServiceBackendTarget, ServiceFrontend } from "../../src/model/services.ts";
import { netSetName, type SetUse } from "./set_names.ts";
import { ACCEPT, DROP, type End, goto, type Match, OURS, type Rule, rule, type Target } from "./ruleset.ts";
import { ofFamily } from "./set_content.ts";

/** One bit of the packet mark each. */
export interface ServiceMarks {
  /** Leaves with the node's address. */
  readonly masquerade: number;
  /** Is refused: it has come to a service without backends. */
  readonly refuse: number;
  /** Is dropped. */
  readonly drop: number;
}

/** One of several, the first whose matches hold; the last holds always. */
export interface Choice {
  readonly matches: readonly Match[];
  readonly target: Target;
}

/** What a frontend needs. */
export interface FrontendChains {
  /** Of the frontend itself. */
  readonly choices: readonly Choice[];
  readonly own: ReadonlyMap<string, readonly Rule[]>;
  /** By the names of their first chains; the content is the same wherever the name is. */
  readonly shared: ReadonlyMap<string, () => ReadonlyMap<string, readonly Rule[]>>;
  readonly uses: ReadonlyMap<string, SetUse>;
}

const DIGEST_CHARACTERS = 20;
/** So many backends need no chain of their own: a table is read and written whole, and a chain costs as much as two rules. */
const INLINE_MAX = 4;
/** So many backends are asked for one after another; of more, their parts. */
const CHOICES_MAX = 16;
const CERTAIN = 2 ** 31;
/** core/v1 ClientIPConfig.timeoutSeconds. */
const AFFINITY_SECONDS_MAX = 86_400;

const nameOf = (letter: string, text: string): string => `${OURS}${letter}-${digest(text).slice(0, DIGEST_CHARACTERS)}`;
const isProtocol = (protocol: number): Match => ({ match: "protocol", protocol, not: false });

const REFUSE = `${OURS}service-refuse`, DROP_LATER = `${OURS}service-drop`;

/** Of every service. What is to be refused goes on untranslated, past everybody else's rules of this table. */
export function baseChains({ refuse, drop }: ServiceMarks): ReadonlyMap<string, readonly Rule[]> {
  const later = (mark: number) => [rule({ target: "mark", value: mark, mask: mark }), rule(ACCEPT)];
  return new Map([[REFUSE, later(refuse)], [DROP_LATER, later(drop)]]);
}

/** Before masquerading of other kinds, in nat POSTROUTING. `sourceSet`: which pod is behind which interface. */
export function postroutingRules(marks: ServiceMarks, sourceSet: string, chain: (rules: readonly Rule[]) => string) {
  const { masquerade } = marks;
  const leave = chain([
    // A tunnel would hand the mark on to its own packets.
    rule({ target: "mark", value: 0, mask: masquerade }),
    rule({ target: "masquerade" }),
  ]);
  return [
    rule(goto(leave), { match: "mark", mask: masquerade, not: false }),
    // A pod that reached itself would see its own address, and take the packet for a forged one.
    rule(
      { target: "masquerade" },
      { match: "translated" },
      { match: "set", set: sourceSet, ends: ["source", "destination"], not: false },
    ),
  ];
}

/** In the table filter, before policy. */
export function refusalRules({ refuse, drop }: ServiceMarks, chain: (rules: readonly Rule[]) => string) {
  const refusal = chain([
    rule(DROP, { match: "mark", mask: drop, not: false }),
    rule({ target: "tcpReset" }, isProtocol(6)),
    rule({ target: "portUnreachable" }),
  ]);
  return [rule(goto(refusal), { match: "mark", mask: (refuse | drop) >>> 0, not: false })];
}

/** Those that take new flows. */
const activeBackends = ({ backends }: BackendList): readonly ServiceBackendTarget[] =>
  backends.some(({ draining }) => draining) ? backends.filter(({ draining }) => !draining) : backends;

export interface FrontendOptions {
  readonly marks: ServiceMarks;
  /** Which pod is behind which interface. */
  readonly sourceSet: string;
  /** Where pods are, of the frontend's family. */
  readonly podNets: readonly Cidr[];
}

export function frontendChains(frontend: ServiceFrontend, options: FrontendOptions): FrontendChains {
  const chains = new FrontendCompiler(frontend, options);
  const { own, shared, uses } = chains;
  return { choices: chains.frontend(), own, shared, uses };
}

class FrontendCompiler {
  readonly own = new Map<string, readonly Rule[]>();
  readonly shared = new Map<string, () => ReadonlyMap<string, readonly Rule[]>>();
  readonly uses = new Map<string, SetUse>();

  constructor(private readonly of: ServiceFrontend, private readonly options: FrontendOptions) {}

  frontend(): readonly Choice[] {
    const { backends, outside: other, scope, sources, masqueradeOutside, family, key, protocol } = this.of;
    const outside = scope === "cluster" || other?.id === backends.id ? undefined : other;
    const masquerades = scope !== "cluster" && masqueradeOutside;
    const rules: Rule[] = [];
    if (sources !== undefined) {
      const nets = maximalNets(ofFamily(sources, family));
      if (nets.length === 0) return only(goto(DROP_LATER));
      rules.push(rule(goto(DROP_LATER), this.inNets("source", nets, true)));
    }
    if (outside !== undefined || masquerades) {
      const list = outside ?? backends, side = outside === undefined ? "inside" : "outside";
      const { masquerade } = this.options.marks;
      const mark = rule({ target: "mark", value: masquerade, mask: masquerade });
      const to = masquerades
        ? only(this.chain("m", key, [mark, ...rulesOf(this.pick(list, side, INLINE_MAX), protocol)]))
        : this.pick(list, side, 1);
      rules.push(...rulesOf(to, protocol, this.fromOutside()));
    }
    const inside = this.pick(backends, "inside", INLINE_MAX);
    return rules.length === 0 ? inside : only(this.chain("f", key, [...rules, ...rulesOf(inside, protocol)]));
  }

  private chain(letter: string, text: string, rules: readonly Rule[]): Target {
    const name = nameOf(letter, text);
    this.own.set(name, rules);
    return goto(name);
  }

  /** Neither a pod nor the node itself. */
  private fromOutside(): readonly Match[] {
    const { podNets, sourceSet } = this.options;
    return [
      { match: "set", set: sourceSet, ends: ["source", "source"], not: true },
      ...podNets.length === 0 ? [] : [this.inNets("source", podNets, true)],
      { match: "local", end: "source", not: true },
    ];
  }

  private inNets(end: End, nets: readonly Cidr[], not: boolean): Match {
    return inNets(this.of.family, end, nets, not, this.uses);
  }

  // -------------------------------------------------------------------------------------------------------------- backends

  /** `most`: so many choices, or one. */
  private pick(list: BackendList, side: "inside" | "outside", most: number): readonly Choice[] {
    const { protocol, affinitySeconds, key } = this.of;
    const active = activeBackends(list);
    if (active.length === 0) return only(goto(list.empty === "drop" ? DROP_LATER : REFUSE));
    if (affinitySeconds !== undefined) {
      const base = `${side} ${key}`, name = nameOf("a", base);
      const known = active.map((backend) => {
        const seconds = Math.min(Math.max(1, affinitySeconds), AFFINITY_SECONDS_MAX);
        const match: Match = { match: "remembered", list: this.clients(backend), seconds };
        return rule(dnat(backend), isProtocol(protocol), match);
      });
      const remember = (backend: ServiceBackendTarget): Match => ({ match: "remember", list: this.clients(backend) });
      const chosen = choose(active, { text: base, into: this.own, protocol, more: (backend) => [remember(backend)] });
      this.own.set(name, [...known, ...rulesOf(chosen, protocol)]);
      return only(goto(name));
    }
    if (active.length <= most) return chooseOfFew(active);
    const text = `${list.id} ${protocol}`, name = nameOf("b", text);
    this.shared.set(name, () => {
      const chains = new Map<string, readonly Rule[]>();
      chains.set(name, rulesOf(choose(active, { protocol, text, into: chains }), protocol));
      return chains;
    });
    return only(goto(name));
  }

  /** Clients that stay with a backend of this frontend, by a name that stays while other backends come and go. */
  private clients({ address, port }: ServiceBackendTarget): string {
    return nameOf("a", `${this.of.key} ${address} ${port}`);
  }
}

const dnat = ({ address, port }: ServiceBackendTarget): Extract<Target, { target: "dnat" }> => ({
  target: "dnat",
  address,
  port,
});

const only = (target: Target): readonly Choice[] => [{ matches: [], target }];

/** Rules of a chain, all of which ask for `asked` besides. */
const rulesOf = (choices: readonly Choice[], protocol: number, asked: readonly Match[] = []): readonly Rule[] =>
  choices.map(({ matches, target }) =>
    rule(target, ...target.target === "dnat" ? [isProtocol(protocol)] : [], ...asked, ...matches)
  );

type More = (backend: ServiceBackendTarget) => readonly Match[];

const chance = (of: number, left: number): readonly Match[] =>
  of === left ? [] : [{ match: "chance", of31Bits: Math.round(CERTAIN * of / left) }];

/** Each backend by the same chance. */
const chooseOfFew = (backends: readonly ServiceBackendTarget[], more: More = () => []): readonly Choice[] =>
  backends.map((backend, i) => ({
    matches: [...chance(1, backends.length - i), ...more(backend)],
    target: dnat(backend),
  }));

interface ChooseOptions {
  readonly protocol: number;
  /** Begins the names of the chains that `into` gets, where there are many backends. */
  readonly text: string;
  readonly into: Map<string, readonly Rule[]>;
  readonly more?: More;
}

function choose(backends: readonly ServiceBackendTarget[], options: ChooseOptions): readonly Choice[] {
  const { protocol, text, into, more } = options;
  if (backends.length <= CHOICES_MAX) return chooseOfFew(backends, more);
  const size = Math.ceil(backends.length / CHOICES_MAX);
  const choices: Choice[] = [];
  for (let at = 0; at < backends.length; at += size) {
    const part = backends.slice(at, at + size), inner = `${text} ${at}-${part.length}`;
    const name = nameOf("b", inner);
    into.set(name, rulesOf(choose(part, { ...options, text: inner }), protocol));
    choices.push({ matches: chance(part.length, backends.length - at), target: goto(name) });
  }
  return choices;
}

/** One net is asked for by itself, of more there is a set. */
export function inNets(
  family: Family,
  end: End,
  nets: readonly Cidr[],
  not: boolean,
  uses: Map<string, SetUse>,
): Match {
  const [net, ...more] = nets;
  if (more.length === 0) return { match: "net", end, net: net!, not };
  const set = netSetName(family, [], nets);
  uses.set(set, { kind: "net", family, ids: [], nets });
  return { match: "set", set, ends: [end], not };
}
