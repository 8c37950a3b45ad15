/** The IPVS dataplane: services by the kernel's virtual servers. Policy is another dataplane's. */
import { formatAddress } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import type { Aspect, Dataplane, Report } from "../../src/sdk/dataplane.ts";
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { explainError, UnavailableError } from "../../src/sdk/errors.ts";
import { definePlugin, type Host } from "../../src/sdk/plugin.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import { ServiceFlows } from "../../src/kernel/service_flows.ts";
import { findFamily, NETLINK_GENERIC } from "../../src/kernel/netlink/generic.ts";
import { IPVS_FAMILY } from "../../src/kernel/netlink/schema/ipvs.ts";
import { GROUP_NFTABLES, NETLINK_NETFILTER, tableOf } from "../../src/kernel/netlink/schema/nftables.ts";
import {
  parseAddressMessage,
  RTM_DELADDR,
  RTM_NEWADDR,
  RTNLGRP_IPV4_IFADDR,
  RTNLGRP_IPV6_IFADDR,
} from "../../src/kernel/netlink/schema/rt_addr.ts";
import { linkIndexOf, parseLink, RTM_NEWLINK, RTNLGRP_LINK } from "../../src/kernel/netlink/schema/rt_link.ts";
import { type IpvsConfig, parseConfig } from "./config.ts";
import { differences } from "./differences.ts";
import { GateTable, TABLE } from "./gate_table.ts";
import { Renderer, servicePlaces } from "./render.ts";
import { isServing, SERVICE_LINK, ServiceLinks } from "./service_links.ts";
import { Turns } from "./turns.ts";
import { VirtualServers, type WriteReport } from "./virtual_servers.ts";

const NETLINK_ROUTE = 0;
/** How often retired servers are looked at. */
const DRAIN_LOOK_MS = 1_000;
/** Foreign changes come in bursts: wait this long for the rest before the alarm. */
const DRIFT_SETTLE_MS = 20;

/** `conntrack`: policy, masquerading and established flows need one. `expire_…`: clients of a server that is gone get another, at once. */
const IPVS_SETTINGS = {
  "ipv4/vs/conntrack": "1",
  "ipv4/vs/expire_nodest_conn": "1",
  "ipv4/vs/expire_quiescent_template": "1",
  "ipv4/ip_forward": "1",
  // Every node has the addresses of services, and none may answer for them to its neighbours.
  "ipv4/conf/all/arp_ignore": "1",
  "ipv4/conf/all/arp_announce": "2",
} as const;

export default definePlugin({
  api: "1.0",
  kind: "dataplane",
  name: "ipvs",
  parseConfig,
  async open(config: IpvsConfig, host: Host): Promise<Dataplane> {
    using stack = new DisposableStack();
    const generic = stack.use(host.kernel.netlink(NETLINK_GENERIC));
    const netfilter = stack.use(host.kernel.netlink(NETLINK_NETFILTER));
    const route = stack.use(host.kernel.netlink(NETLINK_ROUTE));
    return new IpvsDataplane(config, host, generic, netfilter, route, stack.move());
  },
});

/** What is written to an IPVS that is not there. */
const NO_IPVS: WriteReport = {
  messages: 0,
  problems: [
    "probe IPVS: found no generic netlink family IPVS, wanted a kernel with the module ip_vs",
  ],
};

class IpvsDataplane implements Dataplane {
  readonly capabilities = {
    aspects: new Set<Aspect>(["services"]),
    families: new Set([4, 6] as const),
    atomicity: "object" as const,
  };
  readonly forwardMark: number;
  /** Undefined: the kernel had no IPVS when it was last asked. */
  private virtual: VirtualServers | undefined;
  private readonly gate: GateTable;
  private readonly links: ServiceLinks;
  private readonly flows: ServiceFlows;
  private renderer: Renderer;
  private desired: DesiredState | undefined;
  /** What the kernel holds is known. */
  private isKnown = false;
  private readonly closing = new AbortController();
  private isDraining = false;
  private drained: Promise<void> = Promise.resolve();

  constructor(
    private readonly config: IpvsConfig,
    private readonly host: Host,
    private readonly generic: NetlinkSocket,
    private readonly netfilter: NetlinkSocket,
    private readonly route: NetlinkSocket,
    private readonly stack: DisposableStack,
  ) {
    this.forwardMark = config.forwardMark;
    this.gate = new GateTable(netfilter);
    this.links = new ServiceLinks(route);
    this.flows = new ServiceFlows(host);
    this.renderer = new Renderer(config);
  }

  async apply(desired: DesiredState): Promise<Report> {
    this.desired = desired;
    return this.bring(desired);
  }

  async resync(): Promise<Report> {
    this.isKnown = false;
    if (this.desired === undefined) return { generation: 0, converged: true, messages: 0, problems: [] };
    return this.bring(this.desired);
  }

  private async bring(desired: DesiredState): Promise<Report> {
    // Services were switched off, or never on: whoever else does them has the field.
    if (desired.services === undefined) return { ...this.clear(), generation: desired.generation };
    try {
      const { messages, problems } = await this.write(desired);
      const converged = problems.length === 0;
      return { generation: desired.generation, converged, messages, problems: [...problems, ...this.flows.problems()] };
    } catch (error) {
      // Half of it may be there: look at the kernel, and begin from what is wanted.
      this.isKnown = false;
      this.virtual = undefined;
      this.renderer = new Renderer(this.config);
      const problem = this.explain(error);
      this.host.log.error("services by IPVS failed", { generation: desired.generation, error: problem });
      return { generation: desired.generation, converged: false, messages: 0, problems: [problem] };
    }
  }

  private explain(error: unknown): string {
    if (isErrno(error, "EOPNOTSUPP") && error.operation.includes(SERVICE_LINK)) {
      return `create link ${SERVICE_LINK}0: found a kernel without dummy links, wanted one with the module dummy`;
    }
    return explainError(error);
  }

  /** Asked each time until it is there: a module may be loaded at any time. */
  private findVirtual(): VirtualServers | undefined {
    const family = findFamily(this.generic, IPVS_FAMILY);
    if (family === undefined) return undefined;
    return new VirtualServers(this.generic, {
      family: family.id,
      open: () => this.host.kernel.netlink(NETLINK_GENERIC),
      turns: () => new Turns(this.host.clock),
    });
  }

  private async write(desired: DesiredState): Promise<{ messages: number; problems: readonly string[] }> {
    const isNew = !this.isKnown, isNewVirtual = isNew || this.virtual === undefined;
    this.virtual ??= this.findVirtual();
    const { renderer, virtual } = this;
    if (isNewVirtual && virtual !== undefined) {
      this.settings(desired);
      await virtual.read();
    }
    if (isNew) {
      this.links.read();
      this.gate.read();
    }
    renderer.update(desired, this.links.local);
    const touched = {
      services: renderer.services.takeTouched(),
      addresses: renderer.addresses.takeTouched(),
      chains: renderer.chains.takeTouched(),
      sets: renderer.sets.takeTouched(),
      elements: renderer.elements.takeTouched(),
    };
    const all = <K extends string>(changed: Iterable<K>, wanted: Iterable<K>, there: Iterable<K>): Iterable<K> =>
      isNew ? new Set([...wanted, ...there]) : changed;
    const gateKeys = this.gate.keys();
    const places = isNew ? servicePlaces(gateKeys.elements, this.links.local) : undefined;
    // Marks and refusals first: IPVS forwards nothing that policy could not tell. The addresses last: a packet comes here only when
    // all is ready. What goes, goes the other way round.
    const gate = this.gate.write({
      chains: all(touched.chains, renderer.chains.keys(), gateKeys.chains),
      sets: all(touched.sets, renderer.sets.keys(), gateKeys.sets),
      elements: all(touched.elements, renderer.elements.keys(), gateKeys.elements),
    }, renderer);
    const services = isNewVirtual ? new Set([...renderer.services.keys(), ...virtual?.keys() ?? []]) : touched.services;
    // Without IPVS, the gate and the addresses stand all the same: what is for a service ends here, and leaves the node by no other way.
    const written = virtual?.write(services, renderer.services, this.host.clock.nowMs()) ?? NO_IPVS;
    const addresses = all(touched.addresses, renderer.addresses.keys(), this.links.keys());
    const links = this.writeLinks(addresses);
    const removed = gate.remove();
    this.isKnown = links.isKnown;
    this.flows.follow(desired.services, places);
    this.drainWhileNeeded();
    return {
      messages: gate.messages + written.messages + links.messages + removed,
      problems: [...written.problems, ...links.problems, ...renderer.problems.values()],
    };
  }

  /** A kernel that cannot make them is told of beside all else that is the matter. */
  private writeLinks(addresses: Iterable<string>): WriteReport & { readonly isKnown: boolean } {
    try {
      return { ...this.links.write(addresses, this.renderer.addresses), isKnown: true };
    } catch (error) {
      return { messages: 0, problems: [this.explain(error)], isKnown: false };
    }
  }

  private settings({ services }: DesiredState): void {
    for (const [path, value] of Object.entries(IPVS_SETTINGS)) this.host.kernel.setSysctl(path, value);
    const families = new Set([...services!.frontends.values()].map(({ family }) => family));
    if (families.has(6)) this.host.kernel.setSysctl("ipv6/conf/all/forwarding", "1");
  }

  private clear(): Report {
    this.isKnown = false;
    this.flows.follow(undefined);
    this.renderer = new Renderer(this.config);
    try {
      // In the order in which things go: addresses, servers, marks.
      this.virtual ??= this.findVirtual();
      const messages = this.links.sweep() + (this.virtual?.sweep() ?? 0) + this.gate.sweep();
      return { generation: 0, converged: true, messages, problems: [] };
    } catch (error) {
      return { generation: 0, converged: false, messages: 0, problems: [explainError(error)] };
    }
  }

  private drainWhileNeeded(): void {
    if (this.isDraining || this.virtual?.isDraining !== true) return;
    this.isDraining = true;
    this.drained = this.drain(this.closing.signal);
  }

  private async drain(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.host;
    try {
      while (this.virtual?.isDraining === true && !signal.aborted) {
        await clock.sleep(DRAIN_LOOK_MS, signal).catch(() => {});
        if (signal.aborted) return;
        try {
          this.virtual?.drain(clock.nowMs(), this.config.drainSeconds * 1_000);
        } catch (error) {
          log.warn("retired IPVS servers cannot be looked at, trying again", { error: explainError(error) });
        }
      }
    } finally {
      this.isDraining = false;
    }
  }

  async *drift(signal: AbortSignal): AsyncIterable<string> {
    const { clock } = this.host;
    let reason: string | undefined;
    let wake = () => {};
    const alarm = (why: string) => {
      reason ??= why;
      wake();
    };
    const stop = AbortSignal.any([signal, this.closing.signal]);
    stop.addEventListener("abort", () => wake(), { once: true });
    using netfilter = this.host.kernel.netlink(NETLINK_NETFILTER, { groups: [GROUP_NFTABLES] });
    const groups = [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
    using route = this.host.kernel.netlink(NETLINK_ROUTE, { groups });
    void follow(netfilter, stop, (message) => {
      if (message.portId === this.netfilter.portId) return;
      const table = tableOf(message);
      if (table?.table === TABLE.table && table.family === TABLE.family) alarm(`table inet ${TABLE.table} was changed`);
    }, alarm);
    void follow(route, stop, (message) => {
      const reason = message.portId === this.route.portId ? undefined : this.driftOf(message);
      if (reason !== undefined) alarm(reason);
    }, alarm);
    while (!stop.aborted) {
      const woken = new Promise<void>((resolve) => wake = resolve);
      const pause = new AbortController();
      if (reason === undefined) {
        const slept = clock.sleep(this.config.resyncSeconds * 1_000, AbortSignal.any([stop, pause.signal])).catch(
          () => {},
        );
        await Promise.race([woken, slept]);
        pause.abort();
      }
      if (stop.aborted) return;
      if (reason === undefined) {
        const difference = await this.differenceOfVirtual(stop);
        if (difference === undefined) continue;
        reason = `IPVS: ${difference}`;
      }
      await clock.sleep(DRIFT_SETTLE_MS, stop).catch(() => {});
      if (stop.aborted) return;
      const said: string = reason;
      reason = undefined;
      yield said;
    }
  }

  /** What an event of addresses or links says against what was written; undefined where it says nothing. */
  private driftOf(message: NetlinkMessage): string | undefined {
    if (message.type === RTM_NEWADDR || message.type === RTM_DELADDR) {
      const { index, address } = parseAddressMessage(message);
      return isServing(address) ? `address ${formatAddress(address)} of link ${index} came or went` : undefined;
    }
    // Every pod's link makes events of its own: no more of them is read than needs be.
    if (!this.links.has(linkIndexOf(message))) return undefined;
    const { name, up } = parseLink(message);
    return message.type === RTM_NEWLINK && up ? undefined : `link ${name} is down or gone`;
  }

  /** Some of it may be unreadable for the moment: that is told with the next write. */
  private async differenceOfVirtual(signal: AbortSignal): Promise<string | undefined> {
    if (!this.isKnown || this.virtual === undefined) return undefined;
    try {
      return await this.virtual.difference(signal);
    } catch (error) {
      return `it cannot be read: ${explainError(error)}`;
    }
  }

  /** Read anew, beside what is known: nothing of that changes. */
  async diff(): Promise<readonly string[]> {
    if (this.desired === undefined) return [];
    const { services } = this.desired;
    const virtual = this.findVirtual();
    if (virtual === undefined && services !== undefined) throw new UnavailableError(NO_IPVS.problems[0]!);
    const links = new ServiceLinks(this.route), gate = new GateTable(this.netfilter);
    await virtual?.read();
    links.read();
    gate.read();
    const wanted = new Renderer(this.config);
    if (services !== undefined) wanted.update(this.desired, links.local);
    return differences(
      { services: virtual?.found, links, gate: gate.found },
      services === undefined ? undefined : wanted,
    );
  }

  async sweep(): Promise<Report> {
    this.desired = undefined;
    return this.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.closing.abort();
    await this.flows[Symbol.asyncDispose]();
    await this.drained;
    this.stack.dispose();
  }
}

/** Calls `each` for every event until `signal` aborts; losing some is an alarm. Never rejects. */
async function follow(
  socket: NetlinkSocket,
  signal: AbortSignal,
  each: (message: NetlinkMessage) => void,
  alarm: (why: string) => void,
): Promise<void> {
  while (!signal.aborted) {
    try {
      for await (const messages of socket.events(signal)) messages.forEach(each);
      return;
    } catch (error) {
      if (signal.aborted) return;
      alarm(`events were lost: ${explainError(error)}`);
      if (!isErrno(error, "ENOBUFS")) return;
    }
  }
}
