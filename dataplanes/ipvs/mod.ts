/** The IPVS dataplane: services by the kernel's virtual servers. Policy is another dataplane's. */
import { formatAddress } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import type { Aspect, Dataplane, Report } from "../../src/sdk/dataplane.ts";
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { explainError, UnavailableError } from "../../src/sdk/errors.ts";
import { definePlugin, type Host } from "../../src/sdk/plugin.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import { findFamily, NETLINK_GENERIC } from "../../src/kernel/netlink/generic.ts";
import { IPVS_FAMILY } from "../../src/kernel/netlink/schema/ipvs.ts";
import { GROUP_NFTABLES, NETLINK_NETFILTER, tableOf } from "../../src/kernel/netlink/schema/nftables.ts";
import {
  parseAddressMessage,
  RTNLGRP_IPV4_IFADDR,
  RTNLGRP_IPV6_IFADDR,
} from "../../src/kernel/netlink/schema/rt_addr.ts";
import { type IpvsConfig, parseConfig } from "./config.ts";
import { GateTable, TABLE } from "./gate_table.ts";
import { Renderer } from "./render.ts";
import { isServing, SERVICE_LINK, ServiceLink } from "./service_link.ts";
import { VirtualServers } from "./virtual_servers.ts";

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
    const family = findFamily(generic, IPVS_FAMILY);
    if (family === undefined) {
      throw new UnavailableError("probe IPVS: found no generic netlink family IPVS, wanted a kernel with ip_vs");
    }
    const netfilter = stack.use(host.kernel.netlink(NETLINK_NETFILTER));
    const route = stack.use(host.kernel.netlink(NETLINK_ROUTE));
    return new IpvsDataplane(config, host, generic, family.id, netfilter, route, stack.move());
  },
});

class IpvsDataplane implements Dataplane {
  readonly capabilities = {
    aspects: new Set<Aspect>(["services"]),
    families: new Set([4, 6] as const),
    atomicity: "object" as const,
  };
  readonly forwardMark: number;
  private readonly virtual: VirtualServers;
  private readonly gate: GateTable;
  private readonly link: ServiceLink;
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
    family: number,
    private readonly netfilter: NetlinkSocket,
    private readonly route: NetlinkSocket,
    private readonly stack: DisposableStack,
  ) {
    this.forwardMark = config.forwardMark;
    this.virtual = new VirtualServers(generic, family);
    this.gate = new GateTable(netfilter);
    this.link = new ServiceLink(route);
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

  private bring(desired: DesiredState): Report {
    // Services were switched off, or never on: whoever else does them has the field.
    if (desired.services === undefined) return { ...this.clear(), generation: desired.generation };
    try {
      const { messages, problems } = this.write(desired);
      return { generation: desired.generation, converged: problems.length === 0, messages, problems };
    } catch (error) {
      // Half of it may be there: look at the kernel, and begin from what is wanted.
      this.isKnown = false;
      this.renderer = new Renderer(this.config);
      const problem = this.explain(error);
      this.host.log.error("services by IPVS failed", { generation: desired.generation, error: problem });
      return { generation: desired.generation, converged: false, messages: 0, problems: [problem] };
    }
  }

  private explain(error: unknown): string {
    if (isErrno(error, "EOPNOTSUPP") && error.operation.includes(SERVICE_LINK)) {
      return `create link ${SERVICE_LINK}: found a kernel without dummy links, wanted one with the module dummy`;
    }
    return explainError(error);
  }

  private write(desired: DesiredState): { messages: number; problems: readonly string[] } {
    const isNew = !this.isKnown;
    if (isNew) {
      this.settings(desired);
      this.link.read();
      this.virtual.read();
      this.gate.read();
    }
    const { renderer } = this;
    renderer.update(desired, this.link.local);
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
    // Marks and refusals first: IPVS forwards nothing that policy could not tell. The addresses last: a packet comes here only when
    // all is ready. What goes, goes the other way round.
    const gate = this.gate.write({
      chains: all(touched.chains, renderer.chains.keys(), gateKeys.chains),
      sets: all(touched.sets, renderer.sets.keys(), gateKeys.sets),
      elements: all(touched.elements, renderer.elements.keys(), gateKeys.elements),
    }, renderer);
    const services = all(touched.services, renderer.services.keys(), this.virtual.keys());
    const virtual = this.virtual.write(services, renderer.services, this.host.clock.nowMs());
    const addresses = all(touched.addresses, renderer.addresses.keys(), this.link.keys());
    const link = this.link.write(addresses, renderer.addresses);
    const removed = gate.remove();
    this.isKnown = true;
    this.drainWhileNeeded();
    return {
      messages: gate.messages + virtual.messages + link.messages + removed,
      problems: [...virtual.problems, ...link.problems, ...renderer.problems.values()],
    };
  }

  private settings({ services }: DesiredState): void {
    for (const [path, value] of Object.entries(IPVS_SETTINGS)) this.host.kernel.setSysctl(path, value);
    const families = new Set([...services!.frontends.values()].map(({ family }) => family));
    if (families.has(6)) this.host.kernel.setSysctl("ipv6/conf/all/forwarding", "1");
  }

  private clear(): Report {
    this.isKnown = false;
    this.renderer = new Renderer(this.config);
    try {
      // In the order in which things go: addresses, servers, marks.
      const messages = this.link.sweep() + this.virtual.sweep() + this.gate.sweep();
      return { generation: 0, converged: true, messages, problems: [] };
    } catch (error) {
      return { generation: 0, converged: false, messages: 0, problems: [explainError(error)] };
    }
  }

  private drainWhileNeeded(): void {
    if (this.isDraining || !this.virtual.isDraining) return;
    this.isDraining = true;
    this.drained = this.drain(this.closing.signal);
  }

  private async drain(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.host;
    try {
      while (this.virtual.isDraining && !signal.aborted) {
        await clock.sleep(DRAIN_LOOK_MS, signal).catch(() => {});
        if (signal.aborted) return;
        try {
          this.virtual.drain(clock.nowMs(), this.config.drainSeconds * 1_000);
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
    using route = this.host.kernel.netlink(NETLINK_ROUTE, { groups: [RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR] });
    void follow(netfilter, stop, (message) => {
      if (message.portId === this.netfilter.portId) return;
      const table = tableOf(message);
      if (table?.table === TABLE.table && table.family === TABLE.family) alarm(`table inet ${TABLE.table} was changed`);
    }, alarm);
    void follow(route, stop, (message) => {
      if (message.portId === this.route.portId) return;
      const { index, address } = parseAddressMessage(message);
      if (isServing(address)) alarm(`address ${formatAddress(address)} of link ${index} came or went`);
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
        if (!this.isKnown) continue;
        const difference = this.virtual.difference();
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

  async sweep(): Promise<Report> {
    this.desired = undefined;
    return this.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.closing.abort();
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
