import { addressFamily, cidrFamily, formatCidr } from "../model/address.ts";
import type { Cidr } from "../model/address.ts";
import type { DesiredRoute, Masquerade, RouteState } from "../model/desired.ts";
import { persistentMap } from "../model/persistent_map.ts";
import type { BlockObject } from "../model/world.ts";
import { SetMap } from "./set_map.ts";
import type { WorldStore } from "./store.ts";

/** Routes to the blocks of other nodes, and the blocks of this one. */
export class Routes {
  readonly #blocks = new Map<string, BlockObject>();
  readonly #byCidr = new SetMap<Cidr, string>();
  readonly #byNode = new SetMap<string, string>();
  readonly #local = new Set<Cidr>();
  #state: RouteState = { generation: 0, routes: persistentMap(), localBlocks: [] };

  constructor(readonly store: WorldStore, readonly node: string) {}

  get state(): RouteState {
    return this.#state;
  }

  /** How much it keeps. */
  get held(): number {
    return this.#blocks.size + this.#byCidr.size + this.#byNode.size + this.#local.size;
  }

  update(blocks: Iterable<string>, nodes: Iterable<string>): RouteState {
    const cidrs = new Set<Cidr>();
    for (const id of blocks) {
      const before = this.#blocks.get(id), after = this.store.get("block", id);
      if (before !== undefined) {
        cidrs.add(before.cidr);
        this.#byCidr.delete(before.cidr, id);
        this.#byNode.delete(before.node, id);
        this.#blocks.delete(id);
      }
      if (after !== undefined) {
        cidrs.add(after.cidr);
        this.#byCidr.add(after.cidr, id);
        this.#byNode.add(after.node, id);
        this.#blocks.set(id, after);
      }
    }
    for (const node of nodes) for (const id of this.#byNode.get(node)) cidrs.add(this.#blocks.get(id)!.cidr);
    const routes = this.#state.routes.edit();
    let localChanged = false;
    for (const cidr of cidrs) {
      const block = this.#holder(cidr);
      const local = block?.node === this.node;
      if (local !== this.#local.has(cidr)) {
        localChanged = true;
        if (local) this.#local.add(cidr);
        else this.#local.delete(cidr);
      }
      const key = formatCidr(cidr);
      const route = block && !local ? this.#routeTo(block) : undefined;
      if (route === undefined) routes.delete(key);
      else if (!sameRoute(route, routes.get(key))) routes.set(key, route);
    }
    const changed = routes.finish();
    if (changed !== this.#state.routes || localChanged) {
      const localBlocks = localChanged ? [...this.#local].sort(compareCidrs) : this.#state.localBlocks;
      this.#state = { generation: this.#state.generation + 1, routes: changed, localBlocks };
    }
    return this.#state;
  }

  /** Where several blocks claim one prefix, the one with the smallest id has it. */
  #holder(cidr: Cidr): BlockObject | undefined {
    let smallest: string | undefined;
    for (const id of this.#byCidr.get(cidr)) if (smallest === undefined || id < smallest) smallest = id;
    return smallest === undefined ? undefined : this.#blocks.get(smallest);
  }

  #routeTo(block: BlockObject): DesiredRoute | undefined {
    const family = cidrFamily(block.cidr);
    const via = this.store.get("node", block.node)?.addresses.find((address) => addressFamily(address) === family);
    return via && { destination: block.cidr, node: block.node, via };
  }
}

/** From the pools that ask for it, to anything outside every pool. */
export function masqueradeOf(store: WorldStore): Masquerade {
  const sources = new Set<Cidr>(), inside = new Set<Cidr>();
  for (const pool of store.all("pool")) {
    inside.add(pool.cidr);
    if (pool.natOutgoing) sources.add(pool.cidr);
  }
  return { sources: [...sources].sort(compareCidrs), inside: [...inside].sort(compareCidrs) };
}

export function sameMasquerade(a: Masquerade, b: Masquerade): boolean {
  const same = (a: readonly Cidr[], b: readonly Cidr[]) => a.length === b.length && a.every((cidr, i) => cidr === b[i]);
  return same(a.sources, b.sources) && same(a.inside, b.inside);
}

/** IPv4 before IPv6, then as the bytes are. */
const compareCidrs = (a: Cidr, b: Cidr): number => a.length - b.length || (a < b ? -1 : a > b ? 1 : 0);

const sameRoute = (a: DesiredRoute, b: DesiredRoute | undefined): boolean => a.node === b?.node && a.via === b.via;
