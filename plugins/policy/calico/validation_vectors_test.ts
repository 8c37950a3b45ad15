/** Replays test/vectors/validation.yaml for the kinds of this dialect. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import type { Resource } from "../../../src/model/resource.ts";
import { calicoSource } from "./mod.ts";
import { HTTP_FOUND } from "./rule.ts";

interface Case {
  readonly id: string;
  readonly kind: string;
  readonly object: unknown;
  readonly valid: boolean;
  readonly why: string;
}
interface Vectors {
  readonly embed: Readonly<Record<string, { in: string; at: string; with?: Readonly<Record<string, unknown>> }>>;
  readonly cases: readonly Case[];
}

const vectors: Vectors = parse(readFileSync(join(import.meta.dir, "../../../test/vectors/validation.yaml"), "utf8"));

/** Kinds of the file that other parts of the house read, or nobody. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  WorkloadEndpoint: "read by the host itself",
  IPPool: "read by the host itself",
  IPReservation: "no such kind here",
  BGPPeer: "no such kind here",
  BGPConfiguration: "no such kind here",
  BGPFilter: "no such kind here",
};

/** Where we differ on purpose: accepted upstream, and refused here for this one reason only. */
const NEEDS_L7 = new Set(["GlobalNetworkPolicy-28", "HTTP-1"]);

function manifest({ kind, object }: Case): { kind: string; resource: Resource } {
  const embed = vectors.embed[kind];
  const whole = embed === undefined ? object as Record<string, unknown> : embedded(embed, object);
  const name = embed?.in ?? kind;
  return {
    kind: name,
    resource: { apiVersion: "projectcalico.org/v3", kind: name, metadata: { name: "any" }, ...whole } as Resource,
  };
}

/** Only rules' parts are embedded in the kinds of this dialect: `spec.ingress[0]` and below. */
function embedded({ at, with: beside }: Vectors["embed"][string], object: unknown): Record<string, unknown> {
  const part = at.split(".")[2];
  const rule = part === undefined ? object : { ...beside, [part]: object };
  return { spec: { ingress: [rule] } };
}

for (const vector of vectors.cases) {
  const { kind, resource } = manifest(vector);
  if (kind in ELSEWHERE) continue;
  test(`${vector.id} is ${vector.valid ? "accepted" : "refused"}: ${vector.why}`, () => {
    const problems = calicoSource.validate(resource);
    const messages = problems.map(({ path, message }) => `${path}: ${message}`);
    if (NEEDS_L7.has(vector.id)) {
      expect(problems.map(({ message }) => message.includes(HTTP_FOUND))).toEqual([true]);
    } else if (vector.valid) expect(messages).toEqual([]);
    else {
      expect(messages.length).toBeGreaterThan(0);
      // Not only because of the missing plugin, where http is what the case is about.
      expect(messages.every((message) => message.includes(HTTP_FOUND))).toBe(false);
    }
    expect(calicoSource.translate(resource).problems.map(({ path, message }) => `${path}: ${message}`)).toEqual(
      messages,
    );
  });
}

test("every case of the file is replayed or belongs elsewhere", () => {
  const kinds = new Set(vectors.cases.map((vector) => manifest(vector).kind));
  const ours = new Set(calicoSource.kinds.map(({ name }) => name));
  expect([...kinds].filter((kind) => !ours.has(kind) && !(kind in ELSEWHERE))).toEqual([]);
  expect(vectors.cases.filter((vector) => !(manifest(vector).kind in ELSEWHERE)).length).toBe(138);
});
