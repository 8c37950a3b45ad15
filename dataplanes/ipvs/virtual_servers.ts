/** IPVS as we know it to be, and the messages that bring it to what is wanted. */
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { explainError } from "../../src/sdk/errors.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import {
  deleteServer,
  deleteService,
  getServices,
  newServer,
  newService,
  parseService,
  type RealServer,
  type ServiceReference,
  setServer,
  setService,
  type VirtualService,
} from "../../src/kernel/netlink/schema/ipvs.ts";
import type { Claims } from "./claims.ts";
import {
  endText,
  findDifference,
  type FoundService,
  type FoundServices,
  type IpvsDoor,
  isOurs,
  listServers,
  readServices,
  sameServer,
  sameService,
  serversOf,
  serviceText,
} from "./found_servers.ts";
import { serverKey, serviceKey, type WantedService } from "./render.ts";

/** Problems told one by one; of more only how many. */
const PROBLEMS_TOLD = 20;

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

/** What a message is about, for the case that it is refused. */
interface Step {
  readonly key: string;
  readonly saying: () => string;
  /** That is made or changed by it. */
  readonly service?: VirtualService;
}

const isDatagram = (service: ServiceReference): boolean => "protocol" in service && service.protocol === PROTOCOLS.UDP;

export class VirtualServers {
  /** Ours, by `serviceKey`. */
  private ours = new Map<string, FoundService>();
  /** Somebody else's services. */
  private foreign = new Set<string>();
  /** By service and server. */
  private readonly draining = new Map<string, Draining>();
  /** What the kernel refused is tried again with the next write. */
  private unsettled = new Set<string>();
  /** Another one after each write. */
  version = 0;
  private isReading = false;

  constructor(private readonly socket: NetlinkSocket, readonly door: IpvsDoor) {}

  /** What the kernel holds now. Nobody may write meanwhile. @throws {KernelError} */
  async read(): Promise<void> {
    this.isReading = true;
    try {
      const { ours, foreign } = await readServices(this.door);
      this.ours = new Map(ours);
      this.foreign = new Set(foreign);
    } finally {
      this.isReading = false;
      this.version++;
    }
    for (const [key, { service, server }] of this.draining) {
      if (this.ours.get(serviceKey(service))?.servers.has(serverKey(server)) !== true) this.draining.delete(key);
    }
  }

  get found(): FoundServices {
    return { ours: this.ours, foreign: this.foreign };
  }

  /** Every key that may be in need of a look. */
  keys(): Iterable<string> {
    return this.ours.keys();
  }

  /**
   * Brings the services of `keys` to what `wanted` says. Servers that are no longer wanted keep the connections that they have, those of
   * UDP services are gone at once. What is refused is told, and tried again next time.
   */
  write(keys: Iterable<string>, wanted: Pick<Claims<WantedService>, "get">, nowMs: number): WriteReport {
    const messages: NetlinkMessage[] = [];
    /** By message. */
    const steps: Step[] = [];
    const problems: string[] = [];
    const say = (step: Step, message: NetlinkMessage) => {
      messages.push(message);
      steps.push(step);
    };
    const work = this.unsettled.size === 0 ? keys : new Set([...keys, ...this.unsettled]);
    this.unsettled = new Set();
    this.version++;
    let told = 0;
    for (const key of work) {
      const want = wanted.get(key), is = this.ours.get(key);
      if (want === undefined) {
        if (is === undefined) continue;
        const saying = () => `delete IPVS service ${serviceText(is.service)}`;
        say({ key, saying }, deleteService(this.door.family, is.service));
        this.ours.delete(key);
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
        const saying = () => `make IPVS service ${serviceText(service)}`;
        say({ key, saying, service }, newService(this.door.family, service));
      } else if (!sameService(is.service, service)) {
        const saying = () => `change IPVS service ${serviceText(service)}`;
        say({ key, saying, service }, setService(this.door.family, service));
      }
      const servers = is?.servers ?? new Map<string, RealServer>();
      this.ours.set(key, { service, servers });
      this.writeServers(key, want, servers, nowMs, say);
    }
    if (told > PROBLEMS_TOLD) problems.push(`${told - PROBLEMS_TOLD} more IPVS services are somebody else's`);
    const errors = this.socket.attempt("write IPVS services", messages);
    // The first of each service: a service that was not made cannot have servers.
    const refused = new Map<string, string>();
    errors.forEach((error, i) => {
      const step = steps[i]!;
      if (error !== undefined && !refused.has(step.key)) refused.set(step.key, refusal(step, error));
    });
    problems.push(...[...refused.values()].slice(0, PROBLEMS_TOLD));
    if (refused.size > PROBLEMS_TOLD) problems.push(`${refused.size - PROBLEMS_TOLD} more IPVS services were refused`);
    if (refused.size > 0) this.lookAgain(new Set(refused.keys()));
    return { messages: messages.length, problems };
  }

  private writeServers(
    key: string,
    { service, servers: wanted }: WantedService,
    there: Map<string, RealServer>,
    nowMs: number,
    say: (step: Step, message: NetlinkMessage) => void,
  ): void {
    const { family } = this.door;
    const step = (verb: string, server: RealServer): Step => ({
      key,
      saying: () => `${verb} IPVS server ${endText(server)} of ${serviceText(service)}`,
    });
    for (const [id, server] of wanted) {
      const is = there.get(id);
      if (is !== undefined && sameServer(is, server)) continue;
      const message = is === undefined ? newServer : setServer;
      say(step("put", server), message(family, service, server));
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
        say(step("remove", server), deleteServer(family, service, server));
        there.delete(id);
        continue;
      }
      const quiet = { ...server, weight: 0 };
      if (server.weight !== 0) {
        say(step("retire", server), setServer(family, service, quiet));
        there.set(id, quiet);
      }
      if (!this.draining.has(key + id)) this.draining.set(key + id, { service, server: quiet, sinceMs: nowMs });
    }
  }

  /** After refusals: what is there is looked at, not thought of. @throws {KernelError} */
  private lookAgain(keys: ReadonlySet<string>): void {
    const { family } = this.door;
    for (const key of keys) {
      this.unsettled.add(key);
      this.ours.delete(key);
      this.foreign.delete(key);
    }
    for (const message of this.socket.dump("list IPVS services", getServices(family))) {
      const service = parseService(message), key = serviceKey(service);
      if (!keys.has(key)) continue;
      if (isOurs(service)) this.ours.set(key, { service, servers: serversOf(this.socket, family, service) });
      else this.foreign.add(key);
    }
  }

  get isDraining(): boolean {
    return this.draining.size > 0;
  }

  /** Removes retired servers whose connections have gone, and those that had `drainMs`. Returns how many messages it took. @throws {KernelError} */
  drain(nowMs: number, drainMs: number): number {
    if (this.isReading) return 0;
    const { family } = this.door;
    const byService = new Map<string, [string, Draining][]>();
    for (const entry of this.draining) {
      const key = serviceKey(entry[1].service);
      const list = byService.get(key);
      if (list === undefined) byService.set(key, [entry]);
      else list.push(entry);
    }
    const gone: NetlinkMessage[] = [];
    for (const [key, list] of byService) {
      const found = listServers(this.socket, family, list[0]![1].service);
      const byKey = new Map(found.map((one) => [serverKey(one), one]));
      for (const [id, { service, server, sinceMs }] of list) {
        const one = byKey.get(serverKey(server));
        const isBusy = one !== undefined && one.activeConnections + one.inactiveConnections > 0;
        if (isBusy && nowMs - sinceMs < drainMs) continue;
        this.draining.delete(id);
        this.ours.get(key)?.servers.delete(serverKey(server));
        if (one !== undefined) gone.push(deleteServer(family, service, server));
      }
    }
    if (gone.length > 0) this.socket.attempt("remove IPVS servers that were retired", gone);
    return gone.length;
  }

  /** Whether the kernel holds what was written, looked at in turns: the first difference. @throws {KernelError} */
  async difference(signal: AbortSignal): Promise<string | undefined> {
    return await findDifference(this.door, this, signal);
  }

  /** Deletes all of ours. Returns how many there were. @throws {KernelError} */
  sweep(): number {
    const { family } = this.door;
    const ours = this.socket.dump("list IPVS services", getServices(family)).map(parseService).filter(isOurs);
    if (ours.length > 0) {
      this.socket.request("delete IPVS services", ours.map((service) => deleteService(family, service)));
    }
    this.ours.clear();
    this.foreign.clear();
    this.draining.clear();
    this.unsettled.clear();
    this.version++;
    return ours.length;
  }
}

function refusal({ saying, service }: Step, error: Error): string {
  if (service !== undefined && isErrno(error, "ENOENT")) {
    return `${saying()}: found a kernel without the scheduler ${service.scheduler}, wanted the module ip_vs_${service.scheduler}`;
  }
  return `${saying()}: ${explainError(error)}`;
}
