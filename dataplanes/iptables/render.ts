/** `DesiredState` → tables and sets, and what of it stays from one state to the next. Pure: only speed depends on what came before. */
import type { Family } from "../../src/model/address.ts";
import type { DesiredState, PolicyList } from "../../src/model/desired.ts";
import { type PersistentMap, persistentMap } from "../../src/model/persistent_map.ts";
import type { Direction } from "../../src/model/rule.ts";
import { type Compiled, compileList, type Endings, FILTER_ENDINGS } from "./compile.ts";
import { findInterfaces, sourcesOf } from "./interfaces.ts";
import { nodeTables, type TableOptions, type TableParts } from "./node_tables.ts";
import type { IpSet, Ruleset, Table } from "./ruleset.ts";
import { ServiceTables } from "./services_tables.ts";
import { ListedContent, MemberContent } from "./set_content.ts";
import { type SetUse, sourceSetName } from "./set_names.ts";

export interface RenderOptions extends TableOptions {
  /** NFLOG group of `log` rules. */
  readonly logGroup: number;
  readonly families: readonly Family[];
  /** Absent: `flat`. `linear`: lists rule by rule, as they are written. */
  readonly shape?: "flat" | "linear";
}

export interface Rendered {
  readonly ruleset: Ruleset;
  /** What is not as wanted, or slower than it might be, one line each. */
  readonly problems: readonly string[];
}

export class Renderer {
  private parts: TableParts | undefined;
  private tables: readonly Table[] = [];
  /** Without services. */
  private bases: readonly Table[] = [];
  private readonly services: ServiceTables;
  private uses: ReadonlyMap<string, SetUse> = new Map();
  private problems: readonly string[] = [];
  private sources = new Map<string, ListedContent>();
  private sets: ReadonlyMap<string, IpSet> = new Map();
  private seenSets: DesiredState["sets"] | undefined;
  private ruleset: Ruleset | undefined;
  private lists = new WeakMap<PolicyList, Map<string, Compiled>>();
  /** By a list's id: the heads of what it was compiled to. */
  private heads: ReadonlyMap<string, ReadonlySet<string>> = new Map();

  constructor(readonly options: RenderOptions) {
    this.services = new ServiceTables(options.families, options.services, sourceSetName);
  }

  render(desired: DesiredState): Rendered {
    const { workloads, hostEndpoints, failsafe, masquerade } = desired;
    const was = this.parts;
    const hasServices = this.options.services !== undefined && desired.services !== undefined;
    const same = was !== undefined && was.workloads === workloads && was.hostEndpoints === hostEndpoints &&
      was.failsafe === failsafe && was.masquerade === masquerade && was.hasServices === hasServices;
    if (!same) {
      const parts = { workloads, hostEndpoints, failsafe, masquerade, hasServices };
      this.renderTables(parts);
      this.parts = parts;
    }
    const served = this.services.follow(desired.services);
    if (!same || served) {
      const tables = this.bases.map((base) => this.services.addTo(base));
      if (tables.length !== this.tables.length || tables.some((table, i) => table !== this.tables[i])) {
        this.tables = tables;
      }
    }
    if (!same || served || this.seenSets !== desired.sets) {
      this.renderSets(desired.sets);
      this.seenSets = desired.sets;
    }
    if (this.ruleset?.tables !== this.tables || this.ruleset.sets !== this.sets) {
      this.ruleset = { tables: this.tables, sets: this.sets };
    }
    return { ruleset: this.ruleset, problems: this.problems };
  }

  /** The chains that a list begins with, wherever it applies. */
  headsOf({ id }: PolicyList): ReadonlySet<string> {
    return this.heads.get(id) ?? new Set();
  }

  private compiled(list: PolicyList, direction: Direction, family: Family, endings: Endings): Compiled {
    let known = this.lists.get(list);
    if (known === undefined) this.lists.set(list, known = new Map());
    const key = `${family} ${direction} ${endings === FILTER_ENDINGS ? "" : JSON.stringify(endings)}`;
    let found = known.get(key);
    if (found === undefined) {
      const { logGroup, shape } = this.options;
      known.set(
        key,
        found = compileList(list, { family, direction, endings, logGroup, ...shape === undefined ? {} : { shape } }),
      );
    }
    return found;
  }

  private renderTables(parts: TableParts): void {
    const interfaces = findInterfaces(parts);
    const tables: Table[] = [], uses = new Map<string, SetUse>(), problems = new Set(interfaces.problems);
    const sources = new Map<string, ListedContent>();
    const heads = new Map<string, Set<string>>();
    for (const family of this.options.families) {
      const compile = (list: PolicyList, direction: Direction, endings: Endings): Compiled => {
        const compiled = this.compiled(list, direction, family, endings);
        const known = heads.get(list.id);
        if (known === undefined) heads.set(list.id, new Set([compiled.head]));
        else known.add(compiled.head);
        return compiled;
      };
      const node = nodeTables(parts, interfaces, family, this.options, compile);
      for (const problem of node.problems) problems.add(problem);
      for (const [name, use] of node.uses) uses.set(name, use);
      const name = sourceSetName(family), before = this.sources.get(name);
      const content = new ListedContent(sourcesOf(interfaces.workloads, family));
      sources.set(name, before?.equals(content) ? before : content);
      for (const table of node.tables) {
        const known = this.bases.find((one) => one.family === family && one.table === table.table);
        tables.push(known !== undefined && sameTable(known, table) ? known : table);
      }
    }
    this.bases = tables;
    this.heads = heads;
    this.uses = uses;
    this.sources = sources;
    this.problems = [...problems];
  }

  private renderSets(sets: DesiredState["sets"]): void {
    const rendered = new Map<string, IpSet>();
    let changed = false;
    const put = (name: string, set: IpSet) => {
      if (this.sets.get(name) !== set) changed = true;
      rendered.set(name, set);
    };
    for (const [name, content] of this.sources) {
      const before = this.sets.get(name);
      put(
        name,
        before?.content === content
          ? before
          : { kind: "interface", family: name === sourceSetName(4) ? 4 : 6, content },
      );
    }
    for (const [name, { kind, family, ids, nets }] of [...this.uses, ...this.services.uses()]) {
      const members = ids.map((id) => {
        const set = sets.get(id);
        return set === undefined || set.kind !== kind ? NO_MEMBERS : set.members;
      });
      const before = this.sets.get(name);
      const same = before?.content instanceof MemberContent &&
        members.every((one, i) => (before.content as MemberContent).sources[i] === one);
      put(name, same ? before : { kind, family, content: new MemberContent(family, kind, members, nets) });
    }
    if (changed || rendered.size !== this.sets.size) this.sets = rendered;
  }
}

const NO_MEMBERS: PersistentMap<string, true> = persistentMap();

/** Chains are named by their content, or by the list that they are made of, but for those that hooks lead to. */
function sameTable(one: Table, other: Table): boolean {
  if (one.chains.size !== other.chains.size || one.hooks.size !== other.hooks.size) return false;
  for (const [hook, chain] of one.hooks) if (other.hooks.get(hook) !== chain) return false;
  for (const name of one.chains.keys()) if (!other.chains.has(name)) return false;
  return [...one.hooks.values()].every((name) =>
    JSON.stringify(one.chains.get(name)) === JSON.stringify(other.chains.get(name))
  );
}
