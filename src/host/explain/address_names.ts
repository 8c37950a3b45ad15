/** Who has an address: for lines that people read. Kept only while somebody asks. */
import type { Calc } from "../../calc/mod.ts";
import {
  type Address,
  addressFamily,
  type Cidr,
  cidrFamily,
  cidrPrefix,
  type Family,
  makeCidr,
} from "../../model/address.ts";
import type {
  InterfaceObject,
  NodeObject,
  PodObject,
  WorkloadObject,
  WorldChange,
  WorldObject,
} from "../../model/world.ts";
import type { Clock } from "../../sdk/plugin.ts";
import type { NameView } from "../logs/packet_log_view.ts";
import { createPause } from "../pause.ts";

/** The world is read again where the tables are found to be out of date, but no sooner than this after the last time. */
const READ_AGAIN_MS = 30_000;
/** Nobody asked for so long: the tables go. */
const IDLE_MS = 10 * 60_000;
/** Changes read between two looks at the time. */
const SLICE = 256;

export type NamedWorld = Pick<Calc, "object" | "world">;

export interface AddressNames {
  /** Undefined: names can be had. Before, when nobody has asked for long, nobody has a name. */
  ready(): Promise<void> | undefined;
  /** A pod or other workload, a node, or the network set with the longest prefix around it; undefined: nobody known. */
  nameOf(address: Address): NameView | undefined;
  /** The local workload behind a link. */
  behind(interfaceName: string): { readonly id: string; readonly name: NameView } | undefined;
  /** After every step of the calculation. */
  changed(changes: readonly WorldChange[]): void;
}

export function createAddressNames(world: NamedWorld, node: string, clock: Pick<Clock, "nowMs">): AddressNames {
  let tables: Tables | undefined;
  let reading: { readonly tables: Tables; readonly done: Promise<void> } | undefined;
  let askedMs = 0;

  /** In slices: of a large world it takes long. Until it is through, the tables before stand. */
  function read(): Promise<void> {
    if (reading !== undefined) return reading.done;
    const next = new Tables(clock.nowMs(), node);
    const done = (async () => {
      const pause = createPause();
      for (const [i, change] of [...world.world()].entries()) {
        if (i % SLICE === 0) await pause();
        next.note(change);
      }
      tables = next;
      reading = undefined;
    })();
    reading = { tables: next, done };
    return done;
  }

  function readAgainWhereDue(): void {
    if (tables !== undefined && clock.nowMs() - tables.readMs >= READ_AGAIN_MS) void read();
  }

  return {
    ready() {
      askedMs = clock.nowMs();
      if (tables?.setsChanged) readAgainWhereDue();
      return tables === undefined ? read() : undefined;
    },
    nameOf(address) {
      const holder = tables?.holders.get(address);
      const name = holder && nameOfHolder(world, node, holder, address);
      // Whoever has gone may be noted where somebody else is now.
      if (holder !== undefined && name === undefined) readAgainWhereDue();
      return name ?? tables?.setAround(address);
    },
    behind(interfaceName) {
      const id = tables?.interfaces.get(interfaceName);
      const workload = id === undefined ? undefined : world.object("workload", id);
      return workload?.interfaceName === interfaceName
        ? { id: workload.id, name: nameOfWorkload(workload) }
        : undefined;
    },
    changed(changes) {
      if (tables !== undefined && clock.nowMs() - askedMs > IDLE_MS) tables = undefined;
      for (const change of changes) {
        tables?.noteChange(change);
        reading?.tables.noteChange(change);
      }
    },
  };
}

type ObjectWithAddresses = WorkloadObject | PodObject | NodeObject | InterfaceObject;
type Holder = Pick<ObjectWithAddresses, "kind" | "id">;

/** Of two that have an address, the one with the better name counts. */
const RANK: Readonly<Record<Holder["kind"], number>> = { workload: 0, pod: 1, node: 2, interface: 3 };

/** Where everything was last seen; whether it is still there is for the world to say. */
class Tables {
  readonly holders = new Map<Address, Holder>();
  /** Workloads of this node by their links. */
  readonly interfaces = new Map<string, string>();
  /** Network sets have changed since. */
  setsChanged = false;
  readonly #sets = new Map<Cidr, NameView>();
  readonly #setOrigins = new Set<string>();
  /** Lengths of the prefixes in `#sets`. */
  readonly #lengths: Readonly<Record<Family, Set<number>>> = { 4: new Set(), 6: new Set() };

  constructor(readonly readMs: number, readonly node: string) {}

  note({ origin, objects }: WorldChange): void {
    for (const object of objects) {
      if (object.kind === "networkSet") {
        this.#setOrigins.add(origin);
        const name = object.namespace === undefined ? object.name : `${object.namespace}/${object.name}`;
        for (const net of object.nets) this.#noteNet(net, name);
      } else this.#noteHolder(object);
    }
  }

  noteChange({ origin, objects }: WorldChange): void {
    if (this.#setOrigins.has(origin) || objects.some(({ kind }) => kind === "networkSet")) this.setsChanged = true;
    for (const object of objects) this.#noteHolder(object);
  }

  #noteHolder(object: WorldObject): void {
    if (object.kind === "workload" && object.node === this.node) this.interfaces.set(object.interfaceName, object.id);
    if (object.kind in RANK) this.#hold(object as ObjectWithAddresses);
  }

  #hold({ kind, id, addresses }: ObjectWithAddresses): void {
    for (const address of addresses) {
      const before = this.holders.get(address);
      if (before === undefined || RANK[kind] <= RANK[before.kind]) this.holders.set(address, { kind, id });
    }
  }

  #noteNet(net: Cidr, name: string): void {
    // A set of everything says nothing about anybody.
    if (cidrPrefix(net) === 0) return;
    this.#lengths[cidrFamily(net)].add(cidrPrefix(net));
    const before = this.#sets.get(net);
    if (before === undefined || name < before.name) this.#sets.set(net, { kind: "networkSet", name });
  }

  setAround(address: Address): NameView | undefined {
    let longest = -1, found: NameView | undefined;
    for (const length of this.#lengths[addressFamily(address)]) {
      if (length <= longest) continue;
      const set = this.#sets.get(makeCidr(address, length));
      if (set !== undefined) [longest, found] = [length, set];
    }
    return found;
  }
}

/** Undefined: the address is not there any more. */
function nameOfHolder(world: NamedWorld, node: string, holder: Holder, address: Address): NameView | undefined {
  const object = world.object(holder.kind, holder.id);
  if (object === undefined || !object.addresses.includes(address)) return undefined;
  switch (object.kind) {
    case "workload":
      return nameOfWorkload(object);
    case "interface":
      return { kind: "node", name: node };
    default:
      return { kind: object.kind, name: object.id };
  }
}

/** Of a pod `namespace/name`, of anything else the name of its endpoint. */
const nameOfWorkload = ({ id, namespace, pod }: WorkloadObject): NameView =>
  pod === undefined
    ? { kind: "workload", name: `${namespace}/${id.slice(id.lastIndexOf("/") + 1)}` }
    : { kind: "pod", name: `${namespace}/${pod}` };
