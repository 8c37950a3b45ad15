import { addressFamily, type Family } from "../../../src/model/address.ts";
import { isErrno } from "../../../src/kernel/errors.ts";
import { getAddresses, parseAddressMessage } from "../../../src/kernel/netlink/schema/rt_addr.ts";
import { getLink, getLinks, type Link, OperState, parseLink } from "../../../src/kernel/netlink/schema/rt_link.ts";
import { getNeighbours, parseNeighbour } from "../../../src/kernel/netlink/schema/rt_neigh.ts";
import {
  getRoutes,
  lookUpRoute,
  parseRoute,
  RouteTable,
  RouteType,
} from "../../../src/kernel/netlink/schema/rt_route.ts";
import { findLink, linkByName } from "../../../src/kernel/rtnetlink.ts";
import { ManxError } from "../../../src/sdk/errors.ts";
import type { NetlinkMessage, NetlinkSocket, NetworkNamespace } from "../../../src/sdk/kernel_door.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import type { Attachment, Observed, PodWiring } from "../../../src/sdk/wiring.ts";
import {
  DOOMED_GROUP,
  doomLink,
  hostMessages,
  isHostInterface,
  linkOf,
  LIVE_GROUP,
  madeOf,
  makeLink,
  type Mode,
  observedOf,
  type Plan,
  planAttachment,
  podMessages,
  type Side,
  surplusOfHost,
  surplusOfPod,
} from "./plan.ts";
import { Reaper } from "./reaper.ts";

const NETLINK_ROUTE = 0;
const FALLBACK_MTU_BYTES = 1500;
/**
 * A carrier is noticed late: kernels from 6.8 on look when `getLink` asks, earlier ones at worst after a second. And an IPv6
 * address without duplicate address detection gets its local route from a work queue (addrconf_dad_work).
 */
const SETTLE_DEADLINE_MS = 2_000;
const SETTLE_LOOK_MS = 1;
const IDLE_MAKERS_MAX = 8;

/** An attachment whose link is being made, or is. */
interface Begun {
  readonly namespace: NetworkNamespace;
  readonly made: Promise<Link>;
}

/** Wires pods by veth pairs and routes. Opens what it keeps open; dispose of it to let go, which changes nothing in the kernel. */
export class VethWiring implements PodWiring {
  readonly #host: Host;
  readonly #links: NetlinkSocket;
  readonly #reaper: Reaper;
  readonly #mtu: number;
  #ipv6Forwards = false;
  /** Links that `begin` is making or has made, by the name of their host side. */
  readonly #begun = new Map<string, Begun>();
  /** Sockets for making links behind; one is in use by one at a time. */
  readonly #idleMakers: NetlinkSocket[] = [];
  #isClosed = false;

  /** @throws {KernelError} where the namespace cannot be made to forward */
  constructor(config: { readonly mtu?: number }, host: Host) {
    using undo = new DisposableStack();
    this.#host = host;
    this.#links = undo.use(host.kernel.netlink(NETLINK_ROUTE));
    this.#reaper = new Reaper(undo.use(host.kernel.netlink(NETLINK_ROUTE)), host.clock, host.log);
    host.kernel.setSysctl("ipv4/ip_forward", "1");
    this.#mtu = config.mtu ?? this.#uplinkMtu();
    undo.move();
  }

  async apply(desired: Attachment, ifExists: "fail" | "adopt", signal?: AbortSignal): Promise<Observed> {
    const plan = planAttachment(desired, this.#mtu);
    if (plan.families.includes(6)) this.#forwardIpv6(plan);
    const begun = this.#takeBegun(plan.hostInterface);
    using namespace = begun?.namespace ?? this.#openNamespace(plan);
    for (let attempt = 1;; attempt++) {
      if (attempt > 1) signal?.throwIfAborted();
      const made = await this.#make(plan, namespace, signal, attempt === 1 ? begun?.made : undefined);
      if (made === "made") return madeOf(plan);
      const found = linkByName(this.#links, plan.hostInterface);
      if (found !== undefined && found.group === DOOMED_GROUP) this.#reaper.add();
      else if (found !== undefined && ifExists === "adopt") {
        if (await this.#adopt(plan, namespace, found)) return madeOf(plan);
      }
      // What stands in the way may be a removed pod's that is on its way out, or one that could not be adopted.
      if (!this.#reaper.pending || attempt > 1) throw inTheWay(plan, found);
      await this.#reaper.flush();
    }
  }

  begin(desired: Omit<Attachment, "addresses">): void {
    const { hostInterface } = desired;
    if (!isHostInterface(hostInterface) || this.#begun.has(hostInterface)) return;
    try {
      const namespace = this.#openNamespace(desired);
      const made = this.#makeBehind(desired, namespace);
      // Nobody may be waiting yet.
      made.catch(() => {});
      this.#begun.set(hostInterface, { namespace, made });
    } catch {
      // `apply` will meet the same, and say so.
    }
  }

  /** Makes the link on another thread: that takes the kernel longer than all the rest of an attachment. */
  async #makeBehind(desired: Omit<Attachment, "addresses">, namespace: NetworkNamespace): Promise<Link> {
    const operation = `attach ${desired.interfaceName} of ${desired.netns}: make link ${desired.hostInterface}`;
    const socket = this.#idleMakers.pop() ?? this.#host.kernel.netlink(NETLINK_ROUTE);
    try {
      const [answer] = await socket.requestBehind(operation, [
        makeLink(linkOf(desired, this.#mtu), namespace.fd),
        getLink({ name: desired.hostInterface }),
      ]);
      return parseLink(answer!);
    } finally {
      if (this.#isClosed || this.#idleMakers.length >= IDLE_MAKERS_MAX) socket[Symbol.dispose]();
      else this.#idleMakers.push(socket);
    }
  }

  #makeAtOnce(plan: Plan, namespace: NetworkNamespace): Link {
    const [answer] = this.#links.request(`attach ${plan.title}: make link ${plan.hostInterface}`, [
      makeLink(plan, namespace.fd),
      getLink({ name: plan.hostInterface }),
    ]);
    return parseLink(answer!);
  }

  /** Forgets that the attachment was begun, and hands over what there is of it. */
  #takeBegun(hostInterface: string): Begun | undefined {
    const begun = this.#begun.get(hostInterface);
    this.#begun.delete(hostInterface);
    return begun;
  }

  async observe(desired: Attachment): Promise<Observed | undefined> {
    const plan = planAttachment(desired, this.#mtu);
    const link = linkByName(this.#links, plan.hostInterface);
    if (link === undefined || link.group === DOOMED_GROUP) return undefined;
    const host = look(this.#links, link);
    using stack = new DisposableStack();
    try {
      const namespace = stack.use(this.#host.kernel.openNamespace(plan.netns));
      const socket = stack.use(this.#host.kernel.netlink(NETLINK_ROUTE, { namespace }));
      const inside = linkByName(socket, plan.interfaceName);
      const pod = inside !== undefined && arePeers(link, inside) ? look(socket, inside) : undefined;
      return observedOf(plan, host, pod);
    } catch (error) {
      if (!isErrno(error, "ENOENT", "EINVAL")) throw error;
      return observedOf(plan, host, undefined);
    }
  }

  async remove(hostInterface: string): Promise<void> {
    if (!isHostInterface(hostInterface)) {
      throw new ManxError("refused", `remove link ${hostInterface}: wanted a name of ours, mx and 11 hex digits`);
    }
    // A link that is being made would outlive its removal; one that could not be made needs none.
    const begun = this.#takeBegun(hostInterface);
    if (begun !== undefined) {
      await begun.made.catch(() => {});
      begun.namespace[Symbol.dispose]();
    }
    if (this.#doom(hostInterface)) this.#reaper.add();
  }

  async collect(live: ReadonlySet<string>): Promise<readonly string[]> {
    const links = this.#links.dump("list links of pods", getLinks({ kind: "veth" })).map(parseLink);
    // Doomed ones that we know of are on their way; others a killed daemon left.
    const isStale = ({ name, group }: Link) =>
      group === DOOMED_GROUP ? !this.#reaper.pending : group === LIVE_GROUP && !live.has(name);
    const stale = links.filter((link) => link.kind === "veth" && isHostInterface(link.name) && isStale(link));
    for (const { name } of stale) if (this.#doom(name)) this.#reaper.add();
    return stale.map(({ name }) => name).sort();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    for (const { namespace, made } of this.#begun.values()) {
      await made.catch(() => {});
      namespace[Symbol.dispose]();
    }
    for (const socket of this.#idleMakers.splice(0)) socket[Symbol.dispose]();
    try {
      await this.#reaper[Symbol.asyncDispose]();
    } finally {
      this.#links[Symbol.dispose]();
    }
  }

  /** Resolves when the links of removed pods are gone: nobody needs to wait for that but those who count links. */
  flush(): Promise<void> {
    return this.#reaper.flush();
  }

  /** `exists`: one of the two names is taken, and nothing was made. */
  async #make(
    plan: Plan,
    namespace: NetworkNamespace,
    signal: AbortSignal | undefined,
    begun: Promise<Link> | undefined,
  ): Promise<"made" | "exists"> {
    await using undo = new AsyncDisposableStack();
    // Before the attempt: an answer may be lost, and then the link is there all the same.
    undo.defer(() => this.#bury(plan.hostInterface));
    let link: Link;
    try {
      link = await (begun ?? this.#makeAtOnce(plan, namespace));
      signal?.throwIfAborted();
    } catch (error) {
      if (!isErrno(error, "EEXIST")) throw error;
      undo.move();
      return "exists";
    }
    if (link.linkNamespaceId === undefined || link.peerIndex === undefined) {
      throw new ManxError(
        "refused",
        `attach ${plan.title}: found the namespace of the host itself, wanted the pod's own`,
      );
    }
    using pod = this.#host.kernel.netlink(NETLINK_ROUTE, { namespace });
    this.#wirePod(plan, namespace, pod, link.peerIndex, "create");
    this.#wireHost(plan, link.index, "create");
    await this.#settle(plan, pod, link.peerIndex, signal);
    undo.move();
    return "made";
  }

  /** Brings a link of ours to the plan; false where it leads elsewhere and was doomed instead. */
  async #adopt(plan: Plan, namespace: NetworkNamespace, link: Link): Promise<boolean> {
    if (link.group !== LIVE_GROUP || link.kind !== "veth") return false;
    using pod = this.#host.kernel.netlink(NETLINK_ROUTE, { namespace });
    const inside = linkByName(pod, plan.interfaceName);
    if (inside === undefined || !arePeers(link, inside)) {
      if (this.#doom(plan.hostInterface)) this.#reaper.add();
      return false;
    }
    this.#wirePod(plan, namespace, pod, inside.index, "adopt");
    this.#wireHost(plan, link.index, "adopt");
    const surplus = [
      [this.#links, surplusOfHost(plan, look(this.#links, link))],
      [pod, surplusOfPod(plan, look(pod, inside))],
    ] as const;
    for (const [socket, messages] of surplus) {
      if (messages.length > 0) socket.request(`adopt ${plan.title}: take away what it had before`, messages);
    }
    await this.#settle(plan, pod, inside.index);
    await this.#settle(plan, this.#links, link.index);
    return true;
  }

  #wireHost(plan: Plan, index: number, mode: Mode): void {
    const settings = `ipv6/conf/${plan.hostInterface}`;
    if (plan.families.includes(6)) this.#host.kernel.setSysctl(`${settings}/disable_ipv6`, "0");
    try {
      // A pod is no router, whatever the host's default says.
      this.#host.kernel.setSysctl(`${settings}/accept_ra`, "0");
    } catch (error) {
      // A kernel without IPv6 has nothing to guard.
      if (!isErrno(error, "ENOENT")) throw error;
    }
    const operation = `attach ${plan.title}: routes and neighbours of ${plan.hostInterface}`;
    this.#links.request(operation, hostMessages(plan, index, mode));
  }

  #wirePod(plan: Plan, namespace: NetworkNamespace, pod: NetlinkSocket, index: number, mode: Mode): void {
    if (plan.families.includes(6)) {
      const { kernel } = this.#host;
      // Runtimes like to switch it off for namespaces that have no IPv6 yet.
      kernel.inNamespace(namespace, () => kernel.setSysctl(`ipv6/conf/${plan.interfaceName}/disable_ipv6`, "0"));
    }
    pod.request(`attach ${plan.title}: addresses and routes`, podMessages(plan, index, mode));
  }

  /** Until packets pass: the kernel finishes carriers and IPv6 addresses in work of its own. */
  async #settle(plan: Plan, socket: NetlinkSocket, index: number, signal?: AbortSignal): Promise<void> {
    const { clock } = this.#host;
    const deadlineMs = clock.nowMs() + SETTLE_DEADLINE_MS;
    // The way to an address of one's own leads nowhere else, once it is in use; IPv4 ones are from the start.
    const own = socket === this.#links ? [] : plan.addresses.filter((address) => addressFamily(address) === 6);
    for (;;) {
      const [link, ...routes] = this.#tryRequest(socket, `attach ${plan.title}: see whether it is ready`, [
        getLink({ index }),
        ...own.map((address) => lookUpRoute(address)),
      ]);
      const operState = link === undefined ? OperState.Unknown : parseLink(link).operState;
      const inUse = routes.length === own.length && routes.every((route) => parseRoute(route).type === RouteType.Local);
      if (operState === OperState.Up && inUse) return;
      if (clock.nowMs() > deadlineMs) {
        const found = operState === OperState.Up
          ? "an IPv6 address not in use"
          : `operational state ${operState} of its link`;
        throw new ManxError("kernel", `attach ${plan.title}: found ${found}, wanted it to pass packets`);
      }
      await clock.sleep(SETTLE_LOOK_MS, signal ?? new AbortController().signal);
    }
  }

  /** Nothing where the kernel knows no way to one of the addresses looked up: an address that is not in use yet. */
  #tryRequest(
    socket: NetlinkSocket,
    operation: string,
    messages: readonly NetlinkMessage[],
  ): readonly NetlinkMessage[] {
    try {
      return socket.request(operation, messages);
    } catch (error) {
      if (isErrno(error, "ENETUNREACH", "EHOSTUNREACH", "EACCES", "EINVAL")) return [];
      throw error;
    }
  }

  /** False where there is no such link. */
  #doom(hostInterface: string): boolean {
    try {
      this.#links.request(`take down link ${hostInterface}`, [doomLink(hostInterface)]);
      return true;
    } catch (error) {
      if (isErrno(error, "ENODEV")) return false;
      throw error;
    }
  }

  async #bury(hostInterface: string): Promise<void> {
    if (!this.#doom(hostInterface)) return;
    this.#reaper.add();
    await this.#reaper.flush();
  }

  #openNamespace(plan: Pick<Attachment, "interfaceName" | "netns">): NetworkNamespace {
    try {
      return this.#host.kernel.openNamespace(plan.netns);
    } catch (cause) {
      if (!isErrno(cause, "ENOENT", "EINVAL", "ENOTDIR")) throw cause;
      const found = cause.errnoName === "EINVAL" ? "something else" : "nothing";
      throw new ManxError(
        "unknown-container",
        `attach ${plan.interfaceName}: found ${found} at ${plan.netns}, wanted a network namespace`,
        { cause },
      );
    }
  }

  /** Not before a pod wants it: a node that forwards IPv6 no longer learns its own routes from router advertisements. */
  #forwardIpv6(plan: Plan): void {
    if (this.#ipv6Forwards) return;
    try {
      this.#host.kernel.setSysctl("ipv6/conf/all/forwarding", "1");
    } catch (cause) {
      if (!isErrno(cause, "ENOENT")) throw cause;
      const wanted = "wanted IPv6 for the pod's address";
      throw new ManxError("refused", `attach ${plan.title}: found a kernel without IPv6, ${wanted}`, { cause });
    }
    this.#ipv6Forwards = true;
  }

  /** The least of the default routes' links. */
  #uplinkMtu(): number {
    const outputs = new Set<number>();
    for (const family of [4, 6] as Family[]) {
      // Not by table: the kernel has an error for a main table that holds nothing yet.
      for (const message of this.#links.dump(`list IPv${family} routes`, getRoutes({ family }))) {
        const route = parseRoute(message);
        if (route.table !== RouteTable.Main || route.type !== RouteType.Unicast) continue;
        if (route.destination.charCodeAt(route.destination.length - 1) !== 0) continue;
        for (const { outputIndex } of [route, ...route.nextHops ?? []]) if (outputIndex) outputs.add(outputIndex);
      }
    }
    const mtus = [...outputs].flatMap((index) => findLink(this.#links, { index })?.mtu ?? []);
    return mtus.length === 0 ? FALLBACK_MTU_BYTES : Math.min(...mtus);
  }
}

/** Each names the other's index, and both say that the other is elsewhere. */
const arePeers = (a: Link, b: Link): boolean =>
  a.peerIndex === b.index && b.peerIndex === a.index && a.linkNamespaceId !== undefined &&
  b.linkNamespaceId !== undefined;

/** @throws {KernelError} */
function look(socket: NetlinkSocket, { index, name }: Link): Side {
  const own = <T extends { readonly index: number }>(items: readonly T[]) =>
    items.filter((item) => item.index === index);
  const operation = `look at ${name}`;
  return {
    link: parseLink(socket.request(operation, [getLink({ index })])[0]!),
    addresses: own(socket.dump(operation, getAddresses({ index })).map(parseAddressMessage)),
    routes: socket.dump(operation, getRoutes({ outputIndex: index })).map(parseRoute)
      .filter((route) => route.outputIndex === index && route.table === RouteTable.Main),
    neighbours: own(socket.dump(operation, getNeighbours({ index })).map(parseNeighbour)),
  };
}

function inTheWay(plan: Plan, hostLink: Link | undefined): ManxError {
  const found = hostLink === undefined
    ? `an interface ${plan.interfaceName} in ${plan.netns}`
    : `a link ${plan.hostInterface} on the host`;
  return new ManxError("exists", `attach ${plan.title}: found ${found} already, wanted the name free`);
}
