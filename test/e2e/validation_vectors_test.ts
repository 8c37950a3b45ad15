/**
 * Replays every case of test/vectors/validation.yaml as `manx apply` meets it: the text of a manifest, through the kinds that a
 * daemon with both policy dialects knows. Every difference from Calico is listed here with its reason.
 */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { calicoSource } from "../../plugins/policy/calico/mod.ts";
import { HTTP_FOUND } from "../../plugins/policy/calico/rule.ts";
import { kubernetesSource } from "../../plugins/policy/kubernetes/mod.ts";
import { coreSource } from "../../src/host/resources/core_source.ts";
import { kindRegistry } from "../../src/host/resources/kinds.ts";
import { parseManifest } from "../../src/host/resources/manifest.ts";
import { RefusedError } from "../../src/sdk/errors.ts";

interface Case {
  readonly id: string;
  readonly kind: string;
  readonly object: unknown;
  readonly valid: boolean;
  readonly why: string;
}
interface Embed {
  readonly in: string;
  readonly at: string;
  readonly with?: Readonly<Record<string, unknown>>;
}
const vectors: { readonly embed: Readonly<Record<string, Embed>>; readonly cases: readonly Case[] } = parse(
  readFileSync(join(import.meta.dir, "../vectors/validation.yaml"), "utf8"),
);
const registry = kindRegistry([
  { name: "kubernetes", source: kubernetesSource },
  { name: "calico", source: calicoSource },
], coreSource);

/** Kinds that nobody reads here: refused by name, valid or not, so that nobody takes them to be in force. */
const NO_SUCH_KIND: Readonly<Record<string, string>> = {
  BGPPeer: "routes to other nodes are made directly, without BGP",
  BGPConfiguration: "the same",
  BGPFilter: "the same",
  IPReservation: "addresses are kept free by pools that leave them out",
};

/** Valid for Calico, refused here: what the refusal must say, and why. */
const REFUSED_HERE: Readonly<Record<string, { readonly says: string; readonly why: string }>> = {
  "GlobalNetworkPolicy-28": { says: HTTP_FOUND, why: "nothing enforces HTTP matches yet" },
  "HTTP-1": { says: HTTP_FOUND, why: "the same" },
  "IPPool-27": { says: "spec.ipipMode: found", why: "packets between nodes are routed, not wrapped" },
  "IPPool-31": { says: "spec.vxlanMode: found", why: "the same" },
};

/** Refused by Calico, valid here, and why. */
const ACCEPTED_HERE: Readonly<Record<string, string>> = {
  "IPPool-8": "a pool smaller than the usual block is one block of its own size",
  "IPPool-9": "the same; a pool of one address gives that one",
};

/** What a manifest lacks beyond its case: a workload endpoint says on which node it is, here as in Calico's API. */
const BESIDE: Readonly<Record<string, Readonly<Record<string, unknown>>>> = { WorkloadEndpoint: { node: "n1" } };

/** The whole manifest: a part of one is put where `embed` says. */
function manifestOf({ kind, object }: Case): Record<string, unknown> {
  const embed = vectors.embed[kind];
  const name = embed?.in ?? kind;
  const whole = embed === undefined ? object as Record<string, unknown> : { spec: specWith(embed, object) };
  return {
    apiVersion: "projectcalico.org/v3",
    kind: name,
    metadata: { name: "any" },
    ...whole,
    ...(name in BESIDE ? { spec: { ...BESIDE[name], ...whole.spec as object } } : {}),
  };
}

/** `spec.ingress[0].icmp` holds `object`, and the fields of `with` stand beside it; `spec.ports[0]` has them beside the list. */
function specWith({ at, with: beside }: Embed, object: unknown): Record<string, unknown> {
  const [list, part] = /^spec\.(\w+)\[0\](?:\.(\w+))?$/.exec(at)!.slice(1) as [string, string?];
  return part === undefined ? { ...beside, [list]: [object] } : { [list]: [{ ...beside, [part]: object }] };
}

/** The reasons of the refusal; none = accepted. */
function reasonsAgainst(manifest: unknown): readonly string[] {
  try {
    parseManifest(JSON.stringify(manifest, null, 1), "case.yaml", registry, true);
    return [];
  } catch (error) {
    if (error instanceof RefusedError) return error.reasons;
    throw error;
  }
}

for (const vector of vectors.cases) {
  const { id, valid, why } = vector;
  const manifest = manifestOf(vector);
  const missing = NO_SUCH_KIND[manifest.kind as string];
  const refused = REFUSED_HERE[id], accepted = ACCEPTED_HERE[id];
  const difference = missing ?? refused?.why ?? accepted;
  const outcome = difference === undefined ? valid ? "accepted" : "refused" : accepted ? "accepted" : "refused";
  test(`${id} is ${outcome}: ${why}${difference === undefined ? "" : ` (differs on purpose: ${difference})`}`, () => {
    const reasons = reasonsAgainst(manifest);
    if (missing !== undefined) {
      expect(reasons.map((reason) => reason.includes(`found ${manifest.kind} of projectcalico.org/v3`))).toEqual([
        true,
      ]);
    } else if (refused !== undefined) {
      expect(valid).toBe(true);
      expect(reasons.map((reason) => reason.includes(refused.says))).toEqual([true]);
    } else if (valid || accepted !== undefined) expect(reasons).toEqual([]);
    else {
      expect(reasons.length).toBeGreaterThan(0);
      // Not for want of the L7 plugin alone, and each with its place.
      expect(reasons.every((reason) => reason.includes(HTTP_FOUND))).toBe(false);
      for (const reason of reasons) expect(reason).toMatch(/^case\.yaml: document 1, line \d+: \S+: .+/);
    }
  });
}

test("all 233 cases were replayed, and every difference names one of them", () => {
  expect(vectors.cases.length).toBe(233);
  const ids = new Set(vectors.cases.map(({ id }) => id));
  expect([...Object.keys(REFUSED_HERE), ...Object.keys(ACCEPTED_HERE)].filter((id) => !ids.has(id))).toEqual([]);
});
