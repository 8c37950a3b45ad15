/** What the fuzzer has found, as a file that is replayed for ever: manifests, the packet, and what must become of it. */
import { parse, stringify } from "yaml";
import type { Resource } from "../../src/model/resource.ts";
import { type FuzzPacket, tidyPacket } from "./packet.ts";
import type { FuzzCase } from "./shrink.ts";

export interface FoundScenario extends FuzzCase {
  readonly title: string;
  /** Of the packet; absent where there is none. */
  readonly expect?: "allow" | "deny";
  /** How the one who is right comes to it. */
  readonly why: readonly string[];
}

interface Written {
  readonly title: string;
  readonly node: string;
  readonly links: Readonly<Record<string, readonly string[]>>;
  readonly packet?: FuzzPacket;
  readonly expect?: "allow" | "deny";
  readonly why?: readonly string[];
  readonly manifests?: readonly Resource[];
  readonly steps?: readonly (readonly Resource[])[];
}

export function formatScenario({ title, facts, packet, expect, why, steps }: FoundScenario): string {
  const written: Written = {
    title,
    node: facts.node,
    links: Object.fromEntries(facts.links.map(({ name, addresses }) => [name, addresses])),
    ...(packet === undefined ? {} : { packet: tidyPacket(packet) }),
    ...(expect === undefined ? {} : { expect }),
    ...(why.length === 0 ? {} : { why }),
    ...(steps.length === 1 ? { manifests: steps[0]! } : { steps }),
  };
  return stringify(written, { lineWidth: 120, aliasDuplicateObjects: false });
}

/** @throws {Error} naming the file and the field that is not as it must be */
export function parseScenario(text: string, file: string): FoundScenario {
  const written = parse(text) as Written;
  const need = (holds: boolean, field: string, wanted: string) => {
    if (!holds) throw new Error(`${file}: ${field}: wanted ${wanted}`);
  };
  need(typeof written === "object" && written !== null, "", "a mapping");
  const { title, node, links, packet, expect, why = [], manifests, steps } = written;
  need(typeof title === "string", "title", "text");
  need(typeof node === "string", "node", "the name of a node");
  need(typeof links === "object" && links !== null, "links", "a mapping of names to addresses");
  need(Array.isArray(manifests) !== Array.isArray(steps), "manifests", "manifests or steps");
  need(packet === undefined || ["allow", "deny"].includes(expect ?? ""), "expect", "allow or deny beside a packet");
  return {
    title,
    facts: { node, links: Object.entries(links).map(([name, addresses]) => ({ name, addresses })) },
    steps: sharedResources(steps ?? [manifests!]),
    why,
    ...(packet === undefined ? {} : { packet, expect }),
  };
}

/** What is written alike in two steps is one object: it has not changed between them. */
function sharedResources(steps: readonly (readonly Resource[])[]): readonly (readonly Resource[])[] {
  const seen = new Map<string, Resource>();
  return steps.map((step) =>
    step.map((resource) => {
      const text = JSON.stringify(resource);
      const before = seen.get(text);
      if (before === undefined) seen.set(text, resource);
      return before ?? resource;
    })
  );
}
