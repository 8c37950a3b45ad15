/** Makes a failing case small: drops steps, resources, rules and fields, and simplifies what is left, as long as it fails all the same. */
import type { Resource } from "../../src/model/resource.ts";
import { manifestKey } from "./make_world.ts";
import { type FuzzPacket, tidyPacket } from "./packet.ts";
import { type NodeFacts, refusalsOf } from "./product.ts";

/** Worlds one after the other, and what is asked in the last. */
export interface FuzzCase {
  readonly facts: NodeFacts;
  /** Never empty. A resource that stays the same between two steps is the same object in both. */
  readonly steps: readonly (readonly Resource[])[];
  /** Absent: it is about the way from step to step. */
  readonly packet?: FuzzPacket;
}

export interface ShrinkOptions {
  /** How often `fails` may be asked. */
  readonly triesMax: number;
}

/** `fails` must hold for `start`; only valid manifests are tried. */
export async function shrink(
  start: FuzzCase,
  fails: (candidate: FuzzCase) => boolean | Promise<boolean>,
  { triesMax }: ShrinkOptions,
): Promise<FuzzCase> {
  let best = start, tries = 0;
  const accept = async (candidate: FuzzCase): Promise<boolean> => {
    if (tries >= triesMax) return false;
    tries++;
    if (!await fails(candidate)) return false;
    best = candidate;
    return true;
  };

  for (let isSmaller = true; isSmaller && tries < triesMax;) {
    const before = best;
    await dropFrom(() => best.steps, (steps) => steps.length > 0, (steps) => accept({ ...best, steps }));
    await dropFrom(
      () => [...new Set(best.steps.flat().map(manifestKey))],
      () => true,
      (keys) =>
        accept({ ...best, steps: best.steps.map((step) => step.filter((one) => keys.includes(manifestKey(one)))) }),
    );
    for (let at = 0; at < best.steps.length && best.steps.length > 1; at++) {
      await dropFrom(
        () => best.steps[at]!,
        () => true,
        (left) => accept({ ...best, steps: best.steps.map((step, i) => i === at ? left : step) }),
      );
    }
    for (const key of new Set(best.steps.flat().map(manifestKey))) await simplify(key);
    for (const packet of simplerPackets(best.packet)) await accept({ ...best, packet });
    isSmaller = best !== before;
  }
  return best;

  /** Every version of the resource, piece by piece; what went well is built upon. */
  async function simplify(key: string): Promise<void> {
    const done = new Set<Resource>();
    for (;;) {
      const resource = best.steps.flat().find((one) => manifestKey(one) === key && !done.has(one));
      if (resource === undefined) return;
      let current = resource;
      for (let progress = true; progress;) {
        progress = false;
        for (const simpler of simplerResources(current)) {
          // Always shorter, so that it comes to an end.
          if (textLength(simpler) >= textLength(current) || refusalsOf(simpler).length > 0) continue;
          const steps = best.steps.map((step) => step.map((one) => one === current ? simpler : one));
          if (!await accept({ ...best, steps })) continue;
          current = simpler;
          progress = true;
          break;
        }
      }
      done.add(current);
    }
  }
}

/** Tries to do without halves, quarters … and single items of a list. */
async function dropFrom<T>(
  items: () => readonly T[],
  possible: (left: readonly T[]) => boolean,
  accept: (left: readonly T[]) => Promise<boolean>,
): Promise<void> {
  for (let size = Math.ceil(items().length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < items().length;) {
      const left = [...items().slice(0, at), ...items().slice(at + size)];
      if (!possible(left) || !await accept(left)) at += size;
    }
  }
}

const textLength = (resource: Resource): number => JSON.stringify(resource).length;

type Path = readonly (string | number)[];

/** The same resource with something less in it, what takes most away first. */
function* simplerResources(resource: Resource): Generator<Resource> {
  const { apiVersion, kind, metadata, ...rest } = resource;
  const { name, namespace, ...more } = metadata;
  const identity = (extra: object) => ({ name, ...(namespace === undefined ? {} : { namespace }), ...extra });
  for (const body of simpler({ more, rest })) {
    const { more, rest } = body as { more?: object; rest?: object };
    yield { apiVersion, kind, metadata: identity(more ?? {}), ...rest } as Resource;
  }
}

function* simpler(value: unknown): Generator<unknown> {
  // Breadth first: a whole list of rules goes before one of its rules does.
  let level: readonly Path[] = [[]];
  while (level.length > 0) {
    const next: Path[] = [];
    for (const path of level) {
      const here = at(value, path);
      if (Array.isArray(here)) {
        for (let size = Math.ceil(here.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
          for (let from = 0; from < here.length; from += size) {
            yield replaced(value, path, [...here.slice(0, from), ...here.slice(from + size)]);
          }
        }
        here.forEach((_, index) => next.push([...path, index]));
      } else if (typeof here === "object" && here !== null) {
        for (const key of Object.keys(here)) {
          const { [key]: _, ...without } = here as Record<string, unknown>;
          yield replaced(value, path, without);
          next.push([...path, key]);
        }
      } else if (typeof here === "string") {
        for (const text of simplerTexts(here)) yield replaced(value, path, text);
      }
    }
    level = next;
  }
}

/** Of a selector, its parts, or all there is. */
function simplerTexts(text: string): readonly string[] {
  const parts = text.split(/\s*(?:&&|\|\|)\s*/).map((part) => part.replace(/^[!(\s]+(?=\S)|\)+$/g, ""));
  const looksLikeSelector = /[=({]|\bin\b/.test(text);
  return [...(looksLikeSelector ? ["all()"] : []), ...(parts.length > 1 ? parts : [])];
}

function at(value: unknown, path: Path): unknown {
  return path.reduce<unknown>((found, key) => (found as Record<string | number, unknown>)[key], value);
}

function replaced(value: unknown, path: Path, by: unknown): unknown {
  if (path.length === 0) return by;
  const [key, ...rest] = path as [string | number, ...(string | number)[]];
  if (Array.isArray(value)) return value.map((item, index) => index === key ? replaced(item, rest, by) : item);
  const fields = value as Record<string, unknown>;
  return { ...fields, [key]: replaced(fields[key], rest, by) };
}

const SOURCE_PORT = 40_000;

function simplerPackets(packet: FuzzPacket | undefined): readonly FuzzPacket[] {
  if (packet === undefined) return [];
  const { icmp, sourcePort } = packet;
  const candidates: FuzzPacket[] = [];
  if (packet.beforeDnat !== undefined) candidates.push({ ...packet, beforeDnat: undefined });
  if (sourcePort !== undefined && sourcePort !== SOURCE_PORT) candidates.push({ ...packet, sourcePort: SOURCE_PORT });
  if (icmp !== undefined && icmp.code !== 0) candidates.push({ ...packet, icmp: { type: icmp.type, code: 0 } });
  return candidates.map(tidyPacket);
}
