import { addressFamily, cidrFamily, cidrPrefix } from "../model/address.ts";
import type { Address, Cidr, Family } from "../model/address.ts";
import type { BackendList, ServiceFrontend } from "../model/services.ts";
import { frontendKey } from "../model/services.ts";
import type { ServiceObject, ServicePort } from "../model/world.ts";

/** The lists of one port in one family. */
export interface PortLists {
  readonly cluster: BackendList;
  readonly local: BackendList;
}

/** Which traffic policies a service follows anywhere: lists of the other are not needed. */
export function policiesOf(service: ServiceObject): { readonly cluster: boolean; readonly local: boolean } {
  const isExternal = service.externalAddresses.length + service.loadBalancerAddresses.length > 0 ||
    service.ports.some(({ nodePort }) => nodePort !== undefined);
  return {
    // Also with externalTrafficPolicy Local: who is inside takes the short way.
    cluster: isExternal || !service.internalLocal,
    local: service.internalLocal || isExternal && service.externalLocal,
  };
}

/**
 * Nobody forwards for headless services. A family in which a service has no cluster address is not one of its families, so it
 * has neither node ports nor external addresses there.
 */
export function familiesOf(service: ServiceObject): readonly Family[] {
  if (service.proxiedElsewhere) return [];
  const families = new Set(service.clusterAddresses.map(addressFamily));
  return ([4, 6] as const).filter((family) => families.has(family));
}

/** The frontends of one port in one family; of the same address and port, the first counts. */
export function frontendsOf(
  service: ServiceObject,
  port: ServicePort,
  family: Family,
  { cluster, local }: PortLists,
): readonly ServiceFrontend[] {
  const title = port.name === "" ? service.id : `${service.id}:${port.name}`;
  const { protocol } = port;
  const affinity = service.affinitySeconds === undefined ? {} : { affinitySeconds: service.affinitySeconds };
  const own = (addresses: readonly Address[]) => addresses.filter((address) => addressFamily(address) === family);
  const frontend = (
    place: Pick<ServiceFrontend, "address" | "port" | "scope">,
    backends: BackendList,
    rest: Pick<ServiceFrontend, "outside" | "masqueradeOutside" | "sources">,
  ): ServiceFrontend => {
    const key = frontendKey({ ...place, family, protocol });
    return { key, family, protocol, title, ...place, backends, ...rest, ...affinity };
  };
  const outside = {
    ...service.externalLocal && local !== cluster ? { outside: local } : {},
    masqueradeOutside: !service.externalLocal,
  };
  const sources = sourcesOf(service, family);
  return [
    ...own(service.clusterAddresses).map((address) =>
      frontend({ address, port: port.port, scope: "cluster" }, service.internalLocal ? local : cluster, {
        masqueradeOutside: false,
      })
    ),
    // Before the external ones, which ask nobody where they come from.
    ...own(service.loadBalancerAddresses).map((address) =>
      frontend({ address, port: port.port, scope: "external" }, cluster, {
        ...outside,
        ...sources === undefined ? {} : { sources },
      })
    ),
    ...own(service.externalAddresses).map((address) =>
      frontend({ address, port: port.port, scope: "external" }, cluster, outside)
    ),
    ...port.nodePort === undefined ? [] : [frontend({ port: port.nodePort, scope: "node" }, cluster, outside)],
  ];
}

/** Whoever names ranges of one family only has not let anybody of the other in. */
function sourcesOf({ sourceRanges }: ServiceObject, family: Family): readonly Cidr[] | undefined {
  const ranges = sourceRanges?.filter((range) => cidrFamily(range) === family);
  return ranges?.some((range) => cidrPrefix(range) === 0) ? undefined : ranges && [...new Set(ranges)].sort();
}

export function sameFrontend(a: ServiceFrontend, b: ServiceFrontend | undefined): b is ServiceFrontend {
  return b !== undefined && a.key === b.key && a.scope === b.scope && a.title === b.title &&
    a.backends === b.backends && a.outside === b.outside && a.masqueradeOutside === b.masqueradeOutside &&
    a.affinitySeconds === b.affinitySeconds && a.sources?.length === b.sources?.length &&
    (a.sources ?? []).every((range, i) => range === b.sources![i]);
}
