import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { keyText } from "../../../src/model/resource.ts";
import { CorruptError, RefusedError, UnavailableError } from "../../../src/sdk/errors.ts";
import type { Log } from "../../../src/sdk/plugin.ts";
import { datastoreContract, failure, Follower } from "../../../test/contract/datastore.ts";
import { drop, key, put } from "../../../test/contract/datastore_keys.ts";
import plugin from "./mod.ts";
import { SCHEMA_VERSION } from "./schema.ts";
import type { Flush } from "./log_file.ts";
import { OTHER_PROCESS_POLL_MS, SqliteDatastore } from "./store.ts";

const silent: Log = { debug() {}, info() {}, warn() {}, error() {} };
const open = (path: string, options?: { tombstonesKept?: number; flush?: Flush }) =>
  SqliteDatastore.open(path, silent, options);

function scratch(): { path: string; directory: string } & Disposable {
  const directory = mkdtempSync(join(tmpdir(), "manx-sqlite-"));
  return {
    directory,
    path: join(directory, "datastore.db"),
    [Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }),
  };
}

datastoreContract("sqlite", async () => {
  const stack = new AsyncDisposableStack();
  const { path } = stack.use(scratch());
  return {
    datastore: stack.use(open(path)),
    another: async () => stack.use(open(path)),
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
});

describe("config", () => {
  test.each([[undefined, {}], [{}, {}], [{ path: "/var/lib/x.db" }, { path: "/var/lib/x.db" }]])(
    "%p is accepted",
    (raw, wanted) => expect(plugin.parseConfig(raw)).toEqual(wanted),
  );
  test.each([
    [[], "config: found a list"],
    ["x", "wanted a mapping"],
    [{ pth: "/x" }, "pth: found an unknown key, wanted path"],
    [{ path: "x.db" }, 'path: found "x.db", wanted an absolute path'],
    [{ path: "/x/" }, "wanted an absolute path of a file"],
    [{ path: 3 }, "path: found 3"],
  ])("%p is refused", (raw, wanted) => expect(() => plugin.parseConfig(raw)).toThrow(wanted));
});

test("directory and files are made for their owner alone, and a file that is open to others is closed to them", async () => {
  using place = scratch();
  const path = join(place.directory, "deep", "down", "datastore.db");
  {
    await using datastore = open(path);
    await datastore.commit([put("Thing", "a", 1)]);
    expect(statSync(join(place.directory, "deep")).mode & 0o777).toBe(0o700);
    expect(statSync(join(place.directory, "deep", "down")).mode & 0o777).toBe(0o700);
    for (const end of ["", "-wal", "-shm", "-notice"]) expect(statSync(path + end).mode & 0o777).toBe(0o600);
  }
  const loose = new Database(path);
  loose.close();
  Bun.spawnSync(["chmod", "0644", path]);
  await using _ = open(path);
  expect(statSync(path).mode & 0o777).toBe(0o600);
});

test("values and revisions survive closing and opening", async () => {
  using place = scratch();
  let first;
  {
    await using datastore = open(place.path);
    first = await datastore.commit([put("Thing", "a", 1)]);
    await datastore.commit([put("Thing", "b", 1)]);
    await datastore.commit([drop("Thing", "b")]);
  }
  await using datastore = open(place.path);
  expect((await datastore.get(key("Thing", "a")))?.revision).toBe(first);
  expect(Number(await datastore.commit([put("Thing", "a", 2, first)]))).toBe(4);
});

test("commits of one turn share one transaction, those of later turns do not wait for more", async () => {
  using place = scratch();
  await using datastore = open(place.path);
  const probe = new Database(place.path, { readonly: true });
  const transactions = () => (probe.query("PRAGMA data_version").get() as { data_version: number }).data_version;
  const before = transactions();
  const revisions = await Promise.all(
    Array.from({ length: 10 }, (_, i) => datastore.commit([put("Thing", `n${i}`, i)])),
  );
  expect(new Set(revisions).size).toBe(10);
  expect(transactions()).toBe(before + 1);
  probe.close();
});

test("a commit without effect writes nothing and returns a revision that is reached", async () => {
  using place = scratch();
  await using datastore = open(place.path);
  const revision = await datastore.commit([put("Thing", "a", 1)]);
  expect(await datastore.commit([])).toBe(revision);
  expect(await datastore.commit([drop("Thing", "zzz")])).toBe(revision);
});

test.each([
  ["the same key twice", [put("Thing", "a", 1), put("Thing", "a", 2)]],
  ["an empty name", [put("Thing", "", 1)]],
  ["a value of 9 MiB", [put("Thing", "a", "x".repeat(9 << 20))]],
])("a commit with %s is refused, and others go on", async (_, writes) => {
  using place = scratch();
  await using datastore = open(place.path);
  const [bad, good] = await Promise.allSettled([datastore.commit(writes), datastore.commit([put("Thing", "b", 1)])]);
  expect((bad as PromiseRejectedResult).reason).toBeInstanceOf(RefusedError);
  expect(good.status).toBe("fulfilled");
});

test("a row that cannot be parsed is a problem for watchers, an error for readers, and can be replaced", async () => {
  using place = scratch();
  await using datastore = open(place.path);
  await datastore.commit([put("Thing", "a", 1), put("Thing", "b", 1), put("Thing", "c", 1)]);
  await using early = new Follower(datastore);
  await early.until("sync", () => early.synced);
  const vandal = new Database(place.path);
  vandal.run("UPDATE resources SET value = substr(value, 1, 9), revision = 2 WHERE name = 'a'");
  vandal.run("UPDATE resources SET value = '{\"apiVersion\":1}', revision = 2 WHERE name = 'b'");
  vandal.close();
  await early.until(
    "the problems",
    ({ state }) => [...state.values()].filter((text) => text.startsWith("problem")).length === 2,
  );
  await using late = new Follower(datastore);
  await late.until("sync", () => late.synced);
  expect(late.state.size).toBe(3);
  expect(late.state.get(keyText(key("Thing", "a")))).toContain("wanted JSON");
  expect(late.state.get(keyText(key("Thing", "b")))).toContain("wanted an object with apiVersion");
  for (const read of [datastore.get(key("Thing", "a")), datastore.list("Thing.example.test")]) {
    const error = await failure(read);
    expect(error).toBeInstanceOf(CorruptError);
    expect((error as Error).message).toContain("Thing.example.test//a cannot be read");
  }
  await datastore.commit([put("Thing", "a", 7)]);
  await late.until("the repaired row", ({ state }) => state.get(keyText(key("Thing", "a"))) === "7");
});

describe("a file that is not ours, or damaged,", () => {
  async function filled(path: string, count = 300): Promise<void> {
    await using datastore = open(path);
    await datastore.commit(
      Array.from({ length: count }, (_, i) => put("Thing", `n${i}`, { i, text: "x".repeat(200) })),
    );
  }
  const cases: [string, (path: string) => void | Promise<void>, string][] = [
    ["text", (path) => writeFileSync(path, "hello, I am no database\n".repeat(100)), "file is not a database"],
    ["a few bytes", (path) => writeFileSync(path, "x"), "not a database"],
    ["zeros", (path) => writeFileSync(path, new Uint8Array(8192)), "not a database"],
    ["truncated", async (path) => {
      await filled(path);
      truncateSync(path, statSync(path).size / 2 | 0);
    }, ""],
    ["its head overwritten", async (path) => {
      await filled(path);
      const bytes = readFileSync(path);
      bytes.fill(0x55, 0, 64);
      writeFileSync(path, bytes);
    }, "not a database"],
    ["pages overwritten", async (path) => {
      await filled(path);
      const bytes = readFileSync(path);
      bytes.fill(0xaa, 4096 * 3, 4096 * 9);
      writeFileSync(path, bytes);
    }, ""],
    ["another program's database", (path) => {
      const other = new Database(path);
      other.run("CREATE TABLE cookies (id INTEGER)");
      other.close();
    }, "a SQLite database of another program"],
    ["a newer schema", async (path) => {
      await filled(path);
      const later = new Database(path);
      later.run(`PRAGMA user_version = ${SCHEMA_VERSION + 1}`);
      later.close();
    }, `found schema version ${SCHEMA_VERSION + 1}, this program knows up to ${SCHEMA_VERSION}`],
    ["without its tables", async (path) => {
      await filled(path);
      const later = new Database(path);
      later.run("DROP TABLE resources");
      later.close();
    }, "no such table"],
  ];
  test.each(cases)("%s, is refused by name and left as it is", async (_, make, wanted) => {
    using place = scratch();
    await make(place.path);
    const before = readFileSync(place.path);
    let error: unknown;
    try {
      await using _ = open(place.path);
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(CorruptError);
    expect((error as Error).message).toContain(place.path);
    expect((error as Error).message).toContain(wanted);
    expect((error as Error).message).toContain("Nothing was changed.");
    expect(readFileSync(place.path).equals(before)).toBe(true);
  });

  test("a directory, is refused", () => {
    using place = scratch();
    expect(() => open(place.directory)).toThrow("found a directory, wanted a file");
  });

  test("empty, as after a kill while it was made, is filled", async () => {
    using place = scratch();
    writeFileSync(place.path, "");
    await using datastore = open(place.path);
    await datastore.commit([put("Thing", "a", 1)]);
  });
});

test("a file that is removed while it is open refuses further commits", async () => {
  using place = scratch();
  await using datastore = open(place.path);
  await datastore.commit([put("Thing", "a", 1)]);
  unlinkSync(place.path);
  const error = await failure(datastore.commit([put("Thing", "a", 2)]));
  expect(error).toBeInstanceOf(CorruptError);
  expect((error as Error).message).toContain("removed or replaced");
});

test("a closed datastore refuses, and keeps what was queued before", async () => {
  using place = scratch();
  const datastore = open(place.path);
  const queued = datastore.commit([put("Thing", "a", 1)]);
  await datastore[Symbol.asyncDispose]();
  await queued;
  expect(await failure(datastore.commit([put("Thing", "a", 2)]))).toBeInstanceOf(UnavailableError);
  expect(await failure(datastore.get(key("Thing", "a")))).toBeInstanceOf(UnavailableError);
  await datastore[Symbol.asyncDispose]();
  await using again = open(place.path);
  expect((await again.get(key("Thing", "a")))?.value.spec).toBe(1);
});

test("a commit waits for another writer's lock beside other work, and an abort ends its wait", async () => {
  using place = scratch();
  await using datastore = open(place.path);
  await datastore.commit([put("Thing", "a", 0)]);
  const other = new Database(place.path);
  other.run("BEGIN IMMEDIATE");
  let done = false;
  const commit = datastore.commit([put("Thing", "a", 1)]).then(() => done = true);
  const stop = new AbortController();
  const aborted = datastore.commit([put("Thing", "b", 1)], stop.signal);
  aborted.catch(() => {});
  for (let turn = 0; turn < 20; turn++) expect((await datastore.get(key("Thing", "a")))?.value.spec).toBe(0);
  expect(done).toBe(false);
  stop.abort(new Error("enough"));
  other.run("ROLLBACK");
  other.close();
  await commit;
  expect(((await failure(aborted)) as Error).message).toBe("enough");
  expect(await datastore.get(key("Thing", "b"))).toBeUndefined();
});

test("a reader that lags behind dropped tombstones is told of every deletion all the same", async () => {
  using place = scratch();
  await using datastore = open(place.path, { tombstonesKept: 5 });
  const names = Array.from({ length: 60 }, (_, i) => `n${i}`);
  await datastore.commit(names.map((name) => put("Thing", name, 0)));
  const stop = new AbortController();
  const reader = datastore.watch([], stop.signal)[Symbol.asyncIterator]();
  const left = new Set<string>();
  const take = async () => {
    const { value } = await reader.next();
    for (const change of value!.changes) {
      if (change.value === undefined) left.delete(change.key.name);
      else left.add(change.key.name);
    }
  };
  await take();
  expect(left.size).toBe(60);
  for (const name of names.slice(0, 40)) await datastore.commit([drop("Thing", name)]);
  await datastore.commit([put("Thing", "n3", 1)]);
  const probe = new Database(place.path, { readonly: true });
  const { kept } = probe.query("SELECT count(*) AS kept FROM resources WHERE value IS NULL").get() as { kept: number };
  probe.close();
  expect(kept).toBeLessThan(15);
  while (left.size !== 21) await take();
  expect([...left].sort()).toEqual(["n3", ...names.slice(40)].sort());
  stop.abort();
});

test("a watch that begins while others write misses nothing and tells of each deletion", async () => {
  using place = scratch();
  await using datastore = open(place.path, { tombstonesKept: 3 });
  for (let from = 0; from < 3_000; from += 500) {
    await datastore.commit(Array.from({ length: 500 }, (_, i) => put(i % 2 === 0 ? "Even" : "Odd", `n${from + i}`, 0)));
  }
  const stop = new AbortController();
  for (const kinds of [[], ["Odd.example.test", "Even.example.test"], ["Even.example.test"]]) {
    const state = new Map<string, unknown>();
    let round = 0;
    for await (const { changes, synced } of datastore.watch(kinds, stop.signal)) {
      for (const { key: { name }, value } of changes) {
        if (value === undefined) expect(state.delete(name)).toBe(true);
        else state.set(name, value.spec);
      }
      if (synced) break;
      // Behind the reader, ahead of it, new ones, and deletions whose tombstones are dropped.
      round++;
      await datastore.commit([put("Even", "n0", round), put("Even", "n998", round), put("Even", `z${round}`, round)]);
      for (let i = 1; i <= 6; i++) await datastore.commit([drop("Even", `n${round * 20 + i * 2}`)]);
    }
    expect(round).toBeGreaterThan(0);
    const stored = (await Promise.all(["Even.example.test", "Odd.example.test"].map((kind) => datastore.list(kind))))
      .flat();
    const wanted = stored.filter((each) => kinds.length === 0 || kinds.includes(each.key.kind));
    expect(new Map([...state].sort())).toEqual(
      new Map(wanted.map((each) => [each.key.name, each.value.spec] as const).sort()),
    );
  }
});

test("a large replay comes in bounded batches, and only the last is in sync", async () => {
  using place = scratch();
  await using datastore = open(place.path);
  for (let from = 0; from < 5_000; from += 500) {
    await datastore.commit(Array.from({ length: 500 }, (_, i) => put("Thing", `n${from + i}`, 0)));
  }
  await using follower = new Follower(datastore);
  await follower.until("sync", () => follower.synced);
  expect(follower.state.size).toBe(5_000);
  expect(Math.max(...follower.batches.map((batch) => batch.changes.length))).toBeLessThanOrEqual(1_500);
  expect(follower.batches.filter((batch) => batch.synced).length).toBe(1);
});

describe("several processes", () => {
  const BUN = process.execPath;
  const COMMITTER = join(import.meta.dir, "testdata", "committer.ts");
  const start = (...args: string[]) =>
    Bun.spawn([BUN, "--no-install", COMMITTER, ...args], { stdout: "pipe", stderr: "inherit", stdin: "ignore" });

  /** Lines of a child's output. */
  class Lines {
    readonly all: string[] = [];
    readonly #reader;
    readonly #decoder = new TextDecoder();
    #tail = "";
    constructor(stream: ReadableStream<Uint8Array>) {
      this.#reader = stream.getReader();
    }
    /** Reads on until `enough` holds or the stream ends. */
    async until(enough: (all: readonly string[]) => boolean): Promise<readonly string[]> {
      while (!enough(this.all)) {
        const { value, done } = await this.#reader.read();
        if (done) break;
        const parts = (this.#tail + this.#decoder.decode(value, { stream: true })).split("\n");
        this.#tail = parts.pop()!;
        this.all.push(...parts);
      }
      return this.all;
    }
  }

  test("kill -9 at any point: every acknowledged commit is there, none is there in part", async () => {
    using place = scratch();
    let next = 1;
    let newest = 0;
    for (let round = 0; round < 24; round++) {
      const child = start(place.path, "pairs", String(next), "");
      // Killed after a number of acknowledgements that differs by round, at whatever the child does just then.
      const wanted = 1 + round * 7 % 23;
      const lines = new Lines(child.stdout);
      await lines.until((all) => all.length > wanted);
      child.kill("SIGKILL");
      await lines.until(() => false);
      await child.exited;
      const acknowledged = lines.all.slice(1).map((line) => line.split(" ").map(Number) as [number, number]);
      const [lastI, lastRevision] = acknowledged.at(-1)!;
      expect(lastRevision).toBeGreaterThan(newest);

      await using datastore = open(place.path);
      const left = await datastore.list("Left.example.test");
      const right = await datastore.list("Right.example.test");
      expect(left.map(({ value, revision }) => [value.metadata.name, revision, value.spec])).toEqual(
        right.map(({ value, revision }) => [value.metadata.name, revision, value.spec]),
      );
      // One commit may have been carried out whose acknowledgement was never read.
      const found = Math.max(...left.map(({ value }) => (value.spec as { i: number }).i));
      expect([lastI, lastI + 1]).toContain(found);
      // The last 25 or fewer commits are live, each under its own name; older ones are deleted in turn.
      const live = left.map(({ value }) => (value.spec as { i: number }).i).sort((a, b) => a - b);
      const expected = Array.from({ length: Math.min(25, found) }, (_, i) => found - i).sort((a, b) => a - b);
      expect(live).toEqual(expected);
      newest = lastRevision;
      next = found + 1;
    }
  }, 60_000);

  test("kill -9 while the file is being made: the next process can use it", async () => {
    for (let round = 0; round < 8; round++) {
      using place = scratch();
      const child = start(place.path, "pairs", "1", "");
      const deadline = performance.now() + 10_000;
      while (!existsSync(round % 2 === 0 ? place.path : `${place.path}-wal`) && performance.now() < deadline) {
        await new Promise((resolve) => setImmediate(resolve));
      }
      child.kill("SIGKILL");
      await child.exited;
      await using datastore = open(place.path);
      await datastore.commit([put("Thing", "a", 1)]);
      expect((await datastore.get(key("Thing", "a")))?.value.spec).toBe(1);
    }
  }, 60_000);

  test(
    "a full file system refuses commits, keeps what was acknowledged, and commits again once there is room",
    async () => {
      using place = scratch();
      const script =
        'mount -t tmpfs -o size=2m none "$1" && dd if=/dev/zero of="$1/ballast" bs=64k count=8 2>/dev/null && ' +
        'exec "$2" --no-install "$3" "$1/datastore.db" fill 0 "$1/ballast"';
      const child = Bun.spawn(["unshare", "-m", "sh", "-c", script, "sh", place.directory, BUN, COMMITTER], {
        stdout: "pipe",
        stderr: "inherit",
      });
      const told = JSON.parse(await new Response(child.stdout).text());
      expect(await child.exited).toBe(0);
      expect(told.acknowledged).toBeGreaterThan(5);
      expect(told.code).toBe("unavailable");
      expect(told.message).toContain("wanted free space on its file system");
      expect(told.after).toBe(told.acknowledged + 1);
    },
    30_000,
  );

  test("two processes and this one add to one counter, and no addition is lost", async () => {
    using place = scratch();
    await using datastore = open(place.path);
    await datastore.commit([put("Counter", "c", { total: 0, by: {} })]);
    await using follower = new Follower(datastore);
    const children = [start(place.path, "count", "150", "one"), start(place.path, "count", "150", "two")];
    await Promise.all(children.map(async (child) => {
      expect(await new Lines(child.stdout).until((all) => all.includes("done"))).toContain("done");
      expect(await child.exited).toBe(0);
    }));
    const wanted = { total: 300, by: { one: 150, two: 150 } };
    const sorted = (spec: unknown) => {
      const { total, by } = spec as typeof wanted;
      return { total, by: { one: by.one, two: by.two } };
    };
    expect(sorted((await datastore.get(key("Counter", "c")))!.value.spec)).toEqual(wanted);
    await follower.until("the last count", ({ state }) => {
      const text = state.get(keyText(key("Counter", "c")));
      return text !== undefined && JSON.parse(text).total === 300;
    });
  }, 60_000);

  test("another process's commit is noticed well before the poll", async () => {
    using place = scratch();
    await using datastore = open(place.path);
    const child = start(place.path, "pairs", "1", "");
    try {
      await using follower = new Follower(datastore);
      await new Lines(child.stdout).until((all) => all.length > 5);
      // Followed while the other goes on: each batch is younger than the poll could make it.
      const from = follower.batches.length;
      const began = performance.now();
      await follower.until("twenty batches", ({ batches }) => batches.length >= from + 20);
      expect((performance.now() - began) / 20).toBeLessThan(OTHER_PROCESS_POLL_MS / 4);
    } finally {
      child.kill("SIGKILL");
      await child.exited;
    }
  }, 30_000);
});

/** A disk that flushes when it is told to. */
function slowDisk() {
  const asked: ((error: Error | null) => void)[] = [];
  const flush: Flush = (_, done) => void asked.push(done);
  return { asked, flush };
}

const written = (name: string) => [{ key: { kind: "Node", namespace: "", name }, value: resource(name) }];
const resource = (name: string) => ({ apiVersion: "v1", kind: "Node", metadata: { name } });
const turns = async (done: () => boolean) => {
  for (let turn = 0; turn < 1_000 && !done(); turn++) await new Promise((resolve) => setImmediate(resolve));
  expect(done()).toBe(true);
};

test("a commit is acknowledged once the disk has it, and one flush answers for all that was written before it", async () => {
  using place = scratch();
  const { asked, flush } = slowDisk();
  const store = open(place.path, { flush });
  const acknowledged: string[] = [];
  const commit = (name: string) => store.commit(written(name)).then(() => acknowledged.push(name));
  const first = commit("a");
  await turns(() => asked.length === 1);
  const others = [commit("b"), commit("c")];
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
  expect(acknowledged).toEqual([]);
  expect(asked.length).toBe(1);
  asked[0]!(null);
  await first;
  expect(acknowledged).toEqual(["a"]);
  expect(asked.length).toBe(2);
  asked[1]!(null);
  await Promise.all(others);
  expect(asked.length).toBe(2);
  await store[Symbol.asyncDispose]();
});

test("a flush that fails fails its commits, and nothing more is written", async () => {
  using place = scratch();
  const { asked, flush } = slowDisk();
  await using store = open(place.path, { flush });
  const commit = store.commit(written("a"));
  await turns(() => asked.length === 1);
  asked[0]!(new Error("EIO: i/o error"));
  const message = "EIO: i/o error; wanted a working file system";
  await expect(commit).rejects.toThrow(message);
  await expect(store.commit(written("b"))).rejects.toThrow(message);
  expect(await store.get({ kind: "Node", namespace: "", name: "b" })).toBeUndefined();
});

test("a datastore that closes waits for the flush under way", async () => {
  using place = scratch();
  const { asked, flush } = slowDisk();
  const store = open(place.path, { flush });
  const commit = store.commit(written("a"));
  await turns(() => asked.length === 1);
  const closed = store[Symbol.asyncDispose]();
  asked[0]!(null);
  await commit;
  await turns(() => asked.length === 2);
  asked[1]!(null);
  await closed;
});

test("watchers of other kinds are left alone, and miss nothing", async () => {
  using place = scratch();
  await using store = open(place.path);
  const stop = new AbortController();
  const seen: string[] = [];
  const following = (async () => {
    for await (const { changes } of store.watch(["Pod"], stop.signal)) seen.push(...changes.map(({ key }) => key.name));
  })();
  const pod = (
    name: string,
  ) => [{ key: { kind: "Pod", namespace: "a", name }, value: { ...resource(name), kind: "Pod" } }];
  await store.commit(pod("p1"));
  for (let i = 0; i < 20; i++) await store.commit(written(`n${i}`));
  await store.commit([...pod("p2"), ...written("last")]);
  await store.commit([{ key: pod("p1")[0]!.key, value: null }]);
  await turns(() => seen.length === 3);
  expect(seen).toEqual(["p1", "p2", "p1"]);
  stop.abort();
  await following;
});
