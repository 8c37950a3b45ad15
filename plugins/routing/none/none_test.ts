import { expect, test } from "bun:test";
import { persistentMap } from "../../../src/model/persistent_map.ts";
import { ConfigError } from "../../../src/sdk/errors.ts";
import none from "./mod.ts";

test("reports every state as in force and sends nothing", async () => {
  await using routing = await none.open(undefined, undefined as never, new AbortController().signal);
  const desired = { generation: 7, routes: persistentMap<string, never>(), localBlocks: [] };
  expect(await routing.apply(desired)).toEqual({ generation: 7, converged: true, messages: 0, problems: [] });
  expect(await routing.sweep()).toEqual({ generation: 7, converged: true, messages: 0, problems: [] });
});

test("drift waits for its signal and then ends", async () => {
  await using routing = await none.open(undefined, undefined as never, new AbortController().signal);
  const stop = new AbortController();
  const seen: string[] = [];
  const reading = (async () => {
    for await (const reason of routing.drift(stop.signal)) seen.push(reason);
  })();
  stop.abort();
  await reading;
  expect(seen).toEqual([]);
});

test.each([[{ subnet: 1 }, "subnet"], [[], ""], ["x", ""], [3, ""]])("settings %j are refused", (raw, path) => {
  try {
    none.parseConfig(raw);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as ConfigError).path).toBe(path as string);
    return;
  }
  throw new Error("accepted");
});
test.each([[undefined], [null], [{}]])("no settings: %j", (raw) => {
  expect(none.parseConfig(raw)).toBeUndefined();
});
