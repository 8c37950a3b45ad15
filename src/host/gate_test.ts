import { expect, test } from "bun:test";
import { createGate } from "./gate.ts";

/** Enters, notes it, stays for a few turns, notes leaving. */
async function visit(enter: Promise<Disposable>, name: string, notes: string[]): Promise<void> {
  using _ = await enter;
  notes.push(`+${name}`);
  for (let i = 0; i < 5; i++) await Promise.resolve();
  notes.push(`-${name}`);
}

test("holders of one name take turns in order, others go beside them", async () => {
  const gate = createGate();
  const notes: string[] = [];
  await Promise.all([
    visit(gate.enter("a"), "a1", notes),
    visit(gate.enter("a"), "a2", notes),
    visit(gate.enter("b"), "b", notes),
  ]);
  expect(notes.filter((note) => note.includes("a"))).toEqual(["+a1", "-a1", "+a2", "-a2"]);
  expect(notes.indexOf("+b")).toBeLessThan(notes.indexOf("-a1"));
});

test("who is alone waits for all inside and holds all others off", async () => {
  const gate = createGate();
  const notes: string[] = [];
  await Promise.all([
    visit(gate.enter("a"), "a", notes),
    Promise.resolve().then(() => Promise.resolve()).then(() => visit(gate.enterAlone(), "alone", notes)),
    Promise.resolve().then(() => Promise.resolve()).then(() => Promise.resolve()).then(() =>
      visit(gate.enter("b"), "b", notes)
    ),
  ]);
  expect(notes).toEqual(["+a", "-a", "+alone", "-alone", "+b", "-b"]);
});

test("two who want to be alone take turns", async () => {
  const gate = createGate();
  const notes: string[] = [];
  await Promise.all([
    visit(gate.enterAlone(), "x", notes),
    visit(gate.enterAlone(), "y", notes),
    visit(gate.enter("a"), "a", notes),
  ]);
  expect(notes.join(" ")).toMatch(/^\+x -x (\+y -y \+a -a|\+a -a \+y -y)$/);
});
