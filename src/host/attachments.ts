/** Connecting pods: CNI ADD, DEL, CHECK, GC and STATUS, each all or nothing. */
import { statSync } from "node:fs";
import {
  type Address,
  addressFamily,
  cidrAddress,
  formatAddress,
  formatCidr,
  parseAddress,
  parseCidr,
} from "../model/address.ts";
import { keyText } from "../model/resource.ts";
import type { AddReply, AddRequest, CheckRequest, DelRequest, GcRequest } from "../sdk/attach.ts";
import type { Datastore, Versioned } from "../sdk/datastore.ts";
import { explainError, ManxError, UnavailableError } from "../sdk/errors.ts";
import type { Ipam } from "../sdk/ipam.ts";
import type { Clock, Log } from "../sdk/plugin.ts";
import type { Attachment, Observed, PodWiring } from "../sdk/wiring.ts";
import { WORKLOAD_ENDPOINT } from "./resources/core_source.ts";
import {
  attachmentOf,
  type AttachmentPlan,
  endpointResource,
  identify,
  interfaceOf,
  planAttachment,
  type StoredAttachment,
  storedOf,
  wiringOf,
} from "./endpoint.ts";
import { createGate } from "./gate.ts";
import type { Wanted } from "./reconcile.ts";
import { createTimings, round, type Timings } from "./timing.ts";

/** From request to answer. */
export const ADD_DEADLINE_MS = 30_000;
export const DEL_DEADLINE_MS = 30_000;
/** Of which the wait for policy may take as much: it ends with a reason, the whole only with a timeout. */
export const POLICY_DEADLINE_MS = 20_000;
/** An ADD that comes while the daemon starts waits as long for it. */
export const READY_DEADLINE_MS = 5_000;
/** DEL answers after that even where the policy of the gone pod still stands: its link is down. */
const GONE_DEADLINE_MS = 2_000;
const CHECK_DEADLINE_MS = 2_000;
const STATUS_DEADLINE_MS = 1_000;
const UNDO_DEADLINE_MS = 10_000;

/** An attachment cannot be made or is not as it should be; `cni` is the number the runtime is told. */
export class AttachmentError extends ManxError {
  override readonly name = "AttachmentError";
  constructor(code: string, readonly cni: number, message: string, options?: ErrorOptions) {
    super(code, message, options);
  }
}

export interface AttachmentParts {
  readonly node: string;
  readonly datastore: Datastore;
  readonly ipam: Ipam;
  readonly wiring: PodWiring;
  readonly reconciler: {
    readonly synced: boolean;
    programmed(wanted: readonly Wanted[], deadlineMs: number, signal?: AbortSignal): Promise<void>;
  };
  readonly log: Log;
  readonly clock: Clock;
  /** Default: whether the path can be entered and is not the daemon's own namespace. @throws {AttachmentError} */
  readonly checkNamespace?: (path: string) => void;
}

export interface Attachments {
  /** Takes up what is stored and removes links and leases that belong to nothing; once, after the datastore is in sync. */
  adopt(signal: AbortSignal): Promise<void>;
  add(request: AddRequest): Promise<AddReply>;
  del(request: DelRequest): Promise<void>;
  check(request: CheckRequest): Promise<void>;
  gc(request: GcRequest): Promise<void>;
  ready(signal?: AbortSignal): Promise<void>;
  readonly counters: { readonly adds: number; readonly addFailures: number; readonly dels: number };
  readonly timings: Readonly<Record<"add" | "lease" | "wiring" | "policy" | "del", Timings>>;
}

export function createAttachments(parts: AttachmentParts): Attachments {
  const { node, datastore, ipam, wiring, reconciler, log, clock } = parts;
  const checkNamespace = parts.checkNamespace ?? refuseUnusableNamespace;
  const gate = createGate();
  const stored = new Map<string, StoredAttachment>();
  const adopted = Promise.withResolvers<void>();
  let isAdopted = false;
  const counters = { adds: 0, addFailures: 0, dels: 0 };
  const timings = {
    add: createTimings(),
    lease: createTimings(),
    wiring: createTimings(),
    policy: createTimings(),
    del: createTimings(),
  };

  async function untilAdopted(what: string): Promise<void> {
    if (isAdopted) return;
    const answered = new AbortController();
    await Promise.race([adopted.promise, clock.sleep(READY_DEADLINE_MS, answered.signal).catch(() => {})]);
    answered.abort();
    if (!isAdopted) {
      throw new UnavailableError(
        `${what}: found the datastore not in sync after ${READY_DEADLINE_MS} ms, wanted it in sync; try again later`,
      );
    }
  }

  async function adopt(signal: AbortSignal): Promise<void> {
    using _ = await gate.enterAlone();
    const interfaces = await readStored(signal);
    await collect(interfaces, signal);
    isAdopted = true;
    adopted.resolve();
    log.info("attachments taken up", { count: stored.size });
  }

  /** Fills `stored` anew. @returns host interfaces of every endpoint of this node, those of people included */
  async function readStored(signal: AbortSignal): Promise<Set<string>> {
    stored.clear();
    const interfaces = new Set<string>();
    for (const { key, value } of await datastore.list(WORKLOAD_ENDPOINT, signal)) {
      const name = interfaceOf(value, node);
      if (name !== undefined) interfaces.add(name);
      const attachment = attachmentOf(key, value, node);
      if (attachment !== undefined) stored.set(attachment.id, attachment);
    }
    return interfaces;
  }

  async function collect(interfaces: ReadonlySet<string>, signal: AbortSignal): Promise<void> {
    const links = await wiring.collect(interfaces, signal);
    if (links.length > 0) log.info("removed links that belong to no endpoint", { links: links.join(" ") });
    const { released } = await ipam.collect(
      new Set([...stored.values()].map((attachment) => attachment.handle)),
      signal,
    );
    if (released.length > 0) log.info("released leases that belong to no endpoint", { count: released.length });
  }

  async function add(request: AddRequest): Promise<AddReply> {
    const startedMs = clock.nowMs();
    try {
      const plan = planAttachment(request, node);
      await untilAdopted(`ADD ${describeName(plan)}`);
      using _ = await gate.enter(plan.id);
      checkNamespace(plan.netns);
      const reply = await repeat(plan) ?? await attach(plan, startedMs);
      counters.adds++;
      timings.add.add(clock.nowMs() - startedMs);
      return reply;
    } catch (error) {
      counters.addFailures++;
      throw error;
    }
  }

  /** A second ADD: the first one's reply where all is as it was made; clears away what an interrupted one left. */
  async function repeat(plan: AttachmentPlan): Promise<AddReply | undefined> {
    const before = stored.get(plan.id);
    if (before === undefined) return undefined;
    const found = await datastore.get(before.key);
    const observed = found === undefined ? undefined : await wiring.observe(wiringOf(before, plan.netns));
    if (found === undefined || observed === undefined) {
      await detach(plan, before);
      return undefined;
    }
    const same = storedOf(plan, plan.addresses ?? before.addresses);
    if (observed.differences.length > 0 || !sameAttachment(same, before)) {
      throw new AttachmentError(
        "exists",
        100,
        `ADD ${describeName(plan)}: found it attached already as ${keyText(before.key)}${
          observed.differences.length > 0 ? ` (${observed.differences.join("; ")})` : " with other settings"
        }, wanted a DEL first`,
      );
    }
    await reconciler.programmed([wantedOf(found)], POLICY_DEADLINE_MS);
    return replyOf(plan, observed, { leaseMs: 0, wiringMs: 0, policyMs: 0, totalMs: 0 });
  }

  async function attach(plan: AttachmentPlan, startedMs: number): Promise<AddReply> {
    const signal = AbortSignal.timeout(ADD_DEADLINE_MS);
    await using undo = new AsyncDisposableStack();
    const undoing = (what: string, step: (signal: AbortSignal) => Promise<void>) =>
      undo.defer(async () => {
        try {
          await step(AbortSignal.timeout(UNDO_DEADLINE_MS));
        } catch (error) {
          log.error(`ADD ${describeName(plan)} failed and its ${what} could not be taken back`, {
            error: explainError(error),
          });
        }
      });

    const leaseStartMs = clock.nowMs();
    // Before the commit, whose outcome a failure may leave unknown; releasing what is not there is no error.
    undoing("lease and endpoint", async (signal) => {
      stored.delete(plan.id);
      await ipam.release(plan.handle, [{ key: plan.key, value: null }], signal);
    });
    // The kernel makes and wires the link while the disk takes the lease. An unknown interface drops, so it may come up before its
    // policy, and before the commit: what a crash leaves of it is collected.
    let wiringMs = 0;
    const wired = new EarlyWiring(async (addresses) => {
      const beganMs = clock.nowMs();
      const observed = await wiring.apply(wiringOf(storedOf(plan, addresses), plan.netns), "fail", signal);
      wiringMs = clock.nowMs() - beganMs;
      return observed;
    });
    const unwire = async (signal: AbortSignal) => {
      await wired.settled();
      await wiring.remove(plan.hostInterface, signal);
    };
    undoing("link", unwire);
    wiring.begin?.(linkOf(plan));
    const lease = await ipam.acquire({
      handle: plan.handle,
      node,
      families: plan.families,
      ...(plan.addresses === undefined ? {} : { addresses: plan.addresses }),
      ...(plan.pools === undefined ? {} : { pools: plan.pools }),
      attributes: {
        namespace: plan.key.namespace,
        ...(plan.pod === undefined ? {} : { pod: plan.pod }),
        containerId: plan.name.containerId,
        network: plan.name.network,
      },
      also: ({ addresses }) => {
        wired.begin(addresses);
        return [{ key: plan.key, value: endpointResource(plan, addresses, node, clock.wallMs()) }];
      },
    }, signal);
    const committed = await datastore.get(plan.key, signal);
    if (committed === undefined) {
      throw new AttachmentError(
        "conflict",
        11,
        `ADD ${describeName(plan)}: found ${keyText(plan.key)} deleted at once by somebody else, wanted it to stand`,
      );
    }
    const attachment = storedOf(plan, lease.addresses);
    stored.set(plan.id, attachment);
    const leasedMs = clock.nowMs();

    let policyMs = 0;
    const inForce = reconciler.programmed([wantedOf(committed)], POLICY_DEADLINE_MS, signal).then(() =>
      policyMs = clock.nowMs() - leasedMs
    );
    inForce.catch(() => {});
    const observed = await wired.of(lease.addresses, () => unwire(signal));
    await inForce;
    const reply = replyOf(plan, observed, {
      leaseMs: round(leasedMs - leaseStartMs),
      wiringMs: round(wiringMs),
      policyMs: round(policyMs),
      totalMs: round(clock.nowMs() - startedMs),
    });
    timings.lease.add(reply.timing.leaseMs);
    timings.wiring.add(reply.timing.wiringMs);
    timings.policy.add(reply.timing.policyMs);
    undo.move();
    return reply;
  }

  async function del(request: DelRequest): Promise<void> {
    const startedMs = clock.nowMs();
    const identity = identify(request);
    await untilAdopted(`DEL ${describeName({ name: request })}`);
    using _ = await gate.enter(identity.id);
    await detach({ ...identity, name: request }, stored.get(identity.id));
    counters.dels++;
    timings.del.add(clock.nowMs() - startedMs);
  }

  /** Repeatable: each step is, and nothing is forgotten before the last one has succeeded. */
  async function detach(
    identity: {
      readonly id: string;
      readonly handle: string;
      readonly hostInterface: string;
      readonly name: AddRequest | DelRequest | AttachmentPlan["name"];
    },
    before: StoredAttachment | undefined,
  ): Promise<void> {
    await unmake(identity, before);
    if (before !== undefined) await awaitGone(`DEL ${describeName(identity)}`, [before]);
  }

  async function unmake(
    identity: { readonly id: string; readonly handle: string; readonly hostInterface: string },
    before: StoredAttachment | undefined,
  ): Promise<void> {
    const signal = AbortSignal.timeout(DEL_DEADLINE_MS);
    // Link first: from here no packet of the pod passes, whatever becomes of the rest.
    await wiring.remove(identity.hostInterface, signal);
    await ipam.release(identity.handle, before === undefined ? [] : [{ key: before.key, value: null }], signal);
    stored.delete(identity.id);
  }

  async function awaitGone(title: string, attachments: readonly StoredAttachment[]): Promise<void> {
    try {
      await reconciler.programmed(attachments.map(({ key }) => ({ key, gone: true })), GONE_DEADLINE_MS);
    } catch (error) {
      log.warn(`${title}: gone, its policy not yet`, { error: explainError(error) });
    }
  }

  async function check(request: CheckRequest): Promise<void> {
    const identity = identify(request);
    const title = `CHECK ${describeName({ name: request })}`;
    await untilAdopted(title);
    using _ = await gate.enter(identity.id);
    const differs = (found: string, wanted: string) =>
      new AttachmentError("differs", 104, `${title}: found ${found}, wanted ${wanted}`);
    const attachment = stored.get(identity.id);
    const found = attachment === undefined ? undefined : await datastore.get(attachment.key);
    if (attachment === undefined || found === undefined) {
      throw differs("no such attachment on this node", "one made by ADD");
    }
    checkNamespace(request.netns);
    const wanted = new Set(request.addresses.map((text) => readAddress(text)));
    const missing = [...wanted].filter((address) => address === undefined || !attachment.addresses.includes(address));
    if (missing.length > 0 || wanted.size !== attachment.addresses.length) {
      throw differs(
        `the lease ${attachment.addresses.map(formatAddress).join(", ") || "empty"}`,
        `${request.addresses.join(", ") || "no address"} as in prevResult`,
      );
    }
    const observed = await wiring.observe(wiringOf(attachment, request.netns));
    if (observed === undefined) throw differs(`no link ${attachment.hostInterface}`, "the one made by ADD");
    if (observed.differences.length > 0) throw differs(observed.differences.join("; "), "the link as ADD made it");
    await reconciler.programmed([wantedOf(found)], CHECK_DEADLINE_MS);
  }

  async function gc(request: GcRequest): Promise<void> {
    await untilAdopted(`GC ${request.network}`);
    using _ = await gate.enterAlone();
    const signal = AbortSignal.timeout(DEL_DEADLINE_MS);
    const valid = new Set(
      request.valid.map(({ containerId, ifName }) => identify({ network: request.network, containerId, ifName }).id),
    );
    await readStored(signal);
    const stale = [...stored.values()].filter((attachment) =>
      attachment.name.network === request.network && !valid.has(attachment.id)
    );
    for (const attachment of stale) await unmake(attachment, attachment);
    if (stale.length > 0) await awaitGone(`GC ${request.network}`, stale);
    if (stale.length > 0) log.info("GC: removed attachments", { network: request.network, count: stale.length });
    await collect(await readStored(signal), signal);
  }

  async function ready(signal?: AbortSignal): Promise<void> {
    const notAvailable = (message: string, cause?: unknown) =>
      new AttachmentError("unavailable", 50, `STATUS: ${message}`, { cause });
    if (!reconciler.synced || !isAdopted) throw notAvailable("found the datastore not in sync, wanted it in sync");
    try {
      await reconciler.programmed([], STATUS_DEADLINE_MS, signal);
    } catch (error) {
      throw notAvailable(`found policy not in force (${explainError(error)}), wanted it in force`);
    }
    try {
      await ipam.ready(signal);
    } catch (error) {
      throw notAvailable(explainError(error));
    }
  }

  return { adopt, add, del, check, gc, ready, counters, timings };
}

/** Wires a pod for the addresses that its lease is planned with, as soon as they are known. */
class EarlyWiring {
  readonly #wire: (addresses: readonly Address[]) => Promise<Observed>;
  #begun: { readonly addresses: readonly Address[]; readonly observed: Promise<Observed> } | undefined;

  constructor(wire: (addresses: readonly Address[]) => Promise<Observed>) {
    this.#wire = wire;
  }

  /** The first plan counts: another is rare (somebody else took the addresses), and `of` sees to it. */
  begin(addresses: readonly Address[]): void {
    if (this.#begun !== undefined) return;
    const observed = this.#wire(addresses);
    // Nobody may be waiting yet.
    observed.catch(() => {});
    this.#begun = { addresses, observed };
  }

  /** Resolves when nothing is under way. Never rejects. */
  async settled(): Promise<void> {
    await this.#begun?.observed.catch(() => {});
  }

  /** What was wired for `addresses`; anew where it was wired for others, after `unwire`. */
  async of(addresses: readonly Address[], unwire: () => Promise<void>): Promise<Observed> {
    if (this.#begun !== undefined && this.#begun.addresses.join() !== addresses.join()) {
      await unwire();
      this.#begun = undefined;
    }
    this.begin(addresses);
    return await this.#begun!.observed;
  }
}

const linkOf = ({ id, netns, name, hostInterface, mac, mtu }: AttachmentPlan): Omit<Attachment, "addresses"> => ({
  id,
  netns,
  interfaceName: name.ifName,
  hostInterface,
  ...(mac === undefined ? {} : { mac }),
  ...(mtu === undefined ? {} : { mtu }),
});

const wantedOf = (found: Versioned): Wanted => ({ key: found.key, revision: found.revision });

const describeName = (
  { name }: { readonly name: { readonly network: string; readonly containerId: string; readonly ifName: string } },
): string => `${name.containerId.slice(0, 12)}/${name.ifName} of network ${name.network}`;

function sameAttachment(a: StoredAttachment, b: StoredAttachment): boolean {
  return keyText(a.key) === keyText(b.key) && a.mac === b.mac && a.mtu === b.mtu &&
    a.addresses.toSorted().join() === b.addresses.toSorted().join() &&
    JSON.stringify(a.routes ?? null) === JSON.stringify(b.routes ?? null);
}

function replyOf(plan: AttachmentPlan, observed: Observed, timing: AddReply["timing"]): AddReply {
  const gatewayOf = (family: 4 | 6) => observed.gateways.find((gateway) => addressFamily(gateway) === family);
  const addresses = observed.addresses.map((cidr) => {
    const gateway = gatewayOf(addressFamily(cidrAddress(cidr)));
    return { address: formatCidr(cidr), gateway: gateway === undefined ? "" : formatAddress(gateway) };
  });
  const routes = plan.routes === undefined
    ? observed.gateways.map((gateway) => ({
      dst: addressFamily(gateway) === 4 ? "0.0.0.0/0" : "::/0",
      gw: formatAddress(gateway),
    }))
    : plan.routes.map(({ destination, via }) => ({
      dst: formatCidr(destination),
      ...(via === undefined ? {} : { gw: formatAddress(via) }),
    }));
  const { interfaceName, mac, hostInterface, hostMac, mtu } = observed;
  return { interfaceName, mac, hostInterface, hostMac, mtu, addresses, routes, timing };
}

function readAddress(text: string): Address | undefined {
  try {
    return text.includes("/") ? cidrAddress(parseCidr(text)) : parseAddress(text);
  } catch {
    return undefined;
  }
}

/** Of the process, whose namespace never changes. */
let ownNamespace: { readonly ino: number; readonly dev: number } | undefined;

function refuseUnusableNamespace(path: string): void {
  const wanted = "the path of a network namespace";
  let found: { ino: number; dev: number };
  try {
    found = statSync(path);
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code ?? "an error";
    throw new AttachmentError(
      "unknown-container",
      3,
      `netns ${path}: found ${code === "ENOENT" ? "no such file" : code}, wanted ${wanted}`,
    );
  }
  ownNamespace ??= statSync("/proc/self/ns/net");
  const own = ownNamespace;
  if (found.ino === own.ino && found.dev === own.dev) {
    throw new AttachmentError(
      "refused",
      8,
      `netns ${path}: found the daemon's own namespace, wanted ${wanted} of a pod`,
    );
  }
}
