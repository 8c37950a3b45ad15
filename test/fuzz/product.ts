/** The product's own way from manifests to what a node should do: validation, translation, calculation, rendering. */
import { createCalc, DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import type { Calc, CalcResult } from "../../src/calc/mod.ts";
import { coreSource } from "../../src/host/resources/core_source.ts";
import { kindRegistry } from "../../src/host/resources/kinds.ts";
import { createTranslator, type Translator } from "../../src/host/resources/translation.ts";
import { type Address, parseAddress } from "../../src/model/address.ts";
import { keyText, type Resource, type ResourceKey } from "../../src/model/resource.ts";
import type { WorldChange } from "../../src/model/world.ts";
import type { NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { calicoSource } from "../../plugins/policy/calico/mod.ts";
import { kubernetesSource } from "../../plugins/policy/kubernetes/mod.ts";
import { Renderer } from "../../dataplanes/nftables/render.ts";
import type { CutOptions } from "../../dataplanes/nftables/base_chains.ts";
import { lowestBit, parseConfig, secondBit } from "../../dataplanes/nftables/config.ts";
import { probeCut } from "../../dataplanes/nftables/probe.ts";

export const registry = kindRegistry(
  [{ name: "kubernetes", source: kubernetesSource }, { name: "calico", source: calicoSource }],
  coreSource,
);

/** What is known of a node besides the resources. */
export interface NodeFacts {
  readonly node: string;
  /** Its own links with their addresses, as text. */
  readonly links: readonly { readonly name: string; readonly addresses: readonly string[] }[];
}

/** A manifest as it is stored. @throws where no dialect knows its kind: the generator is wrong then */
function stored(resource: Resource): { readonly key: ResourceKey; readonly value: Resource } {
  const known = registry.byManifest(resource.apiVersion, resource.kind);
  if (known === undefined) throw new Error(`no dialect knows ${resource.kind} of ${resource.apiVersion}`);
  const { kind, namespaced, apiVersions } = known.definition;
  const namespace = namespaced ? resource.metadata.namespace ?? "default" : "";
  const metadata = { ...resource.metadata, ...(namespaced ? { namespace } : {}) };
  return {
    key: { kind, namespace, name: resource.metadata.name },
    value: { ...resource, apiVersion: apiVersions[0]!, metadata },
  };
}

/** Why `manx apply` would refuse it; empty = it is good. */
export function refusalsOf(resource: Resource): readonly string[] {
  const known = registry.byManifest(resource.apiVersion, resource.kind);
  if (known === undefined) return [`no dialect knows ${resource.kind} of ${resource.apiVersion}`];
  return known.source.validate(stored(resource).value).map(({ path, message }) =>
    `${resource.kind} ${resource.metadata?.namespace ?? ""}/${resource.metadata?.name}: ${path}: ${message}`
  );
}

/** Follows a world as a daemon does: what changed goes through translation and calculation, nothing else. */
export class Following {
  readonly #translator: Translator = createTranslator(registry);
  readonly #calc: Calc;
  #there = new Map<string, Resource>();

  constructor({ node, links }: NodeFacts) {
    this.#calc = createCalc({ node, failsafe: DEFAULT_FAILSAFE });
    this.#calc.step(links.map(({ name, addresses }): WorldChange => ({
      origin: `interface/${name}`,
      objects: [{ kind: "interface", id: name, addresses: addresses.map((text): Address => parseAddress(text)) }],
    })));
  }

  /** Brings it to a world, in the order of its resources. Resources that are the same objects as before have not changed. */
  to(resources: Iterable<Resource>): CalcResult {
    const now = new Map<string, { key: ResourceKey; value: Resource; resource: Resource }>();
    for (const resource of resources) {
      const { key, value } = stored(resource);
      now.set(keyText(key), { key, value, resource });
    }
    const changes: WorldChange[] = [];
    const tell = (change: WorldChange | undefined) => void (change && changes.push(change));
    for (const [text, resource] of this.#there) {
      if (!now.has(text)) tell(this.#translator.translate({ key: stored(resource).key }));
    }
    for (const [text, { key, value, resource }] of now) {
      if (this.#there.get(text) !== resource) tell(this.#translator.translate({ key, value }));
    }
    this.#there = new Map([...now].map(([text, { resource }]) => [text, resource]));
    return this.#calc.step(changes);
  }
}

/** A node that starts with this world. */
export const freshResult = (facts: NodeFacts, resources: Iterable<Resource>): CalcResult =>
  new Following(facts).to(resources);

const config = parseConfig(undefined);
/** What cuts flows on a kernel that can do all of it. */
const CUT: CutOptions = { mark: secondBit(config.markMask), resets: true };

/** The nftables renderer as the dataplane makes it without configuration, or with `form` in it. `cut`: as the kernel can do it. */
export const newRenderer = (shape: "flat" | "linear" = "flat", cut: CutOptions | undefined = CUT): Renderer =>
  new Renderer({ logGroup: config.logGroup, passedMark: lowestBit(config.markMask), cut, shape });

/** As `newRenderer` wants it, of the kernel behind a socket. */
export const cutOf = (socket: NetlinkSocket): CutOptions | undefined => probeCut(socket, CUT.mark);
