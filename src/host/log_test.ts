import { expect, test } from "bun:test";
import { createLog, type LogOptions } from "./log.ts";

function lines(options: Partial<LogOptions>, say: (log: ReturnType<typeof createLog>) => void): string {
  let text = "";
  say(createLog({ level: "info", format: "text", write: (line) => text += line, ...options }));
  return text;
}

test("text lines carry their fields, and one event is one line", () => {
  const text = lines({}, (log) => {
    log.info("runs", { node: "a", count: 2, none: undefined, words: "a b" });
    log.warn("two\nlines", { error: new Error("x") });
  });
  expect(text).toBe('runs node=a count=2 words="a b"\nwarn: two | lines error=x\n');
});

test("what is below the level is not written", () => {
  const say = (log: ReturnType<typeof createLog>) => (log.debug("d"), log.info("i"), log.warn("w"), log.error("e"));
  expect(lines({ level: "warn" }, say)).toBe("warn: w\nerror: e\n");
  expect(lines({ level: "debug" }, say).split("\n")).toHaveLength(5);
});

test("journald reads the priority from the front of the line", () => {
  expect(lines({ priorities: true }, (log) => (log.info("i"), log.error("e")))).toBe("<6>i\n<3>error: e\n");
});

test("JSON lines can be read back, numbers too large for JSON among them", () => {
  const text = lines({ format: "json" }, (log) => log.error("e", { big: 2n ** 70n, error: new Error("x") }));
  expect(JSON.parse(text)).toMatchObject({ level: "error", message: "e", big: String(2n ** 70n), error: "x" });
});
