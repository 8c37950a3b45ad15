/** What every datastore must do. Call `datastoreContract` in a test file of the datastore. */
import { describe, expect, test } from "bun:test";
import { keyText } from "../../src/model/resource.ts";
import type { Change, ChangeBatch, Datastore } from "../../src/sdk/datastore.ts";
import { ConflictError } from "../../src/sdk/errors.ts";
import { drop, key, put, resource } from "./datastore_keys.ts";

/** One empty store for one test. */
export interface DatastoreFixture extends AsyncDisposable {
  readonly datastore: Datastore;
  /** A second client of the same store, as another daemon would open; the fixture closes it. */
  another(): Promise<Datastore>;
}

const DEADLINE_MS = 5_000;

/** Reads a watch into a map until `done` holds. @throws after the deadline, with what was seen */
export class Follower implements AsyncDisposable {
  readonly #stop = new AbortController();
  readonly #reading: Promise<void>;
  /** Spec as JSON, or the problem, by key text. */
  readonly state = new Map<string, string>();
  readonly batches: ChangeBatch[] = [];
  #wake: () => void = () => {};
  #failure: unknown;
  ended = false;

  constructor(datastore: Datastore, kinds: readonly string[] = []) {
    this.#reading = this.#read(datastore, kinds);
  }

  async #read(datastore: Datastore, kinds: readonly string[]): Promise<void> {
    try {
      for await (const batch of datastore.watch(kinds, this.#stop.signal)) {
        this.batches.push(batch);
        for (const change of batch.changes) this.#take(change);
        this.#wake();
      }
    } catch (error) {
      this.#failure = error;
    }
    this.ended = true;
    this.#wake();
  }

  #take({ key, value, problem }: Change): void {
    const text = keyText(key);
    if (problem !== undefined) this.state.set(text, `problem: ${problem}`);
    else if (value === undefined) this.state.delete(text);
    else this.state.set(text, JSON.stringify(value.spec));
  }

  get synced(): boolean {
    return this.batches.some((batch) => batch.synced);
  }

  get changes(): readonly Change[] {
    return this.batches.flatMap((batch) => batch.changes);
  }

  async until(what: string, done: (follower: this) => boolean, deadlineMs = DEADLINE_MS): Promise<void> {
    const deadline = performance.now() + deadlineMs;
    while (!done(this)) {
      if (this.#failure !== undefined) throw this.#failure;
      const left = deadline - performance.now();
      if (left <= 0) throw new Error(`waited ${deadlineMs} ms for ${what}; saw ${JSON.stringify([...this.state])}`);
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      const timer = setTimeout(resolve, Math.min(left, 50));
      await promise;
      clearTimeout(timer);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#reading;
    if (this.#failure !== undefined) throw this.#failure;
  }
}

/** The error of a promise that must fail. */
export async function failure(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("wanted a failure, found success");
}

export function datastoreContract(name: string, open: () => Promise<DatastoreFixture>): void {
  describe(`datastore contract: ${name}`, () => {
    test("get of an absent key is undefined", async () => {
      await using fixture = await open();
      expect(await fixture.datastore.get(key("Thing", "a"))).toBeUndefined();
    });

    test("a committed value is read back whole, with the revision its commit returned", async () => {
      await using fixture = await open();
      const value = {
        ...resource("Thing", "a", { text: 'ä\u0000"\n😀', list: [1, null, { deep: true }] }),
        status: {},
      };
      const revision = await fixture.datastore.commit([{ key: key("Thing", "a"), value }]);
      const found = await fixture.datastore.get(key("Thing", "a"));
      expect(found).toEqual({ key: key("Thing", "a"), value, revision });
    });

    test("every key of a commit carries the revision that the commit returned", async () => {
      await using fixture = await open();
      const revision = await fixture.datastore.commit([put("Thing", "a", 1), put("Other", "b", 2)]);
      expect((await fixture.datastore.get(key("Thing", "a")))?.revision).toBe(revision);
      expect((await fixture.datastore.get(key("Other", "b")))?.revision).toBe(revision);
    });

    test("list gives one kind, sorted by namespace, then name", async () => {
      await using fixture = await open();
      const writes = [["b", "2"], ["", "z"], ["a", "9"], ["b", "1"]].map(([namespace, name]) => ({
        key: key("Thing", name!, namespace),
        value: resource("Thing", name!, 0, namespace),
      }));
      await fixture.datastore.commit([...writes, put("Thing2", "x", 0)]);
      const found = await fixture.datastore.list("Thing.example.test");
      expect(found.map((entry) => `${entry.key.namespace}/${entry.key.name}`)).toEqual(["/z", "a/9", "b/1", "b/2"]);
    });

    test("a deleted key is gone from get and list, and deleting it again succeeds", async () => {
      await using fixture = await open();
      await fixture.datastore.commit([put("Thing", "a", 1)]);
      await fixture.datastore.commit([drop("Thing", "a")]);
      expect(await fixture.datastore.get(key("Thing", "a"))).toBeUndefined();
      expect(await fixture.datastore.list("Thing.example.test")).toEqual([]);
      await fixture.datastore.commit([drop("Thing", "a")]);
    });

    test("expect null refuses an existing key and admits one that was deleted", async () => {
      await using fixture = await open();
      await fixture.datastore.commit([put("Thing", "a", 1, null)]);
      const error = await failure(fixture.datastore.commit([put("Thing", "a", 2, null)]));
      expect(error).toBeInstanceOf(ConflictError);
      expect((error as ConflictError).keys).toEqual([keyText(key("Thing", "a"))]);
      await fixture.datastore.commit([drop("Thing", "a")]);
      await fixture.datastore.commit([put("Thing", "a", 3, null)]);
      expect((await fixture.datastore.get(key("Thing", "a")))?.value.spec).toBe(3);
    });

    test("a stale revision is refused for a put and for a delete, the present one is admitted", async () => {
      await using fixture = await open();
      const first = await fixture.datastore.commit([put("Thing", "a", 1)]);
      const second = await fixture.datastore.commit([put("Thing", "a", 2, first)]);
      expect(await failure(fixture.datastore.commit([put("Thing", "a", 9, first)]))).toBeInstanceOf(ConflictError);
      expect(await failure(fixture.datastore.commit([drop("Thing", "a", first)]))).toBeInstanceOf(ConflictError);
      expect((await fixture.datastore.get(key("Thing", "a")))?.value.spec).toBe(2);
      await fixture.datastore.commit([drop("Thing", "a", second)]);
      expect(await failure(fixture.datastore.commit([put("Thing", "a", 9, second)]))).toBeInstanceOf(ConflictError);
    });

    test("a conflict on one key leaves all keys of the commit as they were and names only the lost one", async () => {
      await using fixture = await open();
      await fixture.datastore.commit([put("Thing", "a", 1)]);
      const error = await failure(fixture.datastore.commit([
        put("Thing", "b", 2, null),
        put("Thing", "a", 2, null),
        put("Thing", "c", 2),
      ]));
      expect((error as ConflictError).keys).toEqual([keyText(key("Thing", "a"))]);
      expect(await fixture.datastore.get(key("Thing", "b"))).toBeUndefined();
      expect((await fixture.datastore.get(key("Thing", "a")))?.value.spec).toBe(1);
    });

    test("commits made at once each keep their own outcome", async () => {
      await using fixture = await open();
      await fixture.datastore.commit([put("Thing", "taken", 0)]);
      const outcomes = await Promise.allSettled(
        Array.from({ length: 20 }, (_, i) =>
          fixture.datastore.commit([
            put("Thing", `n${i}`, i, null),
            ...(i % 3 === 0 ? [put("Thing", "taken", i, null)] : []),
          ])),
      );
      expect(outcomes.map((outcome) => outcome.status === "fulfilled")).toEqual(
        Array.from({ length: 20 }, (_, i) => i % 3 !== 0),
      );
      const found = (await fixture.datastore.list("Thing.example.test")).map((entry) => entry.value.spec);
      expect(new Set(found)).toEqual(
        new Set([...Array.from({ length: 20 }, (_, i) => i).filter((i) => i % 3 !== 0), 0]),
      );
      expect((await fixture.datastore.get(key("Thing", "taken")))?.value.spec).toBe(0);
    });

    test("of writers that race for one key exactly one wins each round", async () => {
      await using fixture = await open();
      const clients = [fixture.datastore, await fixture.another()];
      let base = await fixture.datastore.commit([put("Counter", "c", 0)]);
      for (let round = 1; round <= 10; round++) {
        const outcomes = await Promise.allSettled(
          Array.from({ length: 6 }, (_, i) => clients[i % 2]!.commit([put("Counter", "c", round * 10 + i, base)])),
        );
        const won = outcomes.flatMap((outcome) => outcome.status === "fulfilled" ? [outcome.value] : []);
        expect(won.length).toBe(1);
        base = won[0]!;
      }
    });

    test("reached: a later write of a key reaches an earlier one, not the other way", async () => {
      await using fixture = await open();
      const first = await fixture.datastore.commit([put("Thing", "a", 1)]);
      const second = await fixture.datastore.commit([put("Thing", "a", 2)]);
      expect(fixture.datastore.reached(first, first)).toBe(true);
      expect(fixture.datastore.reached(second, first)).toBe(true);
      expect(fixture.datastore.reached(first, second)).toBe(false);
    });

    test("an aborted signal refuses a commit", async () => {
      await using fixture = await open();
      const reason = new Error("enough");
      expect(await failure(fixture.datastore.commit([put("Thing", "a", 1)], AbortSignal.abort(reason)))).toBe(reason);
      expect(await fixture.datastore.get(key("Thing", "a"))).toBeUndefined();
    });

    test("a watch of an empty store is in sync at once", async () => {
      await using fixture = await open();
      await using follower = new Follower(fixture.datastore);
      await follower.until("sync", () => follower.synced);
      expect(follower.changes).toEqual([]);
    });

    test("a watch replays what is there, then says it is in sync, and not before", async () => {
      await using fixture = await open();
      await fixture.datastore.commit(Array.from({ length: 100 }, (_, i) => put("Thing", `n${i}`, i)));
      await fixture.datastore.commit([drop("Thing", "n7")]);
      await using follower = new Follower(fixture.datastore);
      await follower.until("sync", () => follower.synced);
      expect(follower.state.size).toBe(99);
      const firstSynced = follower.batches.findIndex((batch) => batch.synced);
      const replayed = follower.batches.slice(0, firstSynced + 1).flatMap((batch) => batch.changes);
      expect(replayed.length).toBe(99);
      expect(follower.batches.slice(firstSynced).every((batch) => batch.synced)).toBe(true);
    });

    test("a watch follows puts and deletions, with revisions that reach the commits'", async () => {
      await using fixture = await open();
      await using follower = new Follower(fixture.datastore);
      await follower.until("sync", () => follower.synced);
      const revision = await fixture.datastore.commit([put("Thing", "a", 1), put("Thing", "b", 2)]);
      await follower.until("both", ({ state }) => state.size === 2);
      for (const change of follower.changes) expect(change.revision).toBe(revision);
      await fixture.datastore.commit([drop("Thing", "a"), put("Thing", "b", 3)]);
      await follower.until("the deletion", ({ state }) => state.size === 1);
      await follower.until("the new value", ({ state }) => state.get(keyText(key("Thing", "b"))) === "3");
    });

    test("a watch of some kinds tells of no other", async () => {
      await using fixture = await open();
      await fixture.datastore.commit([put("Thing", "a", 1), put("Other", "a", 1), put("Third", "a", 1)]);
      await using follower = new Follower(fixture.datastore, ["Thing.example.test", "Third.example.test"]);
      await follower.until("sync", () => follower.synced);
      await fixture.datastore.commit([put("Other", "b", 1)]);
      await fixture.datastore.commit([drop("Other", "a")]);
      await fixture.datastore.commit([put("Third", "b", 1)]);
      await follower.until("the last write", ({ state }) => state.has(keyText(key("Third", "b"))));
      expect([...new Set(follower.changes.map((change) => change.key.kind))].sort()).toEqual([
        "Thing.example.test",
        "Third.example.test",
      ]);
    });

    test("a watch sees what another client commits", async () => {
      await using fixture = await open();
      const other = await fixture.another();
      await using follower = new Follower(fixture.datastore);
      await follower.until("sync", () => follower.synced);
      await other.commit([put("Thing", "a", 1)]);
      await follower.until("the other's write", ({ state }) => state.has(keyText(key("Thing", "a"))));
      await other.commit([drop("Thing", "a")]);
      await follower.until("the other's deletion", ({ state }) => state.size === 0);
    });

    test("a slow reader gets the last value of each key, whatever lies between", async () => {
      await using fixture = await open();
      const stop = new AbortController();
      const reader = fixture.datastore.watch([], stop.signal)[Symbol.asyncIterator]();
      expect((await reader.next()).value?.synced).toBe(true);
      for (let i = 1; i <= 50; i++) {
        await fixture.datastore.commit([put("Thing", "a", i), i % 2 === 0 ? drop("Thing", "b") : put("Thing", "b", i)]);
      }
      await fixture.datastore.commit([put("Thing", "end", 0)]);
      const last = new Map<string, unknown>();
      while (!last.has(keyText(key("Thing", "end")))) {
        const { value, done } = await reader.next();
        if (done) throw new Error("the watch ended");
        for (const change of value.changes) last.set(keyText(change.key), change.value?.spec);
      }
      expect(last.get(keyText(key("Thing", "a")))).toBe(50);
      expect(last.get(keyText(key("Thing", "b")))).toBeUndefined();
      stop.abort();
      expect((await reader.next()).done).toBe(true);
    });

    test("a watch ends when its signal aborts, and when the store is closed", async () => {
      await using fixture = await open();
      const stop = new AbortController();
      const reader = fixture.datastore.watch([], stop.signal)[Symbol.asyncIterator]();
      await reader.next();
      const waiting = reader.next();
      stop.abort();
      expect((await waiting).done).toBe(true);
      const other = await fixture.another();
      const follower = new Follower(other);
      await follower.until("sync", () => follower.synced);
      await other[Symbol.asyncDispose]();
      await follower.until("the end", ({ ended }) => ended);
    });

    test("what a caller does to a value after its commit does not reach the store", async () => {
      await using fixture = await open();
      const spec = { replicas: 1 };
      await fixture.datastore.commit([{ key: key("Thing", "a"), value: resource("Thing", "a", spec) }]);
      spec.replicas = 2;
      expect((await fixture.datastore.get(key("Thing", "a")))?.value.spec).toEqual({ replicas: 1 });
    });
  });
}
