/** One local workload with one policy, for benchmarks of what a dataplane writes. */
import { addressFromBigInt, addressToBigInt, type Cidr, hostCidr, parseAddress } from "../../src/model/address.ts";
import type { NeutralRule } from "../../src/model/rule.ts";
import type { WorldObject } from "../../src/model/world.ts";

/** Every other address from `first` on, so that nothing can be merged to prefixes. */
export const countUp = (first: string, count: number): readonly Cidr[] =>
  Array.from(
    { length: count },
    (_, i) => hostCidr(addressFromBigInt(addressToBigInt(parseAddress(first)) + BigInt(i) * 2n, 4)),
  );

export const onePod = (ingress: readonly NeutralRule[]): readonly WorldObject[] => [
  {
    kind: "workload",
    id: "w",
    node: "bench",
    namespace: "default",
    interfaceName: "mx0123456789a",
    addresses: [parseAddress("192.0.2.9")],
    labels: new Map(),
    ports: [],
    orchestrator: "cni",
  },
  {
    kind: "policy",
    id: "policy",
    tier: "default",
    sortName: "policy",
    selects: { op: "has", label: "projectcalico.org/orchestrator" },
    stage: "normal",
    staged: false,
    ingress,
  },
];

/** Its only policy allows a network set of all members. */
export const onePodOfSet = (members: readonly Cidr[]): readonly WorldObject[] => [
  { kind: "networkSet", id: "set", name: "set", labels: new Map([["in", "set"]]), nets: members },
  ...onePod([{
    action: "allow",
    source: { selector: { op: "eq", label: "in", value: "set" } },
    destination: {},
    origin: { policy: "policy", direction: "ingress", index: 0 },
  }]),
];
