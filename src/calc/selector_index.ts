import { labelsIn } from "../model/selector.ts";
import type { Labels, Selector } from "../model/selector.ts";
import { formatSelector } from "../model/selector_format.ts";
import { matches, NAMESPACE_LABEL } from "../model/selector_match.ts";
import { isImpossible, restrictionsOf } from "./restriction.ts";
import type { Restrictions } from "./restriction.ts";
import { SetMap } from "./set_map.ts";

/** Something with labels that selectors are tried against. `matched` belongs to the index. */
export interface Subject<S, D> {
  labels: Labels;
  /** Where it lives: the value of its namespace label, for good. */
  readonly namespace: string | undefined;
  readonly matched: IndexedSelector<S, D>[];
}

/** A selector in the index, with what its owner keeps beside it. */
export interface IndexedSelector<S, D> {
  readonly selector: Selector;
  /** Canonical text: its identity. */
  readonly text: string;
  readonly subjects: Set<S>;
  readonly data: D;
  /** Where it looks, and what labels it asks for there. */
  readonly where: readonly Place[];
  readonly asks: ReadonlySet<string>;
  /** Where it is found; belongs to the index. */
  readonly filings: Filing<S, D>[];
}

interface Filing<S, D> {
  readonly scope: Scope<S, D>;
  /** Labels whose tables this selector had made; the first is the one it stands under. */
  readonly labels: readonly string[];
  /** Undefined: any value. */
  readonly values?: readonly string[];
}

/** The subjects of one namespace, of none, or all; and the selectors that look for them there. */
interface Scope<S, D> {
  readonly subjects: Set<S>;
  readonly tables: Map<string, LabelTable<S, D>>;
  /** Selectors without a label to find them by. */
  readonly others: Set<IndexedSelector<S, D>>;
}

/** By value of one label. Exists while a selector asks for the label, so labels nobody asks for cost nothing. */
interface LabelTable<S, D> {
  users: number;
  readonly subjects: SetMap<string, S>;
  readonly selectors: SetMap<string, IndexedSelector<S, D>>;
  readonly anyValue: Set<IndexedSelector<S, D>>;
}

/** Where a selector looks: everywhere, or at what is in one namespace, or in none. */
export const EVERYWHERE = "everywhere";
export type Place = typeof EVERYWHERE | { readonly namespace: string | undefined };

/** One text for one selector. `formatSelector` cannot quote a value that holds both quotes; the tree settles those. */
export function selectorText(selector: Selector): string {
  const text = formatSelector(selector);
  return text.includes('"') && text.includes("'") ? `${text} ${JSON.stringify(selector)}` : text;
}

/**
 * Which selectors match which subjects, kept up to date from both sides. A selector is filed under a label it cannot match
 * without (in its namespace, where it names one), so a new subject meets only selectors that speak of its own labels,
 * and a new selector only subjects that carry one of its values.
 */
export class SelectorIndex<S extends Subject<S, D>, D> {
  readonly #selectors = new Map<string, IndexedSelector<S, D>>();
  readonly #scopes = new Map<string, Scope<S, D>>();
  readonly #everything: Scope<S, D> = newScope();
  /** Selectors tried against labels since the beginning. */
  evaluations = 0;

  constructor(
    readonly newData: () => D,
    readonly onMatch: (selector: IndexedSelector<S, D>, subject: S) => void,
    readonly onUnmatch: (selector: IndexedSelector<S, D>, subject: S) => void,
    /** Told before a new selector is tried on anything (1), and after one has gone (-1): the labels it asks for, and where. */
    readonly onAsk: (labels: ReadonlySet<string>, where: readonly Place[], sign: 1 | -1) => void = () => {},
  ) {}

  /** Selectors, subjects and label tables that it keeps. */
  get held(): number {
    const scopes = [this.#everything, ...this.#scopes.values()];
    const inside = scopes.reduce(
      (sum, { subjects, tables, others }) => sum + subjects.size + tables.size + others.size,
      0,
    );
    return this.#selectors.size + this.#scopes.size + inside;
  }

  /** The entry of an equal selector, made where there is none. */
  addSelector(selector: Selector): IndexedSelector<S, D> {
    const text = selectorText(selector);
    const there = this.#selectors.get(text);
    if (there !== undefined) return there;
    const restrictions = restrictionsOf(selector), where = whereOf(restrictions), asks = labelsIn(selector);
    const entry: IndexedSelector<S, D> = {
      selector,
      text,
      subjects: new Set(),
      data: this.newData(),
      where,
      asks,
      filings: [],
    };
    this.#selectors.set(text, entry);
    this.onAsk(asks, where, 1);
    this.#file(entry, restrictions);
    for (const filing of entry.filings) {
      for (const subject of candidatesAt(filing)) {
        if (this.#try(entry, subject)) this.#join(entry, subject);
      }
    }
    return entry;
  }

  /** Without `onUnmatch`: whoever removes it knows. */
  removeSelector(entry: IndexedSelector<S, D>): void {
    this.#selectors.delete(entry.text);
    for (const { scope, labels, values } of entry.filings) {
      if (labels.length === 0) scope.others.delete(entry);
      else {
        const table = scope.tables.get(labels[0]!)!;
        if (values === undefined) table.anyValue.delete(entry);
        for (const value of values ?? []) table.selectors.delete(value, entry);
      }
      for (const label of labels) if (--scope.tables.get(label)!.users === 0) scope.tables.delete(label);
    }
    for (const subject of entry.subjects) removeOne(subject.matched, entry);
    entry.subjects.clear();
    this.#dropEmptyScopes(entry);
    this.onAsk(entry.asks, entry.where, -1);
  }

  addSubject(subject: S): void {
    this.#place(subject);
    for (const entry of this.#found(subject)) this.#join(entry, subject);
  }

  removeSubject(subject: S): void {
    for (const entry of this.#displace(subject)) this.onUnmatch(entry, subject);
  }

  /** A subject of the same namespace that no selector tells from `other`: it matches what that one does, and nobody is told. */
  addTwin(subject: S, other: S): void {
    this.#place(subject);
    for (const entry of other.matched) {
      entry.subjects.add(subject);
      subject.matched.push(entry);
    }
  }

  /** As `removeSubject`, and nobody is told. */
  forget(subject: S): void {
    this.#displace(subject);
  }

  #place(subject: S): void {
    for (const scope of this.#scopesOf(subject)) {
      scope.subjects.add(subject);
      for (const [label, table] of scope.tables) fileSubject(table, subject.labels.get(label), subject);
    }
  }

  /** Answers what it matched. */
  #displace(subject: S): readonly IndexedSelector<S, D>[] {
    for (const scope of this.#scopesOf(subject)) {
      scope.subjects.delete(subject);
      for (const [label, table] of scope.tables) unfileSubject(table, subject.labels.get(label), subject);
    }
    const matched = subject.matched.splice(0);
    for (const entry of matched) entry.subjects.delete(subject);
    const name = scopeName(subject.namespace);
    if (isEmpty(this.#scopes.get(name)!)) this.#scopes.delete(name);
    return matched;
  }

  /** Other labels, same namespace. */
  relabel(subject: S, labels: Labels): void {
    const before = subject.labels;
    subject.labels = labels;
    for (const scope of this.#scopesOf(subject)) {
      for (const [label, table] of scope.tables) {
        const old = before.get(label), now = labels.get(label);
        if (old === now) continue;
        unfileSubject(table, old, subject);
        fileSubject(table, now, subject);
      }
    }
    const now = new Set(this.#found(subject));
    for (const entry of subject.matched.slice()) {
      if (now.delete(entry)) continue;
      removeOne(subject.matched, entry);
      entry.subjects.delete(subject);
      this.onUnmatch(entry, subject);
    }
    for (const entry of now) this.#join(entry, subject);
  }

  #join(entry: IndexedSelector<S, D>, subject: S): void {
    entry.subjects.add(subject);
    subject.matched.push(entry);
    this.onMatch(entry, subject);
  }

  #try(entry: IndexedSelector<S, D>, subject: S): boolean {
    this.evaluations++;
    return matches(entry.selector, subject.labels);
  }

  #found(subject: S): IndexedSelector<S, D>[] {
    const found: IndexedSelector<S, D>[] = [];
    const tryAll = (entries: Iterable<IndexedSelector<S, D>>) => {
      for (const entry of entries) if (this.#try(entry, subject)) found.push(entry);
    };
    for (const scope of this.#scopesOf(subject)) {
      tryAll(scope.others);
      if (scope.tables.size === 0) continue;
      for (const [label, value] of subject.labels) {
        const table = scope.tables.get(label);
        if (table === undefined) continue;
        tryAll(table.selectors.get(value));
        tryAll(table.anyValue);
      }
    }
    return found;
  }

  #scopesOf(subject: S): readonly Scope<S, D>[] {
    return [this.#scope(scopeName(subject.namespace)), this.#everything];
  }

  #scope(name: string): Scope<S, D> {
    let scope = this.#scopes.get(name);
    if (scope === undefined) this.#scopes.set(name, scope = newScope());
    return scope;
  }

  #file(entry: IndexedSelector<S, D>, restrictions: Restrictions): void {
    const scopes = entry.where.map((place) =>
      place === EVERYWHERE ? this.#everything : this.#scope(scopeName(place.namespace))
    );
    const valued: string[] = [], present: string[] = [];
    for (const [label, restriction] of restrictions) {
      if (label === NAMESPACE_LABEL) continue;
      if (restriction.values !== undefined) valued.push(label);
      else if (restriction.present) present.push(label);
    }
    for (const scope of scopes) {
      const labels = valued.length > 0 ? valued : present.slice(0, 1);
      let best: string | undefined, least = Infinity;
      for (const label of labels) {
        const table = tableOf(scope, label);
        table.users++;
        let cost = 0;
        for (const value of restrictions.get(label)!.values ?? []) {
          cost += table.subjects.get(value).size + table.selectors.get(value).size;
        }
        if (cost < least) best = label, least = cost;
      }
      if (best === undefined) {
        scope.others.add(entry);
        entry.filings.push({ scope, labels });
        continue;
      }
      const table = scope.tables.get(best)!;
      const { values } = restrictions.get(best)!;
      if (values === undefined) table.anyValue.add(entry);
      for (const value of values ?? []) table.selectors.add(value, entry);
      entry.filings.push({
        scope,
        labels: [best, ...labels.filter((label) => label !== best)],
        values: values && [...values],
      });
    }
  }

  #dropEmptyScopes({ where }: IndexedSelector<S, D>): void {
    for (const place of where) {
      if (place === EVERYWHERE) continue;
      const name = scopeName(place.namespace);
      const scope = this.#scopes.get(name);
      if (scope !== undefined && isEmpty(scope)) this.#scopes.delete(name);
    }
  }
}

/** Nowhere, where nothing can match. */
function whereOf(restrictions: Restrictions): readonly Place[] {
  if (isImpossible(restrictions)) return [];
  const namespace = restrictions.get(NAMESPACE_LABEL);
  if (namespace?.values !== undefined) return [...namespace.values].map((name) => ({ namespace: name }));
  return [namespace?.absent ? { namespace: undefined } : EVERYWHERE];
}

/** Never equal for a namespace and for none, whatever the namespace is called. */
const scopeName = (namespace: string | undefined): string => namespace === undefined ? "" : `/${namespace}`;

function newScope<S, D>(): Scope<S, D> {
  return { subjects: new Set(), tables: new Map(), others: new Set() };
}

const isEmpty = <S, D>(scope: Scope<S, D>): boolean =>
  scope.subjects.size === 0 && scope.tables.size === 0 && scope.others.size === 0;

function tableOf<S extends Subject<S, D>, D>(scope: Scope<S, D>, label: string): LabelTable<S, D> {
  let table = scope.tables.get(label);
  if (table === undefined) {
    table = { users: 0, subjects: new SetMap(), selectors: new SetMap(), anyValue: new Set() };
    scope.tables.set(label, table);
    for (const subject of scope.subjects) fileSubject(table, subject.labels.get(label), subject);
  }
  return table;
}

function* candidatesAt<S, D>(filing: Filing<S, D>): IterableIterator<S> {
  const { scope, labels, values } = filing;
  if (labels.length === 0) return yield* scope.subjects;
  const table = scope.tables.get(labels[0]!)!;
  if (values === undefined) return yield* table.subjects.values();
  for (const value of values) yield* table.subjects.get(value);
}

function fileSubject<S, D>(table: LabelTable<S, D>, value: string | undefined, subject: S): void {
  if (value !== undefined) table.subjects.add(value, subject);
}

function unfileSubject<S, D>(table: LabelTable<S, D>, value: string | undefined, subject: S): void {
  if (value !== undefined) table.subjects.delete(value, subject);
}

function removeOne<T>(list: T[], item: T): void {
  const at = list.indexOf(item);
  const last = list.pop()!;
  if (at < list.length) list[at] = last;
}
