/** IPVS as we know it to be, and the messages that bring it to what is wanted. */
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { formatAddress } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { explainError } from "../../src/sdk/errors.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import {
  deleteServer,
  deleteService,
  type FoundServer,
  getServers,
  getServices,
  newServer,
  newService,
  parseServer,
  parseService,
  type RealServer,
  type ServiceReference,
  setServer,
  setService,
  type VirtualService,
} from "../../src/kernel/netlink/schema/ipvs.ts";
import type { Claims } from "./claims.ts";
import { OUR_FLAG, serverKey, serviceKey, type WantedService } from "./render.ts";

/** Problems told one by one; of more only how many. */
const PROBLEMS_TOLD = 20;

interface ThereService {
  readonly service: VirtualService;
  readonly servers: Map<string, RealServer>;
}

/** A server that is to go when its connections have gone. */
interface Draining {
  readonly service: ServiceReference;
  readonly server: RealServer;
  readonly sinceMs: number;
}

export interface WriteReport {
  readonly messages: number;
  readonly problems: readonly string[];
}

const sameService = (a: VirtualService, b: VirtualService): boolean =>
  a.scheduler === b.scheduler && a.flags === b.flags && a.persistenceSeconds === b.persistenceSeconds;
const isDatagram = (service: ServiceReference): boolean => "protocol" in service && service.protocol === PROTOCOLS.UDP;

const PROTOCOL_NAMES = new Map<number, string>([[6, "tcp"], [17, "udp"], [132, "sctp"]]);
export const serviceText = (one: ServiceReference): string =>
  "firewallMark" in one
    ? `mark 0x${one.firewallMark.toString(16)} IPv${one.family}`
    : `${PROTOCOL_NAMES.get(one.protocol) ?? one.protocol} ${
      one.family === 4 ? formatAddress(one.address) : `[${formatAddress(one.address)}]`
    }:${one.port}`;

export class VirtualServers {
  /** Ours, by `serviceKey`. */
  private there = new Map<string, ThereService>();
  /** Somebody else's services. */
  private foreign = new Set<string>();
  /** By service and server. */
  private readonly draining = new Map<string, Draining>();
  /** What the kernel refused is tried again with the next write. */
  private unsettled = new Set<string>();

  constructor(private readonly socket: NetlinkSocket, private readonly family: number) {}

  /** What the kernel holds now: one dump of services and one for each of ours. @throws {KernelError} */
  read(): void {
    const { there, foreign } = this.found();
    this.there = there;
    this.foreign = foreign;
    for (const [key, { service, server }] of this.draining) {
      if (there.get(serviceKey(service))?.servers.has(serverKey(server)) !== true) this.draining.delete(key);
    }
  }

  private found(): { there: Map<string, ThereService>; foreign: Set<string> } {
    const there = new Map<string, ThereService>(), foreign = new Set<string>();
    for (const message of this.socket.dump("list IPVS services", getServices(this.family))) {
      const service = parseService(message);
      const key = serviceKey(service);
      if ((service.flags & OUR_FLAG) === 0) foreign.add(key);
      else there.set(key, { service, servers: this.serversOf(service) });
    }
    return { there, foreign };
  }

  private serversOf(service: ServiceReference): Map<string, RealServer> {
    const found = this.listServers(service);
    return new Map(found.map(({ address, port, forwardMethod, weight }) => {
      const server: RealServer = { address, port, forwardMethod, weight };
      return [serverKey(server), server] as const;
    }));
  }

  private listServers(service: ServiceReference): readonly FoundServer[] {
    try {
      const operation = `list IPVS servers of ${serviceText(service)}`;
      return this.socket.dump(operation, getServers(this.family, service)).map(parseServer);
    } catch (error) {
      // Gone between the two dumps.
      if (isErrno(error, "ESRCH")) return [];
      throw error;
    }
  }

  /** Every key that may be in need of a look. */
  keys(): Iterable<string> {
    return this.there.keys();
  }

  get count(): number {
    return this.there.size;
  }

  /**
   * Brings the services of `keys` to what `wanted` says. Servers that are no longer wanted keep the connections that they have, those of
   * UDP services are gone at once. What is refused is told, and tried again next time.
   */
  write(keys: Iterable<string>, wanted: Pick<Claims<WantedService>, "get">, nowMs: number): WriteReport {
    const messages: NetlinkMessage[] = [];
    const sayings: (() => string)[] = [];
    /** By message: what it concerns. */
    const about: string[] = [];
    const problems: string[] = [];
    const say = (key: string, message: NetlinkMessage, saying: () => string) => {
      messages.push(message);
      sayings.push(saying);
      about.push(key);
    };
    const work = this.unsettled.size === 0 ? keys : new Set([...keys, ...this.unsettled]);
    this.unsettled = new Set();
    let told = 0;
    for (const key of work) {
      const want = wanted.get(key), is = this.there.get(key);
      if (want === undefined) {
        if (is === undefined) continue;
        say(key, deleteService(this.family, is.service), () => `delete IPVS service ${serviceText(is.service)}`);
        this.there.delete(key);
        continue;
      }
      const { service } = want;
      if (this.foreign.has(key)) {
        if (told++ < PROBLEMS_TOLD) {
          problems.push(
            `IPVS service ${serviceText(service)}: found one that is somebody else's, wanted ours; left alone`,
          );
        }
        this.unsettled.add(key);
        continue;
      }
      if (is === undefined) {
        say(key, newService(this.family, service), () => `make IPVS service ${serviceText(service)}`);
      } else if (!sameService(is.service, service)) {
        say(key, setService(this.family, service), () => `change IPVS service ${serviceText(service)}`);
      }
      const servers = is?.servers ?? new Map<string, RealServer>();
      this.there.set(key, { service, servers });
      this.writeServers(key, want, servers, nowMs, say);
    }
    if (told > PROBLEMS_TOLD) problems.push(`${told - PROBLEMS_TOLD} more IPVS services are somebody else's`);
    const errors = this.socket.attempt("write IPVS services", messages);
    let refused = 0;
    errors.forEach((error, i) => {
      if (error === undefined) return;
      this.unsettled.add(about[i]!);
      if (refused++ < PROBLEMS_TOLD) problems.push(`${sayings[i]!()}: ${explainError(error)}`);
    });
    if (refused > PROBLEMS_TOLD) problems.push(`${refused - PROBLEMS_TOLD} more writes to IPVS were refused`);
    for (const key of new Set(errors.flatMap((error, i) => error === undefined ? [] : [about[i]!]))) {
      this.reread(key, wanted);
    }
    return { messages: messages.length, problems };
  }

  private writeServers(
    key: string,
    { service, servers: wanted }: WantedService,
    there: Map<string, RealServer>,
    nowMs: number,
    say: (key: string, message: NetlinkMessage, saying: () => string) => void,
  ): void {
    const text = ({ address, port }: RealServer) => `${formatAddress(address)} port ${port} of ${serviceText(service)}`;
    for (const [id, server] of wanted) {
      const is = there.get(id);
      if (is?.weight === server.weight && is.forwardMethod === server.forwardMethod) continue;
      const message = is === undefined ? newServer : setServer;
      say(key, message(this.family, service, server), () => `put IPVS server ${text(server)}`);
      there.set(id, server);
      this.draining.delete(key + id);
    }
    if (there.size === wanted.size) return;
    for (const [id, server] of there) {
      if (wanted.has(id)) {
        this.draining.delete(key + id);
        continue;
      }
      if (isDatagram(service)) {
        say(key, deleteServer(this.family, service, server), () => `remove IPVS server ${text(server)}`);
        there.delete(id);
        continue;
      }
      const quiet = { ...server, weight: 0 };
      if (server.weight !== 0) {
        say(key, setServer(this.family, service, quiet), () => `retire IPVS server ${text(server)}`);
        there.set(id, quiet);
      }
      if (!this.draining.has(key + id)) this.draining.set(key + id, { service, server: quiet, sinceMs: nowMs });
    }
  }

  /** After a refusal: what is there is looked at, not thought of. */
  private reread(key: string, wanted: Pick<Claims<WantedService>, "get">): void {
    const service = this.there.get(key)?.service ?? wanted.get(key)?.service;
    if (service === undefined) return;
    this.there.delete(key);
    try {
      const { there, foreign } = this.foundOne(service);
      if (there !== undefined) this.there.set(key, there);
      if (foreign) this.foreign.add(key);
      else this.foreign.delete(key);
    } catch {
      // Whoever asks next reads everything.
    }
  }

  private foundOne(service: ServiceReference): { there?: ThereService; foreign: boolean } {
    const key = serviceKey(service);
    for (const message of this.socket.dump("list IPVS services", getServices(this.family))) {
      const one = parseService(message);
      if (serviceKey(one) !== key) continue;
      return (one.flags & OUR_FLAG) === 0
        ? { foreign: true }
        : { there: { service: one, servers: this.serversOf(one) }, foreign: false };
    }
    return { foreign: false };
  }

  get isDraining(): boolean {
    return this.draining.size > 0;
  }

  /** Removes retired servers whose connections have gone, and those that had `drainMs`. Returns how many messages it took. @throws {KernelError} */
  drain(nowMs: number, drainMs: number): number {
    const byService = new Map<string, [string, Draining][]>();
    for (const entry of this.draining) {
      const key = serviceKey(entry[1].service);
      const list = byService.get(key);
      if (list === undefined) byService.set(key, [entry]);
      else list.push(entry);
    }
    const gone: NetlinkMessage[] = [];
    for (const [key, list] of byService) {
      const found = new Map(this.listServers(list[0]![1].service).map((one) => [serverKey(one), one]));
      for (const [id, { service, server, sinceMs }] of list) {
        const one = found.get(serverKey(server));
        const isBusy = one !== undefined && one.activeConnections + one.inactiveConnections > 0;
        if (isBusy && nowMs - sinceMs < drainMs) continue;
        this.draining.delete(id);
        this.there.get(key)?.servers.delete(serverKey(server));
        if (one !== undefined) gone.push(deleteServer(this.family, service, server));
      }
    }
    if (gone.length > 0) this.socket.attempt("remove IPVS servers that were retired", gone);
    return gone.length;
  }

  /** Whether the kernel holds what was written, as far as a look at some of it tells: the first difference. @throws {KernelError} */
  difference(): string | undefined {
    const { there, foreign } = this.found();
    for (const [key, { service, servers }] of this.there) {
      const is = there.get(key);
      if (is === undefined) {
        return foreign.has(key) ? `${serviceText(service)} became somebody else's` : `${serviceText(service)} is gone`;
      }
      if (!sameService(is.service, service)) return `${serviceText(service)} was changed`;
      const same = is.servers.size === servers.size &&
        [...servers].every(([id, { weight, forwardMethod }]) => {
          const one = is.servers.get(id);
          return one?.weight === weight && one.forwardMethod === forwardMethod;
        });
      if (!same) return `servers of ${serviceText(service)} were changed`;
    }
    for (const [key, { service }] of there) if (!this.there.has(key)) return `${serviceText(service)} appeared`;
    for (const key of this.foreign) if (!foreign.has(key)) return "somebody else's service is gone";
    return undefined;
  }

  /** Deletes all of ours. Returns how many there were. @throws {KernelError} */
  sweep(): number {
    this.read();
    const messages = [...this.there.values()].map(({ service }) => deleteService(this.family, service));
    if (messages.length > 0) this.socket.request("delete IPVS services", messages);
    this.there.clear();
    this.draining.clear();
    this.unsettled.clear();
    return messages.length;
  }
}
