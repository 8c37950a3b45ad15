/**
 * A small cluster in network namespaces: nodes on one segment, outside hosts behind their links, pods attached through the product's
 * own CNI, a real daemon on every node. Nothing of it is in the machine's own network, and nothing of it outlives this process:
 * namespaces have no names and no mounts, they end when the last descriptor and process in them does.
 *
 *   await using sandbox = await Sandbox.open(world, { directory, self, dataplane });
 *   await sandbox.change("apply", manifests, "file.yaml");
 *   using prober = new Prober();
 *   const results = await prober.run(sandbox.probes(expectation));
 */
import { join } from "node:path";
import { type Address, addressFamily, cidrPrefix, type Family, hostCidr } from "../model/address.ts";
import type { ResourceOutcome, StatusReply, WaitKey } from "../api/protocol.ts";
import { NODE_ADDRESSES, SHARED_LINK } from "./address_plan.ts";
import { cniAdd, cniDel, type PodAttachment } from "./cni_call.ts";
import { type Expectation, type Party, partyName } from "./expectation.ts";
import { type HostPort, translatePorts } from "./host_port.ts";
import { Machine } from "./machine.ts";
import { NodeDaemon } from "./node_daemon.ts";
import { protocolNumber } from "./packets.ts";
import type { Probe, ProbeEnd } from "./prober.ts";
import type { ScenarioPod, ScenarioWorld } from "./scenario.ts";
import type { SelfCommand } from "./self.ts";
import { worldManifest } from "./world_manifest.ts";

/** CNI calls at once, as a kubelet would make them. */
const ATTACH_AT_ONCE = 4;

export interface SandboxOptions {
  /** Of the sandbox's own, for sockets and the datastore; the caller removes it. At most about 60 characters. */
  readonly directory: string;
  readonly self: SelfCommand;
  readonly dataplane: string;
  /** Whether nodes forward for services; absent: no. */
  readonly services?: boolean;
  readonly signal?: AbortSignal;
}

export class Sandbox implements AsyncDisposable {
  readonly world: ScenarioWorld;
  readonly nodes = new Map<string, Machine>();
  readonly hosts = new Map<string, Machine>();
  /** By pod id. */
  readonly pods = new Map<string, Machine>();
  readonly #options: SandboxOptions;
  readonly #wire: Machine;
  readonly #nodeLinks = new Map<string, Map<string, Address[]>>();
  readonly #podAddresses = new Map<string, readonly Address[]>();
  readonly #daemons: NodeDaemon[] = [];
  readonly #open = new AsyncDisposableStack();
  /** Segments and ports of the wire so far, for their names. */
  #segments = 0;
  #ports = 0;

  private constructor(world: ScenarioWorld, options: SandboxOptions) {
    this.world = world;
    this.#options = options;
    this.#wire = this.#machine("wire", "the wire");
  }

  /**
   * Everything up: daemons answer, pods have addresses, all of it is in force on every node.
   * @throws {KernelError} EPERM where namespaces may not be made; {ManxError} where a daemon or an attachment fails
   */
  static async open(world: ScenarioWorld, options: SandboxOptions): Promise<Sandbox> {
    const sandbox = await Sandbox.build(world, options);
    try {
      await sandbox.#startDaemons();
      await sandbox.change("apply", worldManifest(world, (node) => sandbox.nodeAddresses(node)), "world");
      await sandbox.#attachAll();
      sandbox.#translate();
      return sandbox;
    } catch (error) {
      await sandbox[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The machines and what joins them: no daemons, and pods are yet to be attached. @throws {KernelError} EPERM */
  static async build(world: ScenarioWorld, options: SandboxOptions): Promise<Sandbox> {
    const sandbox = new Sandbox(world, options);
    try {
      sandbox.#buildNodes();
      sandbox.#buildHosts();
      return sandbox;
    } catch (error) {
      await sandbox[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Applies or deletes manifests and returns when they are in force on every node. @throws {ManxError} where they are refused */
  async change(
    verb: "apply" | "delete",
    text: string,
    file: string,
  ): Promise<{ readonly results: readonly ResourceOutcome[]; readonly inForceMs: number }> {
    const results = await this.#daemons[0]!.apply(verb, text, file);
    const storedMs = performance.now();
    await this.inForce(results);
    return { results, inForceMs: performance.now() - storedMs };
  }

  /** Returns when `keys` are in force on every node. @throws {ManxError} code `deadline` */
  async inForce(keys: readonly WaitKey[]): Promise<void> {
    await Promise.all(this.#daemons.map((daemon) => daemon.wait(keys)));
  }

  async statuses(): Promise<readonly StatusReply[]> {
    return await Promise.all(this.#daemons.map((daemon) => daemon.status()));
  }

  /** A node's addresses on the shared segment, or on `link`; IPv4 first. */
  nodeAddresses(node: string, link: string = SHARED_LINK): readonly Address[] {
    return this.#nodeLinks.get(node)?.get(link) ?? [];
  }

  /** IPv4 first; none before it is attached. */
  podAddresses(id: string): readonly Address[] {
    return this.#podAddresses.get(id) ?? [];
  }

  /** Of whatever a line or placeholder names. */
  addressesOf(party: Party): readonly Address[] {
    if (party.kind === "pod") return this.podAddresses(party.id);
    if (party.kind === "node") return this.nodeAddresses(party.name, party.link);
    return this.world.hosts.filter((host) => host.name === party.name).map((host) => host.address);
  }

  /** Attaches `pod` through CNI on its node; its Pod object is the caller's to apply. @throws {ManxError} */
  async attach(pod: ScenarioPod): Promise<readonly Address[]> {
    if (!this.pods.has(pod.id)) this.pods.set(pod.id, this.#machine(pod.id, `pod ${pod.id}`));
    const addresses = await cniAdd(this.#attachment(pod));
    this.#podAddresses.set(pod.id, addresses);
    this.#routeHostsTo(pod.node, addresses);
    return addresses;
  }

  /** Returns when every node knows every attachment: an ADD answers for its own node alone. @throws {ManxError} code `deadline` */
  async settled(): Promise<void> {
    if (this.#daemons.length > 1) await this.inForce(await this.#daemons[0]!.list("workloadendpoints"));
  }

  /** Detaches it; its namespace stays. @throws {ManxError} */
  async detach(pod: ScenarioPod): Promise<void> {
    await cniDel(this.#attachment(pod));
    this.#podAddresses.delete(pod.id);
  }

  /** What has to be tried for a line: each of its pairs in each family. */
  probes(expectation: Expectation): readonly Probe[] {
    const { protocol, port, allow } = expectation;
    return expectation.pairs.flatMap(({ from, to, families }) =>
      families.map((family): Probe => {
        const address = this.#address(to, family);
        const behind = this.#translated(to, protocol, port);
        const target = behind === undefined
          ? { end: this.end(to), address, port }
          : { end: this.end(behind.party), address: this.#address(behind.party, family), port: behind.port };
        return {
          from: this.end(from),
          source: this.#address(from, family),
          to: address,
          protocol,
          port,
          target,
          expect: allow ? "allow" : "deny",
        };
      })
    );
  }

  end(party: Party): ProbeEnd {
    const machines = { pod: this.pods, host: this.hosts, node: this.nodes }[party.kind];
    const machine = machines.get(party.kind === "pod" ? party.id : party.name);
    if (machine === undefined) throw new Error(`${partyName(party)} is not in the sandbox`);
    return {
      name: partyName(party.kind === "node" ? { ...party, link: SHARED_LINK } : party),
      namespace: machine.namespace,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#open.disposeAsync();
  }

  #address(party: Party, family: Family): Address {
    const address = this.addressesOf(party).find((address) => addressFamily(address) === family);
    if (address === undefined) throw new Error(`${partyName(party)} has no IPv${family} address`);
    return address;
  }

  #translated(to: Party, protocol: string, port: number): { readonly party: Party; readonly port: number } | undefined {
    if (to.kind !== "node") return undefined;
    const entry = this.world.dnat.find((dnat) =>
      dnat.node === to.name && dnat.protocol === protocol && dnat.port === port
    );
    return entry && { party: { kind: "pod", id: entry.to }, port: entry.toPort };
  }

  #machine(name: string, title: string): Machine {
    return this.#open.use(new Machine(name, `${title} of the sandbox`));
  }

  #segment(): string {
    const name = `seg${this.#segments++}`;
    this.#wire.addBridge(name);
    return name;
  }

  #plug(machine: Machine, segment: string, link: string): void {
    machine.plugInto(this.#wire, segment, `port${this.#ports++}`, link);
  }

  #buildNodes(): void {
    const { nodes, families } = this.world;
    const shared = this.#segment();
    for (const [index, { name }] of nodes.entries()) {
      const machine = this.#machine(name, `node ${name}`);
      machine.setSysctls(nodeSysctls(families));
      this.#plug(machine, shared, SHARED_LINK);
      const addresses = families.map((family) => NODE_ADDRESSES[family].node(index));
      for (const address of addresses) {
        machine.addAddress(SHARED_LINK, address, cidrPrefix(NODE_ADDRESSES[addressFamily(address)].shared));
      }
      this.nodes.set(name, machine);
      this.#nodeLinks.set(name, new Map([[SHARED_LINK, addresses]]));
    }
    for (const host of this.world.hosts.filter((host) => host.link === SHARED_LINK)) {
      this.#hostOnSegment(host, shared);
    }
  }

  /** Hosts behind links of their own: one segment for each link of each node. */
  #buildHosts(): void {
    const segments = new Map<string, string>();
    for (const host of this.world.hosts.filter((host) => host.link !== SHARED_LINK)) {
      const key = `${host.node} ${host.link}`;
      let segment = segments.get(key);
      if (segment === undefined) {
        segments.set(key, segment = this.#segment());
        this.#addNodeLink(host.node, host.link, segment, segments.size - 1);
      }
      this.#hostOnSegment(host, segment);
    }
  }

  #addNodeLink(node: string, link: string, segment: string, index: number): void {
    const machine = this.nodes.get(node)!;
    this.#plug(machine, segment, link);
    const addresses = this.world.families.map((family) => NODE_ADDRESSES[family].link(index));
    for (const address of addresses) {
      machine.addAddress(link, address);
      for (const [name, other] of this.nodes) {
        if (name !== node) {
          other.addHostRoute(SHARED_LINK, address, this.#onSharedSegment(node, addressFamily(address)));
        }
      }
    }
    this.#nodeLinks.get(node)!.set(link, addresses);
  }

  #onSharedSegment(node: string, family: Family): Address {
    return this.nodeAddresses(node).find((address) => addressFamily(address) === family)!;
  }

  #hostOnSegment(host: ScenarioWorld["hosts"][number], segment: string): void {
    const machine = this.#machine(host.name, `host ${host.name}`);
    this.hosts.set(host.name, machine);
    const family = addressFamily(host.address);
    if (family === 6) machine.setSysctls(withoutDad);
    this.#plug(machine, segment, "eth0");
    machine.addAddress("eth0", host.address);
    const gateway = this.nodeAddresses(host.node, host.link).find((address) => addressFamily(address) === family)!;
    const shared = host.link === SHARED_LINK;
    machine.addLinkRoute("eth0", shared ? NODE_ADDRESSES[family].shared : hostCidr(gateway), host.address);
    machine.addDefaultRoute("eth0", gateway);
    for (const [name, node] of this.nodes) {
      if (shared || name === host.node) node.addLinkRoute(host.link, hostCidr(host.address));
      else node.addHostRoute(SHARED_LINK, host.address, this.#onSharedSegment(host.node, family));
    }
  }

  /** Hosts on the shared segment reach a pod through its own node, so that both ways are the same. */
  #routeHostsTo(node: string, addresses: readonly Address[]): void {
    if (this.world.nodes.length < 2) return;
    for (const host of this.world.hosts.filter((host) => host.link === SHARED_LINK)) {
      for (const address of addresses.filter((address) => addressFamily(address) === addressFamily(host.address))) {
        this.hosts.get(host.name)!.addHostRoute("eth0", address, this.#onSharedSegment(node, addressFamily(address)));
      }
    }
  }

  async #startDaemons(): Promise<void> {
    const { directory, self, dataplane, services, signal } = this.#options;
    const starts = this.world.nodes.map(({ name }, index) =>
      NodeDaemon.start({
        node: name,
        namespace: this.nodes.get(name)!.namespace,
        addresses: this.nodeAddresses(name),
        families: this.world.families,
        directory: join(directory, `n${index}`),
        datastore: join(directory, "datastore.db"),
        dataplane,
        services,
        self,
      }, signal)
    );
    // Those that did start are stopped even where another did not.
    const outcomes = await Promise.allSettled(starts);
    for (const outcome of outcomes) {
      if (outcome.status === "fulfilled") this.#daemons.push(this.#open.use(outcome.value));
    }
    const failed = outcomes.find((outcome) => outcome.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  async #attachAll(): Promise<void> {
    const waiting = [...this.world.pods];
    const attach = async () => {
      for (let pod = waiting.shift(); pod !== undefined; pod = waiting.shift()) {
        this.#options.signal?.throwIfAborted();
        await this.attach(pod);
      }
    };
    const outcomes = await Promise.allSettled(Array.from({ length: ATTACH_AT_ONCE }, attach));
    const failed = outcomes.find((outcome) => outcome.status === "rejected");
    if (failed !== undefined) throw failed.reason;
    await this.settled();
  }

  #attachment(pod: ScenarioPod): PodAttachment {
    const index = this.world.nodes.findIndex((node) => node.name === pod.node);
    return {
      self: this.#options.self,
      socket: this.#daemons[index]!.socket,
      nodeNamespace: this.nodes.get(pod.node)!.namespace,
      podNamespace: this.pods.get(pod.id)!.namespace,
      containerId: `lab-${pod.namespace}-${pod.name}`,
      namespace: pod.namespace,
      name: pod.name,
    };
  }

  #translate(): void {
    for (const [name, machine] of this.nodes) {
      const ports = this.world.dnat.filter((dnat) => dnat.node === name).flatMap(({ protocol, port, to, toPort }) =>
        this.podAddresses(to).map((address): HostPort => ({
          family: addressFamily(address),
          protocol: protocolNumber(protocol),
          port,
          to: address,
          toPort,
        }))
      );
      translatePorts(machine.namespace, ports);
    }
  }
}

/** No duplicate address detection: nobody else is there, and its second of waiting would be in every run. */
const withoutDad = { "ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0" };

/** What an administrator sets on a node: it forwards, and does not drop what comes in another way than it would answer. */
const nodeSysctls = (families: readonly Family[]): Readonly<Record<string, string>> => ({
  "ipv4/ip_forward": "1",
  "ipv4/conf/all/rp_filter": "0",
  "ipv4/conf/default/rp_filter": "0",
  ...(families.includes(6) ? { ...withoutDad, "ipv6/conf/all/forwarding": "1" } : {}),
});
