/** The services of all families, put into tables that know nothing of them. Pure. */
import type { Family } from "../../src/model/address.ts";
import type { ServiceState } from "../../src/model/services.ts";
import type { SetUse } from "./set_names.ts";
import type { Table } from "./ruleset.ts";
import { SERVICE_HOOKS, type ServiceChains, ServiceRules, SERVICES_CHAIN } from "./services.ts";
import type { ServiceMarks } from "./services_chains.ts";

export class ServiceTables {
  private readonly rules = new Map<Family, ServiceRules>();
  private chains: ReadonlyMap<Family, ServiceChains> = new Map();
  /** By a table without services, the same with them. */
  private readonly merged = new WeakMap<Table, { readonly services: ServiceChains; readonly table: Table }>();

  /** `marks`: absent: services are somebody else's. `sourceSet`: which pod is behind which interface. */
  constructor(families: readonly Family[], marks: ServiceMarks | undefined, sourceSet: (family: Family) => string) {
    if (marks === undefined) return;
    for (const family of families) this.rules.set(family, new ServiceRules(family, marks, sourceSet(family)));
  }

  /** Whether chains or sets are others than before. */
  follow(services: ServiceState | undefined): boolean {
    const before = this.chains;
    const now = services === undefined
      ? []
      : [...this.rules].map(([family, rules]) => [family, rules.follow(services)] as const);
    this.chains = new Map(now);
    return now.length !== before.size || now.some(([family, chains]) => before.get(family) !== chains);
  }

  /** Services have chains of their own, many, and change without what stands beside them: a table stays the same object as long as both do. */
  addTo(base: Table): Table {
    const services = this.chains.get(base.family);
    if (base.table !== "nat" || services === undefined) return base;
    const known = this.merged.get(base);
    if (known?.services === services) return known.table;
    const table: Table = {
      ...base,
      chains: new Map([...base.chains, ...services.chains]),
      hooks: new Map([...base.hooks, ...SERVICE_HOOKS.map((hook) => [hook, SERVICES_CHAIN] as const)]),
    };
    this.merged.set(base, { services, table });
    return table;
  }

  /** The sets that services look up. */
  *uses(): Iterable<readonly [string, SetUse]> {
    for (const { uses } of this.chains.values()) yield* uses;
  }
}
