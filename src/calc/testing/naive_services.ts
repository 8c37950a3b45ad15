/** Services said slowly and plainly, from a whole world at once, as `servicesText` writes them. */
import { addressFamily, cidrFamily, formatAddress, formatCidr } from "../../model/address.ts";
import type { Address, Cidr } from "../../model/address.ts";
import type { ServiceBackend, ServiceObject, ServicePort } from "../../model/world.ts";
import type { NaiveWorld } from "./naive.ts";

interface Wish {
  readonly service: ServiceObject;
  /** 0: a cluster address. */
  readonly rank: number;
  readonly line: string;
}

export function naiveServices(world: NaiveWorld, node: string, nodePortAddresses: readonly Cidr[]): string {
  const places = new Map<string, Wish[]>(), checks = new Map<string, Wish[]>();
  const wish = (to: Map<string, Wish[]>, key: string, wish: Wish) => {
    const others = to.get(key) ?? [];
    if (!others.some((other) => other.service === wish.service)) to.set(key, [...others, wish]);
  };
  for (const service of world.all("service")) {
    for (const family of [4, 6] as const) {
      const isOf = (address: Address) => addressFamily(address) === family;
      if (service.proxiedElsewhere || !service.clusterAddresses.some(isOf)) continue;
      const health = service.healthCheckNodePort;
      if (health !== undefined) {
        const line = `check ${health} ${service.id} ${readyHere(world, service, node)}`;
        wish(checks, `${health}`, { service, rank: 1, line });
      }
      for (const port of service.ports) {
        const say = (rank: number, scope: string, place: string, number: number, backends: string, rest: string) => {
          const title = `${service.id}${port.name === "" ? "" : `:${port.name}`}`;
          const stays = service.affinitySeconds === undefined ? "" : ` stays ${service.affinitySeconds}`;
          const line = `${scope} ${place} ${port.protocol}/${number} ${title}: ${backends}${rest}${stays}`;
          wish(places, `${place} ${port.protocol}/${number}`, { service, rank, line });
        };
        const everywhere = backendsText(world, service, port, family, node, false);
        const here = backendsText(world, service, port, family, node, true);
        const outside = !service.externalLocal ? " masquerade" : here === everywhere ? "" : ` outside ${here}`;
        for (const address of service.clusterAddresses.filter(isOf)) {
          say(0, "cluster", formatAddress(address), port.port, service.internalLocal ? here : everywhere, "");
        }
        const ranges = service.sourceRanges?.filter((range) => cidrFamily(range) === family);
        const isAll = ranges === undefined || ranges.map(formatCidr).some((text) => text.endsWith("/0"));
        const from = isAll ? "" : ` from [${[...new Set(ranges.toSorted().map(formatCidr))]}]`;
        for (const address of service.loadBalancerAddresses.filter(isOf)) {
          say(1, "external", formatAddress(address), port.port, everywhere, outside + from);
        }
        for (const address of service.externalAddresses.filter(isOf)) {
          say(1, "external", formatAddress(address), port.port, everywhere, outside);
        }
        if (port.nodePort !== undefined) say(1, "node", `node${family}`, port.nodePort, everywhere, outside);
      }
    }
  }
  const first = (wishes: readonly Wish[]): string =>
    wishes.toSorted((a, b) => {
      const [left, right] = [a, b].map(({ rank, service }) =>
        [rank, service.createdMs ?? Number.MAX_VALUE, service.id] as const
      );
      const at = left!.findIndex((key, i) => key !== right![i]);
      return left![at]! < right![at]! ? -1 : 1;
    })[0]!.line;
  return [
    ...[...places.values(), ...checks.values()].map(first).sort(),
    `node ports on ${nodePortAddresses.map(formatCidr)}`,
    `pods in ${
      [...new Set(world.all("pool").map(({ cidr }) => cidr))].sort((a, b) => a.length - b.length || (a < b ? -1 : 1))
        .map(formatCidr)
    }`,
  ].join("\n");
}

function readyHere(world: NaiveWorld, { id }: ServiceObject, node: string): number {
  const slices = world.all("serviceBackends").filter(({ service, ports }) => service === id && ports.length > 0);
  const count = (family: 4 | 6) =>
    new Set(
      slices.filter((slice) => slice.family === family).flatMap(({ backends }) => backends)
        .filter((backend) => backend.ready && backend.node === node).map(({ address }) => address),
    ).size;
  return Math.max(count(4), count(6));
}

/** Every endpoint by its place, with all that any slice says of it. */
function backendsText(
  world: NaiveWorld,
  { id }: ServiceObject,
  { name, protocol }: ServicePort,
  family: 4 | 6,
  node: string,
  onlyHere: boolean,
): string {
  const saidOf = new Map<string, ServiceBackend[]>();
  for (const slice of world.all("serviceBackends")) {
    const port = slice.ports.find((port) => port.name === name && port.protocol === protocol);
    if (slice.service !== id || slice.family !== family || port === undefined) continue;
    for (const backend of slice.backends) {
      const place = backend.address + String.fromCharCode(port.port);
      saidOf.set(place, [...saidOf.get(place) ?? [], backend]);
    }
  }
  const endpoints = [...saidOf].sort(([a], [b]) => a < b ? -1 : 1).map(([place, said]) => {
    const isReady = said.some(({ ready }) => ready);
    const isServing = said.some(({ serving, terminating }) => serving && terminating);
    const isEnding = said.some(({ terminating }) => terminating);
    // What the slices say that know it best.
    const best = said.filter(({ ready, serving, terminating }) =>
      isReady ? ready : isServing ? !ready && serving && terminating : isEnding ? terminating : true
    );
    return {
      text: `${formatAddress(place.slice(0, -1) as Address)}:${place.charCodeAt(place.length - 1)}`,
      isHere: said.some((backend) => backend.node === node),
      isReady,
      isServing,
      isEnding,
      zones: best.flatMap(({ forZones }) => forZones ?? []),
      nodes: best.flatMap(({ forNodes }) => forNodes ?? []),
    };
  });
  const ready = endpoints.filter(({ isReady }) => isReady);
  const zone = world.get("node", node)?.labels.get("topology.kubernetes.io/zone");
  const all = (key: "zones" | "nodes") => ready.every((endpoint) => endpoint[key].length > 0);
  const some = (key: "zones" | "nodes", value: string | undefined) =>
    ready.some((endpoint) => value !== undefined && endpoint[key].includes(value));
  const considered = onlyHere ? endpoints.filter(({ isHere }) => isHere) : endpoints;
  const readyOnes = considered.filter(({ isReady }) => isReady);
  const chosen = readyOnes.length === 0
    ? considered.filter(({ isServing }) => isServing)
    : onlyHere
    ? readyOnes
    : all("nodes") && some("nodes", node)
    ? readyOnes.filter(({ nodes }) => nodes.includes(node))
    : all("zones") && some("zones", zone)
    ? readyOnes.filter(({ zones }) => zones.includes(zone!))
    : readyOnes;
  const shown = considered.filter((one) => chosen.includes(one) || !one.isReady && one.isEnding);
  const list = `(${shown.map((one) => one.text + (chosen.includes(one) ? "" : "~")).join(" ")})`;
  if (chosen.length > 0) return list;
  return `${onlyHere && endpoints.some(({ isReady, isServing }) => isReady || isServing) ? "drop" : "reject"} ${list}`;
}
