/** A cluster of services with two endpoints each, as the calculation is told of it. */
import { type Address, addressFromBigInt } from "../../src/model/address.ts";
import type { WorldChange } from "../../src/model/world.ts";

/** Every so many endpoints one is here. */
const NODES = 50;
export const NODE = "n0";

const address = (network: number, i: number): Address => addressFromBigInt(BigInt(network) << 24n | BigInt(i), 4);

/** `seconds`: of session affinity. */
export function benchService(i: number, seconds?: number): WorldChange {
  const name = `service-${i}`, id = `bench/${name}`;
  return {
    origin: `Service/${id}`,
    objects: [{
      kind: "service",
      id,
      namespace: "bench",
      name,
      clusterAddresses: [address(11, i)],
      externalAddresses: [],
      loadBalancerAddresses: [],
      ports: [{ name: "http", protocol: 6, port: 80 }],
      ...(seconds === undefined ? {} : { affinitySeconds: seconds }),
      internalLocal: false,
      externalLocal: false,
    }],
  };
}

/** `second`: number of its second endpoint. */
export function benchSlice(i: number, second = 2 * i + 1): WorldChange {
  const service = `bench/service-${i}`;
  return {
    origin: `EndpointSlice/${service}`,
    objects: [{
      kind: "serviceBackends",
      id: `${service}-slice`,
      service,
      family: 4,
      ports: [{ name: "http", protocol: 6, port: 8080 }],
      backends: [2 * i, second].map((n) => ({
        address: address(10, n),
        node: `n${n % NODES}`,
        ready: true,
        serving: true,
        terminating: false,
      })),
    }],
  };
}

export const benchServices = (count: number): readonly WorldChange[] =>
  Array.from({ length: count }, (_, i) => [benchService(i), benchSlice(i)]).flat();
