/** Which endpoint an interface is of, and what is wrong with that. Pure. */
import type { Family } from "../../src/model/address.ts";
import type { DesiredHostEndpoint, DesiredState, DesiredWorkload } from "../../src/model/desired.ts";
import { interfaceMember } from "../../src/kernel/netlink/schema/ipset.ts";
import { INTERFACE_NAME_MAX } from "./dispatch.ts";

export interface Interfaces {
  /** Of workloads, by name; undefined: claimed by several. */
  readonly workloads: ReadonlyMap<string, DesiredWorkload | undefined>;
  /** Of host endpoints, by name, sorted. */
  readonly hosts: ReadonlyMap<string, DesiredHostEndpoint>;
  /** The host endpoint of every other interface. */
  readonly star: DesiredHostEndpoint | undefined;
  /** One line each. */
  readonly problems: readonly string[];
}

export function findInterfaces(
  { workloads, hostEndpoints }: Pick<DesiredState, "workloads" | "hostEndpoints">,
): Interfaces {
  const problems: string[] = [];
  return {
    workloads: findWorkloads(workloads.values(), problems),
    ...findHosts(hostEndpoints.values(), problems),
    problems,
  };
}

function findWorkloads(
  workloads: Iterable<DesiredWorkload>,
  problems: string[],
): ReadonlyMap<string, DesiredWorkload | undefined> {
  const found = new Map<string, DesiredWorkload | undefined>();
  for (const workload of byId(workloads)) {
    const { id, interfaceName } = workload;
    if (!isInterfaceName(interfaceName)) problems.push(`workload ${id}: ${wrongName(interfaceName)}`);
    else if (found.has(interfaceName)) {
      found.set(interfaceName, undefined);
      problems.push(`interface ${interfaceName} is claimed by several workloads: it is cut off`);
    } else found.set(interfaceName, workload);
  }
  return found;
}

function findHosts(
  endpoints: Iterable<DesiredHostEndpoint>,
  problems: string[],
): Pick<Interfaces, "hosts" | "star"> {
  const named = new Map<string, DesiredHostEndpoint>();
  let star: DesiredHostEndpoint | undefined;
  for (const endpoint of byId(endpoints)) {
    const claim = (what: string) =>
      problems.push(`host endpoint ${endpoint.id}: ${what} is another host endpoint's already`);
    if (endpoint.interfaces === "*") {
      if (star === undefined) star = endpoint;
      else claim("every interface");
      continue;
    }
    for (const name of endpoint.interfaces) {
      if (!isInterfaceName(name)) problems.push(`host endpoint ${endpoint.id}: ${wrongName(name)}`);
      else if (named.has(name)) claim(`interface ${name}`);
      else named.set(name, endpoint);
    }
  }
  return { hosts: new Map([...named].sort(([a], [b]) => a < b ? -1 : 1)), star };
}

/** Members of the set of who may send from where. */
export function sourcesOf(workloads: Interfaces["workloads"], family: Family): ReadonlySet<string> {
  const sources = new Set<string>();
  for (const [name, workload] of workloads) {
    for (const address of workload?.addresses ?? []) {
      if (address.length === (family === 4 ? 4 : 16)) sources.add(interfaceMember(address, name));
    }
  }
  return sources;
}

const byId = <T extends { readonly id: string }>(all: Iterable<T>): readonly T[] =>
  [...all].sort((a, b) => a.id < b.id ? -1 : 1);

const isInterfaceName = (name: string): boolean => /^[\x21-\x7e]{1,15}$/.test(name);
const wrongName = (name: string): string =>
  `found interface ${JSON.stringify(name)}, wanted a name of 1 to ${INTERFACE_NAME_MAX} bytes`;
