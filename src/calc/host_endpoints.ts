import type { HostEndpointObject } from "../model/world.ts";
import type { WorldStore } from "./store.ts";

/**
 * The interfaces of each host endpoint of the node, by its id, in order of name. An interface has one host endpoint: the
 * one that names it, else one that expects an address it holds; of several the smallest id. `*` stands for all that is left.
 * What `hasWorkload` says is a workload's link, whoever names it: the workload's own policy is judged there.
 */
export function interfacesOf(
  hosts: readonly HostEndpointObject[],
  store: WorldStore,
  hasWorkload: (interfaceName: string) => boolean,
): ReadonlyMap<string, readonly string[] | "*"> {
  const owners = new Map<string, string>();
  const byId = [...hosts].sort((a, b) => a.id < b.id ? -1 : 1);
  for (const { id, interfaceName } of byId) {
    if (interfaceName === undefined || owners.has(interfaceName) || hasWorkload(interfaceName)) continue;
    owners.set(interfaceName, id);
  }
  for (const { id, interfaceName, expectedAddresses } of byId) {
    if (interfaceName !== undefined) continue;
    for (const link of store.all("interface")) {
      const expected = link.addresses.some((address) => expectedAddresses.includes(address));
      if (expected && !owners.has(link.id) && !hasWorkload(link.id)) owners.set(link.id, id);
    }
  }
  const interfaces = new Map<string, string[] | "*">(byId.map(({ id }) => [id, []]));
  for (const [name, id] of owners) {
    if (name === "*") interfaces.set(id, "*");
    else (interfaces.get(id) as string[]).push(name);
  }
  for (const names of interfaces.values()) if (names !== "*") names.sort();
  return interfaces;
}

export function sameInterfaces(a: readonly string[] | "*", b: readonly string[] | "*"): boolean {
  return a === b || (a !== "*" && b !== "*" && a.length === b.length && a.every((name, i) => name === b[i]));
}
