/** A world of manifests with an explainer over it: for tests of explanations, without a daemon. */
import { MemoryStorage } from "../../../test/contract/memory_datastore.ts";
import { createCalc, DEFAULT_FAILSAFE } from "../../calc/mod.ts";
import type { Calc } from "../../calc/mod.ts";
import { parseAddress } from "../../model/address.ts";
import type { Dataplane } from "../../sdk/dataplane.ts";
import { systemClock } from "../clock.ts";
import { createExplainer, type Explainer, type ExplainParts } from "../explain/explain.ts";
import { silentLog } from "../log.ts";
import { createResources } from "../resources/resources.ts";
import { testRegistry } from "../test_registry.ts";
import { createTranslator } from "../resources/translation.ts";

export interface ExplainedWorld {
  readonly explainer: Explainer;
  readonly calc: Calc;
  readonly storage: MemoryStorage;
  apply(text: string, file?: string): Promise<void>;
  remove(text: string): Promise<void>;
}

export const NODE = "n1";
const registry = await testRegistry();

/** What no node counts by. */
const SILENT_DATAPLANE = { capabilities: { aspects: new Set(["policy"]) } } as unknown as Dataplane;

/** Applies `text` as `world.yaml`; the node that answers is `n1`, 192.168.0.1. */
export async function explainedWorld(text: string, parts: Partial<ExplainParts> = {}): Promise<ExplainedWorld> {
  const storage = new MemoryStorage(), datastore = storage.client();
  const calc = createCalc({ node: NODE, failsafe: DEFAULT_FAILSAFE });
  const translator = createTranslator(registry);
  const resources = createResources({ datastore, registry, clock: systemClock, programmed: () => Promise.resolve() });
  let seen = 0;
  const follow = () => {
    const changes = [...storage.entries.values()].filter(({ revision }) => revision > seen).flatMap(({ key, json }) =>
      translator.translate({ key, ...json === undefined ? {} : { value: JSON.parse(json) } }) ?? []
    );
    seen = storage.revision;
    calc.step(changes);
  };
  const world: ExplainedWorld = {
    explainer: createExplainer({
      node: NODE,
      failsafe: DEFAULT_FAILSAFE,
      calc,
      datastore,
      registry,
      dataplanes: [{ name: "none", instance: SILENT_DATAPLANE }],
      addresses: () => [parseAddress("192.168.0.1")],
      linkTowards: () => "eth0",
      isSynced: () => true,
      isInForce: () => true,
      log: silentLog,
      ...parts,
    }),
    calc,
    storage,
    async apply(text, file = "m.yaml") {
      await resources.apply({ text, file });
      follow();
    },
    async remove(text) {
      await resources.delete({ text, file: "m.yaml" });
      follow();
    },
  };
  if (text !== "") await world.apply(text, "world.yaml");
  return world;
}

/** A pod on a node, with the endpoint that its node attached: `pod("web", "n1", "10.0.0.2", { app: "web" })`. */
export function pod(
  name: string,
  node: string,
  addresses: string,
  labels: Readonly<Record<string, string>>,
  options: { readonly namespace?: string; readonly ports?: string; readonly account?: string } = {},
): string {
  const { namespace = "default", ports = "", account } = options;
  const networks = addresses.split(" ").map((address) => `"${address}/${address.includes(":") ? 128 : 32}"`);
  return `---
apiVersion: v1
kind: Pod
metadata: { name: ${name}, namespace: ${namespace}, labels: ${JSON.stringify(labels)} }
spec: { nodeName: ${node}, ${
    account === undefined ? "" : `serviceAccountName: ${account}, `
  }containers: [ { ports: [ ${ports} ] } ] }
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: { name: ${node}-${name}, namespace: ${namespace} }
spec: { node: ${node}, pod: ${name}, orchestrator: k8s, interfaceName: if-${name}, ipNetworks: [ ${
    networks.join(", ")
  } ] }
`;
}
