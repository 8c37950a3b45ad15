import { describe, expect, test } from "bun:test";
import { type Cidr, formatCidr, parseAddress, parseCidr } from "../../../src/model/address.ts";
import type { DesiredRoute, RouteState } from "../../../src/model/desired.ts";
import { type PersistentMap, persistentMap } from "../../../src/model/persistent_map.ts";
import { ConfigError } from "../../../src/sdk/errors.ts";
import direct from "./mod.ts";
import { Wanted } from "./plan.ts";

const route = (destination: string, via: string): DesiredRoute => ({
  destination: parseCidr(destination),
  node: "n",
  via: parseAddress(via),
});
const state = (routes: PersistentMap<string, DesiredRoute>, localBlocks: readonly Cidr[] = []): RouteState => ({
  generation: 1,
  routes,
  localBlocks,
});
const texts = (cidrs: Iterable<Cidr>) => [...cidrs].map(formatCidr).sort();

describe("Wanted", () => {
  test("names only the destinations that differ", () => {
    const wanted = new Wanted();
    const first = persistentMap([["a", route("10.1.0.0/26", "192.0.2.1")], ["b", route("10.2.0.0/26", "192.0.2.2")]]);
    const blocks = [parseCidr("10.9.0.0/26")];
    expect(texts(wanted.move(state(first, blocks)))).toEqual(["10.1.0.0/26", "10.2.0.0/26", "10.9.0.0/26"]);
    expect(texts(wanted.move(state(first, blocks)))).toEqual([]);
    expect(texts(wanted.move(state(first, [...blocks])))).toEqual([]);
    expect(texts(wanted.move(state(first.delete("b"), [])))).toEqual(["10.2.0.0/26", "10.9.0.0/26"]);
    expect(wanted.at(parseCidr("10.2.0.0/26"))).toBeUndefined();
    expect(wanted.at(parseCidr("10.1.0.0/26"))).toMatchObject({ kind: "node", node: "n" });
    // An entry that changes its destination touches the old one and the new one.
    const moved = first.delete("b").set("a", route("10.3.0.0/26", "192.0.2.1"));
    expect(texts(wanted.move(state(moved)))).toEqual(["10.1.0.0/26", "10.3.0.0/26"]);
    expect(texts(wanted.destinations())).toEqual(["10.3.0.0/26"]);
  });

  test("a local block wins over a claim of another node", () => {
    const wanted = new Wanted();
    const map = persistentMap([["a", route("10.1.0.0/26", "192.0.2.1")]]);
    wanted.move(state(map, [parseCidr("10.1.0.0/26")]));
    expect(wanted.at(parseCidr("10.1.0.0/26"))).toMatchObject({ kind: "unreachable" });
  });
});

test.each([[{ mode: 1 }, "mode"], [[], ""], ["x", ""]])("settings %j are refused", (raw, path) => {
  try {
    direct.parseConfig(raw);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as ConfigError).path).toBe(path as string);
    return;
  }
  throw new Error("accepted");
});
