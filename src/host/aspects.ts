/** Which dataplanes may stand beside one another. */
import type { Aspect } from "../sdk/dataplane.ts";
import { ManxError } from "../sdk/errors.ts";
import type { Config } from "./config.ts";
import type { NamedDataplane } from "./switch/switch.ts";

/** Policy has exactly one owner, and services where they are wanted; every other aspect at most one. @throws {ManxError} code `config` */
export function checkAspects(dataplanes: readonly NamedDataplane[], { services }: Config): void {
  const owners = new Map<Aspect, string[]>([["policy", []]]);
  if (services !== undefined) owners.set("services", []);
  for (const { name, instance } of dataplanes) {
    for (const aspect of instance.capabilities.aspects) owners.set(aspect, [...owners.get(aspect) ?? [], name]);
  }
  for (const [aspect, names] of owners) {
    if (names.length > 1) {
      throw new ManxError(
        "config",
        `dataplane: found ${names.join(" and ")} both for ${aspect}, wanted one owner of it`,
      );
    }
    if (names.length === 0) {
      throw new ManxError("config", `dataplane: found nobody for ${aspect}, wanted a dataplane that does it`);
    }
  }
  const policy = dataplanes.find(({ instance }) => instance.capabilities.aspects.has("policy"))!;
  for (const { name, instance: { forwardMark } } of dataplanes) {
    if (forwardMark === undefined || forwardMark === policy.instance.judgesForwardMark) continue;
    throw new ManxError(
      "config",
      `dataplane: found ${name}, which forwards packets past policy with the mark 0x${
        forwardMark.toString(16)
      }, and ${policy.name}, ` +
        `which does not judge those; wanted a dataplane for policy that does (judgesForwardMark)`,
    );
  }
}
