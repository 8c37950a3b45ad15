/** The Node resource of the node that this daemon runs on. */
import { type Address, formatAddress } from "../model/address.ts";
import type { Resource, ResourceKey } from "../model/resource.ts";
import type { Datastore } from "../sdk/datastore.ts";
import type { Clock } from "../sdk/plugin.ts";
import { NODE } from "./resources/core_source.ts";

/** On nodes that a daemon wrote: their addresses follow the daemon's. */
const REGISTERED_ANNOTATION = "node.manx/registered";
const CONFLICT_RETRIES = 5;

/** Writes the Node where there is none, or where a daemon wrote it and its addresses have changed, or it has none. */
export async function registerNode(
  datastore: Datastore,
  node: string,
  addresses: readonly Address[],
  clock: Clock,
  signal: AbortSignal,
): Promise<"created" | "updated" | "unchanged"> {
  const key: ResourceKey = { kind: NODE, namespace: "", name: node };
  const wanted = addresses.map((address) => ({ type: "InternalIP", address: formatAddress(address) }));
  for (let attempt = 0;; attempt++) {
    const before = await datastore.get(key, signal);
    const value = before === undefined ? newNode(node, wanted, clock.wallMs()) : updated(before.value, wanted);
    if (value === undefined) return "unchanged";
    try {
      await datastore.commit([{ key, value, expect: before?.revision ?? null }], signal);
      return before === undefined ? "created" : "updated";
    } catch (error) {
      if ((error as { code?: unknown }).code !== "conflict" || attempt >= CONFLICT_RETRIES) throw error;
    }
  }
}

type NodeAddress = { readonly type: string; readonly address: string };

const newNode = (name: string, addresses: readonly NodeAddress[], nowMs: number): Resource => ({
  apiVersion: "v1",
  kind: "Node",
  metadata: {
    name,
    uid: crypto.randomUUID(),
    creationTimestamp: new Date(nowMs).toISOString().replace(/\.\d+Z$/, "Z"),
    labels: { "kubernetes.io/hostname": name },
    annotations: { [REGISTERED_ANNOTATION]: "true" },
  },
  status: { addresses },
});

function updated(before: Resource, wanted: readonly NodeAddress[]): Resource | undefined {
  if (wanted.length === 0) return undefined;
  const status = before.status as { readonly addresses?: unknown } | undefined;
  const listed = Array.isArray(status?.addresses) ? status.addresses as Partial<NodeAddress>[] : [];
  const internal = listed.filter((entry) => entry?.type === "InternalIP").map((entry) => entry.address);
  const isOurs = before.metadata.annotations?.[REGISTERED_ANNOTATION] === "true";
  if (internal.length > 0 && (!isOurs || internal.join() === wanted.map((entry) => entry.address).join())) {
    return undefined;
  }
  return {
    ...before,
    status: { ...status, addresses: [...wanted, ...listed.filter((entry) => entry?.type !== "InternalIP")] },
  };
}
