/** The block IPAM of one node over any datastore. */
import { type Cidr, cidrAddress, cidrContains } from "../../../src/model/address.ts";
import { keyText, type Resource } from "../../../src/model/resource.ts";
import type { Datastore, Revision, Write } from "../../../src/sdk/datastore.ts";
import { ConflictError, CorruptError, explainError, RefusedError, UnavailableError } from "../../../src/sdk/errors.ts";
import type { Handle, Ipam, IpamReport, Lease, LeaseRequest, PoolUsage } from "../../../src/sdk/ipam.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import { type Block, BLOCK_KIND, blockKey, blockNameCidr, readBlock } from "./blocks.ts";
import { BlockListNeeded, claimSalt, Draft, type NodeState, type OwnBlock, type Place } from "./plan.ts";
import { PoolBook } from "./pool_book.ts";
import { type BlockIpamConfig, poolCapacity } from "./pools.ts";
import { enter, type Entered, type Item, type Round } from "./round.ts";

/** Times that a commit is planned again because another node, or our own lost answer, changed a block. */
const ATTEMPTS_MAX = 32;
/** A commit that has no answer by then has an unknown outcome: its blocks are read again. */
const COMMIT_DEADLINE_MS = 15_000;

/** What a failed commit leaves to do. */
interface Again {
  readonly items: readonly Item[];
  /** One by one, to find the item at fault. */
  readonly alone: boolean;
  /** Another node was first at a new block. */
  readonly claimLost: boolean;
}

type StoredBlock =
  | { readonly name: string; readonly cidr: Cidr; readonly block: Block; readonly revision: Revision }
  | { readonly name: string; readonly cidr: Cidr | undefined; readonly problem: string };

/** Opened by `BlockIpam.open`; one writer for each node name. */
export class BlockIpam implements Ipam {
  readonly #host: Host;
  readonly #store: Datastore;
  readonly #book: PoolBook;
  readonly #closing = new AbortController();
  readonly #state: {
    node: string;
    cooldownSeconds: number;
    own: Map<string, OwnBlock>;
    roomy: Set<string>;
    empty: Set<string>;
    taken: Map<string, { readonly cidr: Cidr; readonly node: string }>;
    holdings: Map<Handle, readonly Place[]>;
  };
  /** Blocks whose stored state is not known for sure. */
  readonly #doubtful = new Set<string>();
  #queue: Item[] = [];
  #running: Promise<void> | undefined;

  private constructor(config: BlockIpamConfig, host: Host, book: PoolBook) {
    this.#host = host;
    this.#book = book;
    this.#store = host.datastore;
    this.#state = {
      node: host.node,
      cooldownSeconds: config.cooldownSeconds,
      own: new Map(),
      roomy: new Set(),
      empty: new Set(),
      taken: new Map(),
      holdings: new Map(),
    };
  }

  /** @throws {ConfigError} where a configured pool contradicts a stored one */
  static async open(config: BlockIpamConfig, host: Host, signal: AbortSignal): Promise<BlockIpam> {
    const ipam = new BlockIpam(config, host, await PoolBook.open(config.pools, host, signal));
    try {
      await ipam.#listBlocks(signal, true);
      return ipam;
    } catch (error) {
      await ipam[Symbol.asyncDispose]();
      throw error;
    }
  }

  acquire(request: LeaseRequest, signal?: AbortSignal): Promise<Lease> {
    if (request.node !== this.#state.node) {
      const reason = `lease for ${request.handle}: found node ${request.node}, wanted this node, ${this.#state.node}`;
      return Promise.reject(new RefusedError([reason]));
    }
    if (request.handle === "" || (request.families.length === 0 && (request.addresses ?? []).length === 0)) {
      const reason = `lease for ${JSON.stringify(request.handle)}: wanted a handle and at least one family`;
      return Promise.reject(new RefusedError([reason]));
    }
    return this.#enqueue<Lease>((resolve, reject) => ({ request, signal, resolve, reject }));
  }

  release(handle: Handle, also: readonly Write[] = [], signal?: AbortSignal): Promise<void> {
    return this.#enqueue<void>((resolve, reject) => ({ handle, also, signal, resolve, reject }));
  }

  async collect(live: ReadonlySet<Handle>, signal?: AbortSignal): Promise<IpamReport> {
    signal?.throwIfAborted();
    const dead = [...this.#state.holdings.keys()].filter((handle) => !live.has(handle));
    await Promise.all(dead.map((handle) => this.release(handle, [], signal)));
    await this.#enqueue<void>((resolve, reject) => ({ tidy: true, signal: undefined, resolve, reject }));
    return { released: dead.sort(), leases: this.#state.holdings.size };
  }

  async usage(signal?: AbortSignal): Promise<readonly PoolUsage[]> {
    const blocks = await this.#readBlocks(signal);
    return this.#book.pools.map((pool) => {
      const inside = blocks.filter(({ cidr }) => cidr !== undefined && cidrContains(pool.cidr, cidrAddress(cidr)));
      const used = inside.reduce((sum, found) => sum + ("block" in found ? found.block.leases.size : 0), 0);
      return { pool: pool.name, cidr: pool.cidr, capacity: poolCapacity(pool), used, blocks: inside.length };
    });
  }

  async ready(signal?: AbortSignal): Promise<void> {
    this.#assertOpen();
    try {
      this.#draft(0, false).probe();
    } catch (error) {
      if (!(error instanceof BlockListNeeded)) throw error;
      await this.#listBlocks(signal, false);
      this.#draft(0, true).probe();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new UnavailableError("address management is closed"));
    await this.#running;
    await this.#book[Symbol.asyncDispose]();
  }

  #assertOpen(): void {
    if (this.#closing.signal.aborted) throw this.#closing.signal.reason;
  }

  #enqueue<T>(make: (resolve: (value: T) => void, reject: (error: unknown) => void) => Item): Promise<T> {
    if (this.#closing.signal.aborted) return Promise.reject(this.#closing.signal.reason);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    this.#queue.push(make(resolve, reject));
    this.#running ??= new Promise<void>((done) => {
      // The next turn of the event loop: requests that arrived together share a commit. While one is in flight, the
      // next gathers by itself.
      setImmediate(() => void this.#run().then(done));
    });
    return promise;
  }

  async #run(): Promise<void> {
    while (this.#queue.length > 0) {
      const items = this.#queue.splice(0);
      try {
        await this.#process(items);
      } catch (error) {
        for (const item of items) item.reject(error); // those that are settled already take no notice
      }
    }
    this.#running = undefined;
  }

  #nodeState(): NodeState {
    const { pools, problems: poolProblems, labels } = this.#book;
    return { ...this.#state, pools, poolProblems, labels };
  }

  #draft(claimsLost: number, listed: boolean): Draft {
    return new Draft({
      state: this.#nodeState(),
      nowSeconds: Math.floor(this.#host.clock.wallMs() / 1000),
      salt: claimSalt(this.#state.node, claimsLost),
      listed,
    });
  }

  /** Settles every item: as many as fit in one commit, until none is left. */
  async #process(items: readonly Item[]): Promise<void> {
    let open = items;
    let attempt = 0;
    let claimsLost = 0;
    let listed = false;
    let alone = false;
    while (open.length > 0) {
      this.#assertOpen();
      await this.#readDoubtful();
      const draft = this.#draft(claimsLost, listed);
      let round: Round;
      try {
        round = enter(draft, open, alone);
      } catch (error) {
        if (!(error instanceof BlockListNeeded)) throw error;
        await this.#listBlocks(this.#closing.signal, false);
        listed = true;
        continue;
      }
      const { entered, refused, rest } = round;
      for (const { item, error } of refused) item.reject(error);
      const failed = await this.#commit(draft, entered);
      if (failed === undefined) {
        for (const { settle } of entered) settle();
        open = rest;
        attempt = 0;
        continue;
      }
      const again = this.#sift(draft, entered, failed, attempt);
      alone ||= again.alone;
      open = [...again.items, ...rest];
      attempt++;
      if (again.claimLost) claimsLost++;
      listed = false;
    }
  }

  /** Undefined, or why nothing was written. */
  async #commit(draft: Draft, entered: readonly Entered[]): Promise<{ readonly error: unknown } | undefined> {
    draft.returnSpareBlocks();
    const writes = [...draft.writes(), ...entered.flatMap(({ also }) => also)];
    if (writes.length === 0) return undefined;
    const deadline = new AbortController();
    const timer = setTimeout(
      () => deadline.abort(new UnavailableError(`committing leases: no answer in ${COMMIT_DEADLINE_MS} ms`)),
      COMMIT_DEADLINE_MS,
    );
    let revision: Revision;
    try {
      revision = await this.#store.commit(writes, deadline.signal);
    } catch (error) {
      return { error };
    } finally {
      clearTimeout(timer);
    }
    for (const block of draft.changed.values()) this.#adopt(block, revision);
    for (const name of draft.returned) this.#forget(name, true);
    return undefined;
  }

  /** Rejects the items that are at fault for a failed commit; returns those to try again. */
  #sift(
    draft: Draft,
    entered: readonly Entered[],
    { error }: { readonly error: unknown },
    attempt: number,
  ): Again {
    const blocks = new Map([...draft.changed.keys(), ...draft.returned].map((name) => [keyText(blockKey(name)), name]));
    const items = entered.map(({ item }) => item);
    const rejectAll = (reason: unknown) => {
      for (const item of items) item.reject(reason);
      return { items: [], alone: false, claimLost: false };
    };
    if (!(error instanceof ConflictError)) {
      // Written or not: only the store knows.
      for (const name of blocks.values()) this.#doubtful.add(name);
      return error instanceof RefusedError && items.length > 1
        ? { items, alone: true, claimLost: false }
        : rejectAll(error);
    }
    const lost = new Set(error.keys);
    const lostBlocks = [...blocks].filter(([text]) => lost.has(text)).map(([, name]) => name);
    const claimLost = lostBlocks.some((name) => !this.#state.own.has(name));
    for (const name of lostBlocks) this.#doubtful.add(name);
    const guilty = new Set(entered.filter(({ also }) => also.some(({ key }) => lost.has(keyText(key)))));
    for (const { item, also } of guilty) {
      item.reject(
        new ConflictError(also.map(({ key }) => keyText(key)).filter((text) => lost.has(text)), { cause: error }),
      );
    }
    const innocent = entered.filter((each) => !guilty.has(each)).map(({ item }) => item);
    if (guilty.size === 0 && lostBlocks.length === 0) {
      // The store names keys that are not ours: find the item by trying them one by one.
      for (const name of blocks.values()) this.#doubtful.add(name);
      return items.length > 1 ? { items, alone: true, claimLost: false } : rejectAll(error);
    }
    return attempt + 1 >= ATTEMPTS_MAX ? rejectAll(error) : { items: innocent, alone: false, claimLost };
  }

  #adopt(block: Block, revision: Revision): void {
    const before = this.#state.own.get(block.name);
    if (before?.block !== block) this.#index(before?.block, block);
    this.#state.own.set(block.name, { block, revision });
    this.#state.taken.set(block.name, { cidr: block.cidr, node: block.node });
    setMember(this.#state.roomy, block.name, block.free.length > 0);
    setMember(this.#state.empty, block.name, block.leases.size === 0);
  }

  /** `gone`: from the store too. */
  #forget(name: string, gone: boolean): void {
    const before = this.#state.own.get(name);
    if (before !== undefined) this.#index(before.block, undefined);
    this.#state.own.delete(name);
    this.#state.roomy.delete(name);
    this.#state.empty.delete(name);
    if (gone) this.#state.taken.delete(name);
  }

  /** Brings the handles' places from one state of a block to the next; a block knows only its own places. */
  #index(before: Block | undefined, after: Block | undefined): void {
    const { holdings } = this.#state;
    const name = (after ?? before)!.name;
    for (const [ordinal, entry] of before?.leases ?? []) {
      if (after?.leases.get(ordinal)?.handle === entry.handle) continue;
      const rest = (holdings.get(entry.handle) ?? []).filter((place) =>
        place.block !== name || place.ordinal !== ordinal
      );
      if (rest.length === 0) holdings.delete(entry.handle);
      else holdings.set(entry.handle, rest);
    }
    for (const [ordinal, entry] of after?.leases ?? []) {
      if (before?.leases.get(ordinal)?.handle === entry.handle) continue;
      holdings.set(entry.handle, [...holdings.get(entry.handle) ?? [], { block: name, ordinal }]);
    }
  }

  async #readDoubtful(): Promise<void> {
    for (const name of this.#doubtful) {
      let found;
      try {
        found = await this.#store.get(blockKey(name), this.#closing.signal);
      } catch (error) {
        if (!(error instanceof CorruptError)) throw error;
        this.#takeIn({ name, cidr: blockNameCidr(name), problem: explainError(error) });
        this.#doubtful.delete(name);
        continue;
      }
      if (found === undefined) this.#forget(name, true);
      else this.#takeIn(readStored(name, found.value, found.revision));
      this.#doubtful.delete(name);
    }
  }

  #takeIn(stored: StoredBlock): void {
    const { name } = stored;
    if ("block" in stored && stored.block.node === this.#state.node) return this.#adopt(stored.block, stored.revision);
    if (this.#state.own.has(name)) {
      this.#host.log.error("an address block of this node is no longer its own", {
        block: name,
        found: "block" in stored ? `node ${stored.block.node}` : stored.problem,
      });
      this.#forget(name, false);
    } else if ("problem" in stored) {
      this.#host.log.error("an address block cannot be read and is left alone", {
        block: name,
        problem: stored.problem,
      });
    }
    if (stored.cidr !== undefined) {
      this.#state.taken.set(name, { cidr: stored.cidr, node: "block" in stored ? stored.block.node : "" });
    }
  }

  /** Learns which blocks are claimed; `own`: and takes those of this node for ours. */
  async #listBlocks(signal: AbortSignal | undefined, own: boolean): Promise<void> {
    const blocks = await this.#readBlocks(signal);
    const names = new Set(blocks.map(({ name }) => name));
    for (const name of this.#state.taken.keys()) {
      // Ours are known by their commits; one that another has removed shows as a conflict.
      if (!names.has(name) && !this.#state.own.has(name)) this.#state.taken.delete(name);
    }
    for (const stored of blocks) {
      if (own) this.#takeIn(stored);
      else if (!this.#state.own.has(stored.name) && stored.cidr !== undefined) {
        const node = "block" in stored ? stored.block.node : "";
        this.#state.taken.set(stored.name, { cidr: stored.cidr, node });
        // Of this node, yet unknown here: our own claim whose answer was lost.
        if (node === this.#state.node) this.#doubtful.add(stored.name);
      }
    }
  }

  /** By a watch until it is in sync: unlike a list it also tells of blocks that cannot be read. */
  async #readBlocks(signal: AbortSignal | undefined): Promise<readonly StoredBlock[]> {
    const found = new Map<string, StoredBlock>();
    const done = new AbortController();
    const until = AbortSignal.any([done.signal, this.#closing.signal, ...(signal === undefined ? [] : [signal])]);
    let synced = false;
    for await (const batch of this.#store.watch([BLOCK_KIND], until)) {
      for (const { key: { name }, value, revision, problem } of batch.changes) {
        if (value !== undefined) found.set(name, readStored(name, value, revision!));
        else if (problem !== undefined) found.set(name, { name, cidr: blockNameCidr(name), problem });
        else found.delete(name);
      }
      if (batch.synced) {
        synced = true;
        break;
      }
    }
    signal?.throwIfAborted();
    this.#assertOpen();
    if (!synced) {
      throw new UnavailableError("listing address blocks: the datastore ended its answer before it was complete");
    }
    done.abort();
    return [...found.values()];
  }
}

function readStored(name: string, value: Resource, revision: Revision): StoredBlock {
  const block = readBlock(value);
  if (typeof block === "string") return { name, cidr: blockNameCidr(name), problem: block };
  if (block.name !== name) {
    return { name, cidr: blockNameCidr(name), problem: `metadata.name: found ${block.name}, wanted ${name}` };
  }
  return { name, cidr: block.cidr, block, revision };
}

function setMember(set: Set<string>, name: string, member: boolean): void {
  if (member) set.add(name);
  else set.delete(name);
}
