/** Services of the world as this node should forward them. */
import { formatAddress } from "../model/address.ts";
import type { Cidr, Family } from "../model/address.ts";
import { persistentMap } from "../model/persistent_map.ts";
import type { PersistentMap } from "../model/persistent_map.ts";
import { PROTOCOLS } from "../model/ports.ts";
import type { Problem } from "../model/resource.ts";
import type { ServiceFrontend, ServiceHealthCheck, ServiceState } from "../model/services.ts";
import type { ServiceBackendsObject, ServiceObject } from "../model/world.ts";
import { chooseBackends, countLocal, endpointsOf } from "./services_backends.ts";
import type { Backends, Here } from "./services_backends.ts";
import { Claims } from "./services_claims.ts";
import type { Claim } from "./services_claims.ts";
import { familiesOf, frontendsOf, policiesOf, sameFrontend } from "./services_frontends.ts";
import { BackendLists } from "./services_lists.ts";
import type { HeldList } from "./services_lists.ts";
import type { WorldStore } from "./store.ts";

/** core/v1 well-known label of nodes. */
const ZONE_LABEL = "topology.kubernetes.io/zone";
/** An external address is whatever somebody wrote into a service; it takes nobody's cluster address. */
const CLUSTER_RANK = 0, OTHER_RANK = 1;

export interface ServicesOptions {
  /** As `ServiceState` has them. */
  readonly nodePortAddresses: readonly Cidr[];
}

/** What one service comes to here. */
interface Entry {
  readonly frontends: ReadonlyMap<string, Claim<ServiceFrontend>>;
  readonly healthChecks: ReadonlyMap<string, Claim<ServiceHealthCheck>>;
  readonly lists: readonly HeldList[];
  readonly hasZoneHints: boolean;
}

export class Services {
  readonly #slices = new Map<string, Map<string, ServiceBackendsObject>>();
  readonly #entries = new Map<string, Entry>();
  readonly #lists = new BackendLists();
  readonly #frontends = new Claims<ServiceFrontend>();
  readonly #healthChecks = new Claims<ServiceHealthCheck>();
  /** Services that the node's zone may have a say in. */
  readonly #hinted = new Set<string>();
  /** Services with slices that have changed. */
  readonly #stale = new Set<string>();
  #zone: string | undefined;
  #state: ServiceState;
  /** Frontends put together since the beginning. */
  built = 0;

  constructor(readonly store: WorldStore, readonly node: string, { nodePortAddresses }: ServicesOptions) {
    this.#state = { frontends: persistentMap(), healthChecks: persistentMap(), nodePortAddresses, podNets: [] };
  }

  get state(): ServiceState {
    return this.#state;
  }

  /** How much it keeps. */
  get held(): number {
    return this.#slices.size + this.#entries.size + this.#lists.held + this.#frontends.held +
      this.#healthChecks.held + this.#hinted.size;
  }

  /** Replaces one slice; undefined = gone. Takes effect with the next `update`. */
  setSlice(id: string, before: ServiceBackendsObject | undefined, after: ServiceBackendsObject | undefined): void {
    if (before !== undefined) {
      this.#stale.add(before.service);
      const slices = this.#slices.get(before.service)!;
      slices.delete(id);
      if (slices.size === 0) this.#slices.delete(before.service);
    }
    if (after !== undefined) {
      this.#stale.add(after.service);
      const slices = this.#slices.get(after.service);
      if (slices === undefined) this.#slices.set(after.service, new Map([[id, after]]));
      else slices.set(id, after);
    }
  }

  /** `services`: ids of those that are other ones now. */
  update(services: Iterable<string>, podNets: readonly Cidr[]): ServiceState {
    for (const id of services) this.#stale.add(id);
    const zone = this.store.get("node", this.node)?.labels.get(ZONE_LABEL);
    if (zone !== this.#zone) {
      this.#zone = zone;
      for (const id of this.#hinted) this.#stale.add(id);
    }
    for (const id of this.#stale) this.#refresh(id);
    this.#stale.clear();
    this.#lists.sweep();
    const before = this.#state;
    const frontends = published(before.frontends, this.#frontends);
    const healthChecks = published(before.healthChecks, this.#healthChecks);
    const hasSameNets = sameNets(podNets, before.podNets);
    if (hasSameNets && frontends === before.frontends && healthChecks === before.healthChecks) return before;
    return this.#state = { ...before, frontends, healthChecks, podNets: hasSameNets ? before.podNets : podNets };
  }

  /** What two services want and only one can have, said of the other. */
  problems(): readonly Problem[] {
    const problems: Problem[] = [];
    const note = (loser: string, what: string, winner: string) => {
      const [namespace, name] = loser.split("/") as [string, string];
      problems.push({
        subject: { kind: "Service", namespace, name },
        path: "",
        message: `found ${what} to be of the service ${winner} already, wanted one that is nobody else's`,
        effect: "ignored",
      });
    };
    for (const [, [winner, ...losers]] of this.#frontends.contests()) {
      for (const { service, value } of losers) note(service, placeText(value), winner!.service);
    }
    for (const [port, [winner, ...losers]] of this.#healthChecks.contests()) {
      for (const { service } of losers) note(service, `health check node port ${port}`, winner!.service);
    }
    const text = ({ subject, message }: Problem) => `${subject.namespace}/${subject.name} ${message}`;
    return problems.sort((a, b) => text(a) < text(b) ? -1 : 1);
  }

  #refresh(id: string): void {
    const before = this.#entries.get(id);
    const service = this.store.get("service", id);
    // The new lists first: what both have stays.
    const after = service && this.#entryOf(service, before);
    this.#frontends.replace(before?.frontends, after?.frontends);
    this.#healthChecks.replace(before?.healthChecks, after?.healthChecks);
    for (const list of before?.lists ?? []) this.#lists.release(list);
    if (after === undefined) this.#entries.delete(id);
    else this.#entries.set(id, after);
    if (after?.hasZoneHints) this.#hinted.add(id);
    else this.#hinted.delete(id);
  }

  /** Undefined where nothing is forwarded. */
  #entryOf(service: ServiceObject, before: Entry | undefined): Entry | undefined {
    const families = familiesOf(service);
    if (families.length === 0) return undefined;
    const slices = [...this.#slices.get(service.id)?.values() ?? []];
    const frontends = new Map<string, Claim<ServiceFrontend>>();
    const held: HeldList[] = [];
    const policies = policiesOf(service);
    const acquire = (backends: Backends) => {
      const list = this.#lists.acquire(backends);
      held.push(list);
      return list.list;
    };
    const here: Here = { node: this.node, zone: this.#zone };
    let hasZoneHints = false;
    for (const family of families) {
      for (const port of service.ports) {
        const choice = chooseBackends(endpointsOf(slices, port, family, this.node), here);
        if (choice.hasZoneHints && policies.cluster) hasZoneHints = true;
        // One of them is always needed, and stands for the other where that is not.
        const local = policies.local ? acquire(choice.local) : undefined;
        const cluster = policies.cluster ? acquire(choice.cluster) : local!;
        for (const frontend of frontendsOf(service, port, family, { cluster, local: local ?? cluster })) {
          this.built++;
          if (!frontends.has(frontend.key)) frontends.set(frontend.key, claimOf(service, frontend, before));
        }
      }
    }
    return { frontends, healthChecks: this.#healthCheckOf(service, slices, before), lists: held, hasZoneHints };
  }

  #healthCheckOf(
    { id, healthCheckNodePort, createdMs = Infinity }: ServiceObject,
    slices: readonly ServiceBackendsObject[],
    before: Entry | undefined,
  ): ReadonlyMap<string, Claim<ServiceHealthCheck>> {
    if (healthCheckNodePort === undefined) return NO_HEALTH_CHECK;
    const key = String(healthCheckNodePort);
    const value: ServiceHealthCheck = {
      port: healthCheckNodePort,
      service: id,
      localEndpoints: countLocal(slices, this.node),
    };
    const old = before?.healthChecks.get(key);
    const same = old?.value.localEndpoints === value.localEndpoints;
    if (same && old.createdMs === createdMs) return before!.healthChecks;
    return new Map([[key, { service: id, rank: OTHER_RANK, createdMs, value: same ? old.value : value }]]);
  }
}

const sameNets = (a: readonly Cidr[], b: readonly Cidr[]): boolean =>
  a.length === b.length && a.every((net, i) => net === b[i]);

const NO_HEALTH_CHECK: ReadonlyMap<string, Claim<ServiceHealthCheck>> = new Map();

/** The claim of before, and its frontend, as far as they are the same. */
function claimOf(
  { id, createdMs = Infinity }: ServiceObject,
  frontend: ServiceFrontend,
  before: Entry | undefined,
): Claim<ServiceFrontend> {
  const old = before?.frontends.get(frontend.key);
  const same = sameFrontend(frontend, old?.value);
  if (same && old!.createdMs === createdMs) return old!;
  const rank = frontend.scope === "cluster" ? CLUSTER_RANK : OTHER_RANK;
  return { service: id, rank, createdMs, value: same ? old!.value : frontend };
}

function published<V>(before: PersistentMap<string, V>, claims: Claims<V>): PersistentMap<string, V> {
  const touched = claims.takeTouched();
  if (touched.size === 0) return before;
  const after = before.edit();
  for (const key of touched) {
    const winner = claims.winner(key);
    if (winner === undefined) after.delete(key);
    else after.set(key, winner.value);
  }
  return after.finish();
}

const PROTOCOL_NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(PROTOCOLS).map(([name, number]) => [number, name]),
);

const FAMILY_NAMES: Readonly<Record<Family, string>> = { 4: "IPv4", 6: "IPv6" };

function placeText({ address, family, protocol, port }: ServiceFrontend): string {
  const name = PROTOCOL_NAMES.get(protocol) ?? `protocol ${protocol}`;
  return address === undefined
    ? `node port ${name} ${port} (${FAMILY_NAMES[family]})`
    : `${formatAddress(address)} ${name} port ${port}`;
}
