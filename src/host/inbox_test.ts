import { expect, test } from "bun:test";
import { keyText, type Resource, type ResourceKey } from "../model/resource.ts";
import type { Change } from "../sdk/datastore.ts";
import { Inbox } from "./inbox.ts";

const key = (name: string): ResourceKey => ({ kind: "Pod", namespace: "default", name });
const put = (name: string, version = 1): Change => ({
  key: key(name),
  value: { apiVersion: "v1", kind: "Pod", metadata: { name, version } } as Resource,
});
const gone = (name: string): Change => ({ key: key(name) });
const unreadable = (name: string): Change => ({ key: key(name), problem: "found x" });

/** `name@version`, `-name` for gone, `?name` for unreadable; sorted. */
const taken = (inbox: Inbox): string =>
  inbox.take().map(({ key, value, problem }) =>
    problem !== undefined
      ? `?${key.name}`
      : value === undefined
      ? `-${key.name}`
      : `${key.name}@${value.metadata.version}`
  ).sort().join(" ");

test("nothing is given out before the datastore is in sync", () => {
  let wakes = 0;
  const inbox = new Inbox(() => wakes++);
  inbox.put({ changes: [put("a")], synced: false });
  inbox.put({ changes: [put("b")], synced: false });
  expect([inbox.synced, taken(inbox), wakes]).toEqual([false, "", 0]);
  inbox.put({ changes: [put("c")], synced: true });
  expect([inbox.synced, wakes, taken(inbox)]).toEqual([true, 1, "a@1 b@1 c@1"]);
  expect(taken(inbox)).toBe("");
});

test("an empty datastore is in sync as well", () => {
  let wakes = 0;
  const inbox = new Inbox(() => wakes++);
  inbox.put({ changes: [], synced: true });
  expect([inbox.synced, wakes]).toEqual([true, 1]);
});

test("only the latest change of a key is given out", () => {
  const inbox = new Inbox(() => {});
  inbox.put({ changes: [put("a", 1), put("b"), put("a", 2)], synced: true });
  inbox.put({ changes: [gone("b"), unreadable("c")], synced: true });
  expect(taken(inbox)).toBe("-b ?c a@2");
});

test("what a new replay leaves out is gone, once it is complete", () => {
  const inbox = new Inbox(() => {});
  inbox.put({ changes: [put("a"), put("b"), unreadable("c")], synced: true });
  taken(inbox);
  inbox.beginReplay();
  inbox.put({ changes: [put("a", 2)], synced: false });
  expect(taken(inbox)).toBe("a@2");
  inbox.put({ changes: [put("d")], synced: true });
  expect(taken(inbox)).toBe("-b -c d@1");
});

test("a replay that breaks off removes nothing, and the next one counts", () => {
  const inbox = new Inbox(() => {});
  inbox.put({ changes: [put("a"), put("b")], synced: true });
  taken(inbox);
  inbox.beginReplay();
  inbox.put({ changes: [put("a", 2)], synced: false });
  inbox.beginReplay();
  inbox.put({ changes: [put("b", 2)], synced: true });
  expect(taken(inbox)).toBe("-a b@2");
});

test("past the limit the sender waits until everything has been taken", async () => {
  const inbox = new Inbox(() => {}, 2);
  expect(inbox.put({ changes: [put("a"), put("b")], synced: true })).toBeUndefined();
  let hasRoom = false;
  const room = inbox.put({ changes: [put("c")], synced: true })!.then(() => hasRoom = true);
  await Promise.resolve();
  expect(hasRoom).toBe(false);
  expect(taken(inbox)).toBe("a@1 b@1 c@1");
  await room;
  expect(hasRoom).toBe(true);
});

test("any split of the same changes gives the same end", () => {
  const changes = [put("a", 1), put("b", 1), gone("a"), put("c", 1), put("a", 2), gone("c"), put("b", 2)];
  const ends = new Set<string>();
  for (let cut = 0; cut <= changes.length; cut++) {
    const inbox = new Inbox(() => {});
    const end = new Map<string, Change>();
    for (const part of [changes.slice(0, cut), changes.slice(cut)]) {
      inbox.put({ changes: part, synced: true });
      for (const change of inbox.take()) end.set(keyText(change.key), change);
    }
    ends.add([...end.values()].map((change) => `${change.key.name}:${change.value?.metadata.version}`).sort().join());
  }
  expect([...ends]).toEqual(["a:2,b:2,c:undefined"]);
});
