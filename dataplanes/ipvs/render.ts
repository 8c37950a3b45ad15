/**
 * DesiredState → what IPVS, the service link and the gate should hold. Follows what changed since the last state: a service costs the
 * same work among ten and among ten thousand. Pure: what comes out depends on the state, only speed on what came before.
 */
import {
  type Address,
  addressFamily,
  type Cidr,
  cidrAddress,
  cidrFamily,
  cidrLast,
  type Family,
} from "../../src/model/address.ts";
import { cidrContains } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { BackendList, ServiceFrontend, ServiceState } from "../../src/model/services.ts";
import {
  ForwardMethod,
  type RealServer,
  ServiceFlag,
  type ServiceReference,
  type VirtualService,
} from "../../src/kernel/netlink/schema/ipvs.ts";
import type { ServicePlace } from "../../src/kernel/service_flows.ts";
import type { Verdict } from "../../src/kernel/netlink/schema/nftables_expression.ts";
import { Claims } from "./claims.ts";
import { type IpvsConfig, LIST_MARK_SHIFTS } from "./config.ts";
import {
  Chain,
  FIXED_SETS,
  fixedChains,
  fromNets,
  type GateChain,
  type GateSet,
  insideOrOutside,
  netsOf,
  onlyKnown,
  serveByMark,
} from "./gate.ts";

/**
 * Services of ours carry the third flag of schedulers, which means nothing to any of them: whoever lists IPVS sees it (`flag-3`), and after a
 * restart, with no memory, it says what is ours.
 */
export const OUR_FLAG = ServiceFlag.Scheduler3;

export interface WantedService {
  readonly service: VirtualService;
  readonly servers: ReadonlyMap<string, RealServer>;
}

/** `true`: in a set. A verdict: in a map. */
export type ElementValue = true | Verdict;

export const serviceKey = (which: ServiceReference): string =>
  "firewallMark" in which
    ? `mark ${which.family} ${which.firewallMark}`
    : frontendBytes(which.address, which.protocol, which.port);
export const serverKey = ({ address, port }: Pick<RealServer, "address" | "port">): string =>
  address + String.fromCharCode(port >> 8, port & 0xff);
const frontendBytes = (address: Address, protocol: number, port: number): string =>
  address + String.fromCharCode(protocol, port >> 8, port & 0xff);
/** As a concatenated key has it. */
const elementKey = (address: Address, protocol: number, port: number): string =>
  `${address}${String.fromCharCode(protocol)}\0\0\0${String.fromCharCode(port >> 8, port & 0xff)}\0\0`;

/** Of a concatenated key. */
function fromElementKey(key: string): { readonly address: Address; readonly protocol: number; readonly port: number } {
  const at = key.length - 8;
  return {
    address: key.slice(0, at) as Address,
    protocol: key.charCodeAt(at),
    port: key.charCodeAt(at + 4) << 8 | key.charCodeAt(at + 5),
  };
}

/** A set's name and an element's key, as one key. */
export const elementId = (set: string, key: string): string => `${set} ${key}`;
export function splitElementId(id: string): { readonly set: string; readonly key: string } {
  const at = id.indexOf(" ");
  return { set: id.slice(0, at), key: id.slice(at + 1) };
}

/** Where the frontends of these elements are. On an address of the node, `local`, it is a node port. */
export function servicePlaces(elements: Iterable<string>, local: readonly Address[]): readonly ServicePlace[] {
  const places: ServicePlace[] = [];
  for (const id of elements) {
    if (!/^services[46] /.test(id)) continue;
    const { address, ...rest } = fromElementKey(splitElementId(id).key);
    places.push({ family: addressFamily(address), ...rest, ...local.includes(address) ? {} : { address } });
  }
  return places;
}

const gotoVerdict = (chain: string): Verdict => ({ kind: "goto", chain });

const endOf = ({ empty }: BackendList): string => empty === "reject" ? Chain.Reject : Chain.Drop;
/** Of servers that all drain IPVS picks none, and is silent to some who ask: the gate answers for it. */
const takesNew = ({ backends }: BackendList): boolean => backends.some(({ draining }) => draining !== true);

/** What IPVS can balance. */
const PROTOCOLS_SERVED: readonly number[] = [PROTOCOLS.TCP, PROTOCOLS.UDP, PROTOCOLS.SCTP];

type Place = keyof Pick<Renderer, "services" | "addresses" | "chains" | "sets" | "elements">;

export class Renderer {
  /** By `serviceKey`. */
  readonly services = new Claims<WantedService>();
  /** On the service link. */
  readonly addresses = new Claims<true>();
  readonly chains = new Claims<GateChain>();
  readonly sets = new Claims<GateSet>();
  /** By `elementId`. */
  readonly elements = new Claims<ElementValue>();
  /** By frontend key: what cannot be had of it. */
  readonly problems = new Map<string, string>();

  /** What each owner has claimed, to be given back. */
  private readonly claimed = new Map<string, (readonly [Place, string])[]>();
  private state: ServiceState | undefined;
  private workloads: DesiredState["workloads"] = persistentMap();
  private local: readonly Address[] = [];
  private readonly serverLists = new Map<BackendList, ReadonlyMap<string, RealServer>>();
  private readonly marks = new Map<string, number>();
  private readonly markTaken = new Map<number, string>();

  constructor(private readonly config: IpvsConfig) {
    for (const [name, set] of FIXED_SETS) this.claim("fixed", "sets", name, set);
    for (const [name, chain] of fixedChains(config)) this.claim("fixed", "chains", name, chain);
  }

  /** `local`: addresses of the node's links, without loopback and the service link. */
  update({ services, workloads }: Pick<DesiredState, "services" | "workloads">, local: readonly Address[]): void {
    const before = this.state;
    const anew = before === undefined || services === undefined || services.podNets.join() !== before.podNets.join() ||
      services.nodePortAddresses.join() !== before.nodePortAddresses.join() || local.join() !== this.local.join();
    this.local = local;
    this.state = services;
    this.followWorkloads(workloads);
    if (anew) {
      if (before !== undefined) { for (const key of before.frontends.keys()) this.release(key); }
      this.release("inside");
      this.followInside(services?.podNets ?? []);
      // Sorted, so that marks are given out alike after a restart.
      const all = [...services?.frontends.values() ?? []].sort((a, b) => a.key < b.key ? -1 : 1);
      for (const frontend of all) this.put(frontend);
      return;
    }
    for (const { key, after } of services.frontends.changesSince(before.frontends)) {
      this.release(key);
      if (after !== undefined) this.put(after);
    }
  }

  private claim(owner: string, place: "services", key: string, value: WantedService): void;
  private claim(owner: string, place: "addresses", key: string, value: true): void;
  private claim(owner: string, place: "chains", key: string, value: GateChain): void;
  private claim(owner: string, place: "sets", key: string, value: GateSet): void;
  private claim(owner: string, place: "elements", key: string, value: ElementValue): void;
  private claim(owner: string, place: Place, key: string, value: any): void {
    (this[place] as Claims<unknown>).put(key, owner, value);
    const list = this.claimed.get(owner);
    if (list === undefined) this.claimed.set(owner, [[place, key]]);
    else list.push([place, key]);
  }

  private release(owner: string): void {
    for (const [place, key] of this.claimed.get(owner) ?? []) this[place].drop(key, owner);
    this.claimed.delete(owner);
    this.problems.delete(owner);
  }

  private followWorkloads(workloads: DesiredState["workloads"]): void {
    for (const { key, after } of workloads.changesSince(this.workloads)) {
      const owner = `workload ${key}`;
      this.release(owner);
      for (const address of after?.addresses ?? []) {
        this.claim(owner, "elements", elementId(`hairpin${addressFamily(address)}`, address + address), true);
      }
    }
    this.workloads = workloads;
  }

  private followInside(podNets: readonly Cidr[]): void {
    for (const net of outermost(podNets)) {
      this.claim("inside", "elements", elementId(`inside${cidrFamily(net)}`, rangeOf(net)), true);
    }
  }

  private put(frontend: ServiceFrontend): void {
    const { key, protocol, port, family } = frontend;
    if (!PROTOCOLS_SERVED.includes(protocol)) {
      this.problems.set(key, `${frontend.title}: found protocol ${protocol}, wanted TCP, UDP or SCTP`);
      return;
    }
    const entrance = this.entrance(frontend);
    const addresses = frontend.address === undefined ? this.nodeAddresses(family) : [frontend.address];
    const hasServers = frontend.backends.backends.length > 0;
    for (const address of addresses) {
      const element = elementKey(address, protocol, port);
      this.claim(key, "elements", elementId(`services${family}`, element), gotoVerdict(entrance));
      const closed = this.closedToNode(frontend);
      if (closed !== undefined) {
        this.claim(key, "elements", elementId(`closed${family}`, element), gotoVerdict(closed));
      }
      if (hasServers) {
        const service: VirtualService = { family, protocol, address, port, ...this.manner(frontend) };
        const servers = this.servers(frontend.backends);
        this.claim(key, "services", frontendBytes(address, protocol, port), { service, servers });
      }
      // An address that the node has anyway stays where it is.
      if (frontend.address !== undefined && !this.local.includes(address)) {
        this.claim(key, "addresses", address, true);
        this.claim(key, "elements", elementId(`addresses${family}`, address), true);
      }
    }
  }

  /**
   * Where packets of the node's own processes go that IPVS would take as they leave, before anything else judges them. Their source is
   * the service's own address by then: whether they may come is a question of the addresses that the node has otherwise.
   */
  private closedToNode({ key, backends, sources, family }: ServiceFrontend): string | undefined {
    if (backends.backends.length === 0) return endOf(backends);
    if (sources !== undefined) {
      const ours = this.local.filter((address) => addressFamily(address) === family);
      if (!sources.some((net) => ours.some((address) => cidrContains(net, address)))) return Chain.Drop;
    }
    return takesNew(backends) ? undefined : this.chain(key, "rest", onlyKnown(undefined, endOf(backends)));
  }

  private manner(
    { affinitySeconds }: ServiceFrontend,
  ): Pick<VirtualService, "scheduler" | "flags" | "persistenceSeconds"> {
    return {
      scheduler: this.config.scheduler,
      flags: OUR_FLAG,
      ...affinitySeconds === undefined ? {} : { persistenceSeconds: affinitySeconds },
    };
  }

  private nodeAddresses(family: Family): readonly Address[] {
    const nets = this.state!.nodePortAddresses;
    const ours = this.local.filter((address) => addressFamily(address) === family);
    return nets.length === 0 ? ours : ours.filter((address) => nets.some((net) => cidrContains(net, address)));
  }

  /** Frontends of one service share their list, and so do what is made of it. */
  private servers(list: BackendList): ReadonlyMap<string, RealServer> {
    const known = this.serverLists.get(list);
    if (known !== undefined) return known;
    const servers = new Map(list.backends.map(({ address, port, draining }) => {
      const server: RealServer = { address, port, forwardMethod: ForwardMethod.Masquerade, weight: draining ? 0 : 1 };
      return [serverKey(server), server] as const;
    }));
    // Lists of states that are no more are let go of in one go; those in use are cheap to make again.
    if (this.serverLists.size > 4 * (this.state?.frontends.size ?? 0) + 1_024) this.serverLists.clear();
    this.serverLists.set(list, servers);
    return servers;
  }

  // ------------------------------------------------------------------------------------------------------------- entrance

  /** The chain that packets to the frontend go to. */
  private entrance(frontend: ServiceFrontend): string {
    const { family, backends, outside, masqueradeOutside, sources } = frontend;
    const serve = (list: BackendList, chain: string): string => {
      if (list.backends.length === 0) return endOf(list);
      return takesNew(list) ? chain : this.chain(frontend.key, "rest", onlyKnown(chain, endOf(list)));
    };
    const inner = serve(backends, Chain.Serve);
    const outer = outside !== undefined && outside !== backends
      ? serve(outside, this.outside(frontend, outside))
      : serve(backends, masqueradeOutside ? Chain.Masquerade : Chain.Serve);
    const served = outer === inner ? inner : this.chain(frontend.key, "way", insideOrOutside(family, inner, outer));
    if (sources === undefined) return served;
    const nets = outermost(sources.filter((net) => cidrFamily(net) === family));
    if (nets.length === 0) return this.chain(frontend.key, "from", fromNets(family, undefined, served));
    const name = `nets${family}-${digest(nets.join())}`;
    this.claim(frontend.key, "sets", name, netsOf(family));
    for (const net of nets) this.claim(frontend.key, "elements", elementId(name, rangeOf(net)), true);
    return this.chain(frontend.key, "from", fromNets(family, name, served));
  }

  /** Servers for traffic from outside alone are a service of their own, found by a mark. */
  private outside(frontend: ServiceFrontend, list: BackendList): string {
    if (list.backends.length === 0) return endOf(list);
    const { family, masqueradeOutside, affinitySeconds } = frontend;
    const mark = this.listMark(`${family} ${list.id} ${masqueradeOutside} ${affinitySeconds ?? ""}`, masqueradeOutside);
    if (mark === undefined) {
      this.problems.set(frontend.key, `${frontend.title}: no mark is left for its servers for traffic from outside`);
      return Chain.Drop;
    }
    const service: VirtualService = { family, firewallMark: mark, ...this.manner(frontend) };
    this.claim(frontend.key, "services", serviceKey(service), { service, servers: this.servers(list) });
    return this.chain(frontend.key, "list", serveByMark(this.config, mark));
  }

  /** By content, so that it is the same after a restart; where two contents want one, the later takes the next. */
  private listMark(content: string, masquerade: boolean): number | undefined {
    const known = this.marks.get(content);
    if (known !== undefined) return known;
    const count = 2 ** LIST_MARK_SHIFTS.length - 1;
    const text = digest(content);
    let index = 0;
    for (let i = 0; i < 6; i++) index = (index * 131 + text.charCodeAt(i)) % count;
    for (let tried = 0; tried < count; tried++, index = (index + 1) % count) {
      const mark = this.markOf(index + 1, masquerade);
      if (this.markTaken.has(mark) && this.isInUse(mark)) continue;
      const former = this.markTaken.get(mark);
      if (former !== undefined) this.marks.delete(former);
      this.marks.set(content, mark);
      this.markTaken.set(mark, content);
      return mark;
    }
    return undefined;
  }

  private isInUse(mark: number): boolean {
    return ([4, 6] as const).some((family) =>
      this.services.get(serviceKey({ family, firewallMark: mark })) !== undefined
    );
  }

  private markOf(index: number, masquerade: boolean): number {
    const { forwardMark, masqueradeMark } = this.config;
    let mark = forwardMark | (masquerade ? masqueradeMark : 0);
    LIST_MARK_SHIFTS.forEach((shift, i) => mark |= (index >> i & 1) << shift);
    return mark >>> 0;
  }

  private chain(owner: string, kind: string, chain: GateChain): string {
    const name = `${kind}-${digest(JSON.stringify(chain))}`;
    this.claim(owner, "chains", name, chain);
    return name;
  }
}

/** First and last address after each other: how the gate has ranges. */
const rangeOf = (net: Cidr): string => cidrAddress(net) + cidrLast(net);

/** Those that no other one covers, sorted: sets of ranges refuse overlaps. */
function outermost(nets: readonly Cidr[]): readonly Cidr[] {
  const sorted = [...new Set(nets)].sort((a, b) => a.length - b.length || (rangeOf(a) < rangeOf(b) ? -1 : 1));
  return sorted.filter((net) =>
    !sorted.some((other) =>
      other !== net && cidrContains(other, cidrAddress(net)) &&
      other.charCodeAt(other.length - 1) < net.charCodeAt(net.length - 1)
    )
  );
}
