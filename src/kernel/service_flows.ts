/**
 * UDP flows follow their service. Connection tracking remembers where a flow's first packet went, and a client that goes on sending from
 * one port would stay with a backend that is gone, or, where the service came after its first packet, with none. Such flows are
 * forgotten: their next packet begins anew. TCP and SCTP notice by themselves.
 */
import { delFlow, type Flow, type FlowFilter, FlowStatus, getFlows, parseFlow } from "./netlink/schema/conntrack.ts";
import { isErrno } from "./errors.ts";
import { NETLINK_NETFILTER } from "./netlink/schema/nftables.ts";
import { cidrContains, type Family } from "../model/address.ts";
import { persistentMap } from "../model/persistent_map.ts";
import { PROTOCOLS } from "../model/ports.ts";
import { frontendKey, type ServiceFrontend, type ServiceState } from "../model/services.ts";
import type { NetlinkSocket } from "../sdk/kernel_door.ts";
import type { Host } from "../sdk/plugin.ts";

/** For each filter the kernel walks its whole table; of more places than these, all UDP flows are looked at once. */
const FILTERS_MAX = 4;
const REMOVED_AT_ONCE = 500;
/** After a pass, times its own duration: passes take a quarter of a processor at most. */
const REST_FACTOR = 3;
const REST_LONGEST_MS = 2_000;
const RETRY_FIRST_MS = 100;
const RETRY_LONGEST_MS = 10_000;

/** Where a frontend is, or was. */
export type ServicePlace = Pick<ServiceFrontend, "address" | "family" | "protocol" | "port">;

export class ServiceFlows implements AsyncDisposable {
  private inForce: ServiceState | undefined;
  /** By `frontendKey`: what may have flows that are not as they should be. At most one for each frontend there is or was. */
  private readonly waiting = new Map<string, ServicePlace>();
  private readonly stop = new AbortController();
  private working: Promise<void> | undefined;
  private problem: string | undefined;

  constructor(private readonly host: Host) {}

  /**
   * These services are in force. `found`: nobody knows what was in force before, but that the kernel had rules for these frontends.
   */
  follow(state: ServiceState | undefined, found?: readonly ServicePlace[]): void {
    const before = found === undefined ? this.inForce : undefined;
    if (found !== undefined) {
      this.inForce?.frontends.forEach((frontend) => this.wait(frontend));
      for (const place of found) this.wait(place);
    }
    this.inForce = state;
    for (const change of (state?.frontends ?? NO_FRONTENDS).changesSince(before?.frontends ?? NO_FRONTENDS)) {
      this.wait((change.after ?? change.before)!);
    }
    if (this.waiting.size > 0) this.working ??= this.work().finally(() => this.working = undefined);
  }

  problems(): readonly string[] {
    return this.problem === undefined
      ? []
      : [`UDP flows of services may stay with backends that are gone: ${this.problem}`];
  }

  private wait(place: ServicePlace): void {
    if (place.protocol === PROTOCOLS.UDP) this.waiting.set(frontendKey(place), place);
  }

  /** Until nothing waits. Never rejects. */
  private async work(): Promise<void> {
    const { clock, log } = this.host, { signal } = this.stop;
    const sleep = (ms: number) => clock.sleep(ms, signal).catch(() => {});
    for (let pauseMs = RETRY_FIRST_MS; this.waiting.size > 0 && !signal.aborted;) {
      const places = new Map(this.waiting);
      this.waiting.clear();
      const startedMs = clock.nowMs();
      try {
        await this.pass(places);
        this.problem = undefined;
        pauseMs = RETRY_FIRST_MS;
        // The last pass of all needs no rest; what comes meanwhile waits for it.
        if (this.waiting.size > 0) await sleep(Math.min(REST_LONGEST_MS, REST_FACTOR * (clock.nowMs() - startedMs)));
      } catch (error) {
        if (signal.aborted) return;
        for (const [key, place] of places) if (!this.waiting.has(key)) this.waiting.set(key, place);
        this.problem = error instanceof Error ? error.message : String(error);
        log.error("UDP flows of services cannot be looked at, trying again", { error: this.problem, pauseMs });
        await sleep(pauseMs);
        pauseMs = Math.min(RETRY_LONGEST_MS, pauseMs * 2);
      }
    }
  }

  private async pass(places: ReadonlyMap<string, ServicePlace>): Promise<void> {
    // What removes is another socket than what lists: that one is busy meanwhile.
    using remover = this.host.kernel.netlink(NETLINK_NETFILTER);
    const backends = new Map<ServiceFrontend, ReadonlySet<string>>();
    for (const filter of filtersOf(places)) {
      using lister = this.host.kernel.netlink(NETLINK_NETFILTER);
      for await (const part of lister.dumpBehind("list UDP flows", getFlows(filter))) {
        if (this.stop.signal.aborted) return;
        const wrong = part.map(parseFlow).filter((flow) => this.isWrong(flow, places, backends));
        for (let at = 0; at < wrong.length; at += REMOVED_AT_ONCE) {
          remove(remover, wrong.slice(at, at + REMOVED_AT_ONCE));
        }
      }
    }
  }

  private isWrong(
    flow: Flow,
    places: ReadonlyMap<string, ServicePlace>,
    backends: Map<ServiceFrontend, ReadonlySet<string>>,
  ): boolean {
    const { original: { source, destination, destinationPort: port, protocol }, reply, status } = flow;
    if (protocol !== PROTOCOLS.UDP || port === undefined) return false;
    const family: Family = destination.length === 4 ? 4 : 6;
    const place = places.get(frontendKey({ address: destination, protocol, port, family })) ??
      places.get(frontendKey({ protocol, port, family }));
    if (place === undefined) return false;
    const frontend = this.inForce?.frontends.get(frontendKey(place));
    // IPVS does not set the flag: whom the answers come from tells.
    const isTranslated = (status & FlowStatus.DestinationNat) !== 0 || reply.source !== destination ||
      reply.sourcePort !== port;
    if (frontend === undefined) return isTranslated;
    if (!isTranslated) {
      // To that port of any address: what leaves with another source than its own is a stranger's, far away.
      return place.address !== undefined || (status & FlowStatus.SourceNat) === 0;
    }
    if (frontend.sources !== undefined && !frontend.sources.some((net) => cidrContains(net, source))) return true;
    let allowed = backends.get(frontend);
    if (allowed === undefined) backends.set(frontend, allowed = backendsOf(frontend));
    return !allowed.has(`${reply.source}${reply.sourcePort}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.stop.abort();
    await this.working;
  }
}

const NO_FRONTENDS: ServiceState["frontends"] = persistentMap();

function filtersOf(places: ReadonlyMap<string, ServicePlace>): readonly FlowFilter[] {
  const protocol = PROTOCOLS.UDP;
  if (places.size <= FILTERS_MAX) {
    return [...places.values()].map(({ family, address, port }): FlowFilter => {
      // Asked for an IPv6 address, Linux up to 6.18 answers with all flows but its own (ctnetlink_filter_match_tuple).
      const destination = family === 4 && address !== undefined ? { destination: address } : {};
      return { family, original: { protocol, destinationPort: port, ...destination } };
    });
  }
  return [...new Set([...places.values()].map(({ family }) => family))].map((family) => ({
    family,
    original: { protocol },
  }));
}

/** Those that drain keep the flows they have. */
const backendsOf = ({ backends, outside }: ServiceFrontend): ReadonlySet<string> =>
  new Set([backends, outside].flatMap((list) => list?.backends.map(({ address, port }) => `${address}${port}`) ?? []));

function remove(socket: NetlinkSocket, flows: readonly Flow[]): void {
  for (const error of socket.attempt("forget UDP flows", flows.map(delFlow))) {
    // It has ended by itself.
    if (error !== undefined && !isErrno(error, "ENOENT")) throw error;
  }
}
