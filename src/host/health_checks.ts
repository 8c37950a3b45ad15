/**
 * Health check node ports (core/v1 ServiceSpec.healthCheckNodePort): load balancers ask here whether this node has endpoints of a
 * service, and send nothing where it has none. It answers for the services that are in force: what it says yes to is forwarded.
 *
 * It is HTTP as far as one question needs it: whatever is asked is answered, once, and the connection ends. Everybody may reach
 * these ports, so there is a bound on all that they hold.
 */
import type { Socket, TCPSocketListener } from "bun";
import { type Address, cidrContains, parseAddress } from "../model/address.ts";
import { persistentMap } from "../model/persistent_map.ts";
import type { ServiceHealthCheck, ServiceState } from "../model/services.ts";
import type { KernelDoor, NetworkNamespace } from "../sdk/kernel_door.ts";
import type { Clock, Log } from "../sdk/plugin.ts";

/** First and longest pause before a port that could not be had is tried again; it doubles in between. */
const RETRY_FIRST_MS = 500;
const RETRY_LONGEST_MS = 30_000;
/** Of all ports. One more, and the oldest has to go. */
export const CONNECTIONS_MAX = 256;
const REQUEST_BYTES_MAX = 8 * 1024;
/** Of a connection, from its first byte to its last. */
const IDLE_SECONDS = 10;
/** RFC 9112 section 2.1: the end of a request's header. */
const HEADER_END = "\r\n\r\n";

export interface HealthChecksParts {
  readonly kernel: Pick<KernelDoor, "inNamespace">;
  readonly clock: Clock;
  readonly log: Log;
  /** The node's; the daemon's own where absent. */
  readonly namespace?: NetworkNamespace;
}

interface Connection {
  readonly port: string;
  request: string;
}

export class HealthChecks implements Disposable {
  readonly #parts: HealthChecksParts;
  readonly #listeners = new Map<string, TCPSocketListener<Connection>>();
  /** Ports that could not be had, and why. */
  readonly #failed = new Map<string, string>();
  /** The oldest first. */
  readonly #connections = new Set<Socket<Connection>>();
  #checks: ServiceState["healthChecks"] = persistentMap();
  #nodePortAddresses: ServiceState["nodePortAddresses"] = [];
  #wake: () => void = () => {};
  #isClosed = false;

  constructor(parts: HealthChecksParts) {
    this.#parts = parts;
  }

  /** Opens the ports of `services` and closes the others; those that cannot be had are tried again by `run`. */
  follow({ healthChecks, nodePortAddresses }: ServiceState): void {
    const before = this.#checks;
    this.#checks = healthChecks;
    this.#nodePortAddresses = nodePortAddresses;
    for (const { key, before: was, after: is } of healthChecks.changesSince(before)) {
      if (is === undefined) this.#close(key);
      else if (was === undefined) this.#open(key, is);
    }
    if (this.#failed.size > 0) this.#wake();
  }

  /** Ports that are not answered, one line each. */
  problems(): readonly string[] {
    return [...this.#failed].map(([port, why]) => `${titleOf(port, this.#checks.get(port)!)}: ${why}, trying again`)
      .sort();
  }

  /** Tries again what failed, until `signal` aborts. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock } = this.#parts;
    const stop = () => this.#wake();
    signal.addEventListener("abort", stop);
    for (let pauseMs = RETRY_FIRST_MS; !signal.aborted;) {
      if (this.#failed.size === 0) {
        pauseMs = RETRY_FIRST_MS;
        await new Promise<void>((resolve) => this.#wake = resolve);
        continue;
      }
      await clock.sleep(pauseMs, signal).catch(() => {});
      if (signal.aborted) break;
      for (const port of [...this.#failed.keys()]) this.#open(port, this.#checks.get(port)!);
      pauseMs = Math.min(RETRY_LONGEST_MS, pauseMs * 2);
    }
    signal.removeEventListener("abort", stop);
  }

  [Symbol.dispose](): void {
    this.#isClosed = true;
    this.#failed.clear();
    for (const port of [...this.#listeners.keys()]) this.#close(port);
  }

  #open(port: string, check: ServiceHealthCheck): void {
    if (this.#isClosed) return;
    const { log } = this.#parts;
    try {
      this.#listeners.set(port, this.#listen(port));
      if (this.#failed.delete(port)) log.info(`${titleOf(port, check)}: answered from now on`);
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const why = code === "EADDRINUSE"
        ? "found it in use, wanted it free"
        : `it cannot be opened (${code ?? message})`;
      if (this.#failed.get(port) !== why) log.warn(`${titleOf(port, check)}: ${why}, trying again`);
      this.#failed.set(port, why);
    }
  }

  #listen(port: string): TCPSocketListener<Connection> {
    try {
      // Both families: the kernel maps IPv4.
      return this.#listenOn("::", port);
    } catch (error) {
      // Booted without IPv6.
      if ((error as NodeJS.ErrnoException).code !== "EAFNOSUPPORT") throw error;
      return this.#listenOn("0.0.0.0", port);
    }
  }

  #listenOn(hostname: string, port: string): TCPSocketListener<Connection> {
    const { kernel, namespace } = this.#parts;
    const listen = () =>
      Bun.listen<Connection>({
        hostname,
        port: Number(port),
        socket: {
          open: (socket) => this.#admit(socket, port),
          data: (socket, bytes) => this.#hear(socket, bytes),
          timeout: (socket) => socket.terminate(),
          close: (socket) => void this.#connections.delete(socket),
          error: (socket) => socket.terminate(),
        },
      });
    return namespace === undefined ? listen() : kernel.inNamespace(namespace, listen);
  }

  #close(port: string): void {
    this.#failed.delete(port);
    this.#listeners.get(port)?.stop(true);
    this.#listeners.delete(port);
    // What it has accepted is not always among what it stops.
    for (const connection of this.#connections) if (connection.data.port === port) connection.terminate();
  }

  #admit(socket: Socket<Connection>, port: string): void {
    socket.data = { port, request: "" };
    if (!this.#answersOn(socket.localAddress)) return void socket.terminate();
    this.#connections.add(socket);
    if (this.#connections.size > CONNECTIONS_MAX) {
      const [oldest] = this.#connections;
      this.#connections.delete(oldest!);
      oldest!.terminate();
    }
    socket.timeout(IDLE_SECONDS);
  }

  #answersOn(localAddress: string): boolean {
    if (this.#nodePortAddresses.length === 0) return true;
    const address = unmapped(localAddress);
    return address !== undefined && this.#nodePortAddresses.some((net) => cidrContains(net, address));
  }

  #hear(socket: Socket<Connection>, bytes: Uint8Array): void {
    const { data } = socket;
    data.request += Buffer.from(bytes).toString("latin1");
    if (data.request.length > REQUEST_BYTES_MAX) return void socket.terminate();
    if (!data.request.includes(HEADER_END)) return;
    data.request = "";
    socket.write(answer(this.#checks.get(data.port), socket.localPort));
    socket.end();
  }
}

/** What load balancers of Kubernetes are used to: the body, and the header by which some weigh nodes. */
function answer(check: ServiceHealthCheck | undefined, port: number): string {
  const { service = `/${port}`, localEndpoints = 0 } = check ?? {};
  const [namespace, name] = service.split("/") as [string, string];
  const body = JSON.stringify({ service: { namespace, name }, localEndpoints }) + "\n";
  return [
    localEndpoints > 0 ? "HTTP/1.1 200 OK" : "HTTP/1.1 503 Service Unavailable",
    "Content-Type: application/json",
    `Content-Length: ${Buffer.byteLength(body)}`,
    "X-Content-Type-Options: nosniff",
    `X-Load-Balancing-Endpoint-Weight: ${localEndpoints}`,
    "Connection: close",
  ].join("\r\n") + HEADER_END + body;
}

const titleOf = (port: string, { service }: ServiceHealthCheck): string =>
  `health check node port ${port} of ${service}`;

/** An IPv4 address that a socket of both families has (RFC 4291 section 2.5.5.2) is that address; undefined: not to be read. */
function unmapped(text: string): Address | undefined {
  try {
    return parseAddress(text.replace(/^::ffff:(?=[\d.]+$)/, "").replace(/%.*$/, ""));
  } catch {
    return undefined;
  }
}
