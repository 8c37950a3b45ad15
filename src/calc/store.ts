import type { NamedPort } from "../model/ports.ts";
import type { WorldChange, WorldObject } from "../model/world.ts";
import { LabelPool, measured } from "./own_labels.ts";
import type { OwnLabels } from "./own_labels.ts";

export type WorldKind = WorldObject["kind"];
export type ObjectOf<K extends WorldKind> = Extract<WorldObject, { kind: K }>;

interface Claim {
  readonly origin: string;
  readonly object: WorldObject;
}

/**
 * The world as it is: the objects of each origin, and for each (kind, id) the one that counts. Where several origins give
 * the same, the smallest origin text wins; where one origin does, its first.
 */
export class WorldStore {
  /** Nearly always one object; then it stands alone. */
  readonly #origins = new Map<string, Claim | readonly Claim[]>();
  /** Likewise. Several are in order of origin. */
  readonly #claims = new Map<WorldKind, Map<string, Claim | readonly Claim[]>>();
  readonly #names = new Pool<string>((name) => name);
  readonly #labels = new LabelPool();
  readonly #ports = new Pool<readonly NamedPort[]>((ports) => {
    let text = "";
    for (const { name, protocol, port } of ports) text += `${protocol} ${port} ${measured(name)}`;
    return text;
  });

  /** How much it keeps. */
  get held(): number {
    const objects = [...this.#claims.values()].reduce((sum, claims) => sum + claims.size, 0);
    return this.#origins.size + objects + this.#names.held + this.#labels.held + this.#ports.held;
  }

  get<K extends WorldKind>(kind: K, id: string): ObjectOf<K> | undefined {
    const claim = this.#claims.get(kind)?.get(id);
    return claim && winner(claim) as ObjectOf<K>;
  }

  /** What every origin gives, as it was told. */
  *changes(): IterableIterator<WorldChange> {
    for (const [origin, claims] of this.#origins) yield { origin, objects: listOf(claims).map(({ object }) => object) };
  }

  *all<K extends WorldKind>(kind: K): IterableIterator<ObjectOf<K>> {
    for (const claim of this.#claims.get(kind)?.values() ?? []) yield winner(claim) as ObjectOf<K>;
  }

  /** Calls `touched` for each (kind, id) whose object may be another one now. */
  replace({ origin, objects }: WorldChange, touched: (kind: WorldKind, id: string) => void): void {
    // The new ones first: what both have in common stays in the pools.
    const given = objects.length > 1 ? withoutRepeats(objects) : objects;
    const claims = given.map((object): Claim => ({ origin, object: this.#share(object) }));
    for (const claim of listOf(this.#origins.get(origin))) {
      this.#withdraw(claim);
      touched(claim.object.kind, claim.object.id);
    }
    for (const claim of claims) {
      this.#claim(claim);
      touched(claim.object.kind, claim.object.id);
    }
    if (claims.length === 0) this.#origins.delete(origin);
    else this.#origins.set(origin, claims.length === 1 ? claims[0]! : claims);
  }

  #claim(claim: Claim): void {
    const { kind, id } = claim.object;
    let claims = this.#claims.get(kind);
    if (claims === undefined) this.#claims.set(kind, claims = new Map());
    const there = claims.get(id);
    if (there === undefined) claims.set(id, claim);
    else claims.set(id, [...listOf(there), claim].sort((a, b) => a.origin < b.origin ? -1 : 1));
  }

  #withdraw(claim: Claim): void {
    const { object } = claim;
    const claims = this.#claims.get(object.kind)!;
    const others = listOf(claims.get(object.id)).filter((other) => other !== claim);
    if (others.length === 0) claims.delete(object.id);
    else claims.set(object.id, others.length === 1 ? others[0]! : others);
    this.#unshare(object);
  }

  /**
   * Pods of one template carry equal labels and ports, those of one place equal names: one copy of each is enough. Whatever
   * selectors look for by its labels has them from the pool.
   */
  #share(object: WorldObject): WorldObject {
    if (object.kind === "hostEndpoint") return { ...object, labels: this.#labels.acquire(object.labels) };
    if (object.kind === "networkSet") {
      return { ...object, labels: this.#labels.acquire(object.labels), nets: [...new Set(object.nets)] };
    }
    if (object.kind !== "pod" && object.kind !== "workload") return object;
    const { namespace, node, serviceAccount, labels, ports } = object;
    return {
      ...object,
      namespace: this.#names.acquire(namespace),
      node: node && this.#names.acquire(node),
      serviceAccount: serviceAccount && this.#names.acquire(serviceAccount),
      labels: this.#labels.acquire(labels),
      ports: this.#ports.acquire(ports),
    } as WorldObject;
  }

  #unshare(object: WorldObject): void {
    if (object.kind === "hostEndpoint" || object.kind === "networkSet") {
      this.#labels.release(object.labels as OwnLabels);
    }
    if (object.kind !== "pod" && object.kind !== "workload") return;
    const { namespace, node, serviceAccount, labels, ports } = object;
    this.#names.release(namespace);
    if (node) this.#names.release(node);
    if (serviceAccount) this.#names.release(serviceAccount);
    this.#labels.release(labels as OwnLabels);
    this.#ports.release(ports);
  }
}

const listOf = (claims: Claim | readonly Claim[] | undefined): readonly Claim[] =>
  claims === undefined ? [] : "object" in claims ? [claims] : claims;

const winner = (claims: Claim | readonly Claim[]): WorldObject => ("object" in claims ? claims : claims[0]!).object;

function withoutRepeats(objects: readonly WorldObject[]): readonly WorldObject[] {
  const names = new Set<string>();
  return objects.filter(({ kind, id }) => {
    const before = names.size;
    return names.add(`${kind}/${id}`).size > before;
  });
}

/** Values by content, held as long as somebody uses them. */
class Pool<T> {
  readonly #entries = new Map<string, { readonly value: T; uses: number }>();
  constructor(readonly keyOf: (value: T) => string) {}

  get held(): number {
    return this.#entries.size;
  }
  acquire(value: T): T {
    const key = this.keyOf(value);
    let entry = this.#entries.get(key);
    if (entry === undefined) this.#entries.set(key, entry = { value, uses: 0 });
    entry.uses++;
    return entry.value;
  }
  release(value: T): void {
    const key = this.keyOf(value);
    const entry = this.#entries.get(key)!;
    if (--entry.uses === 0) this.#entries.delete(key);
  }
}
