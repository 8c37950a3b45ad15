/** The differential fuzzer's packets through policy of nftables, with services of IPVS beside it that none of them is for. */
import { describe } from "bun:test";
import type { Dataplane } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { services } from "../../src/model/testdata/services.ts";
import { openSubject } from "../contract/dataplane.ts";
import { dataplaneFuzz } from "../contract/dataplane_fuzz.ts";
import { nftablesWithIpvs } from "../contract/ipvs_composition.ts";
import { rulesOf } from "../fuzz/kernel/kernel_judge.ts";
import { IN_GUEST } from "./guest.ts";

const SEEDS = 3;
const SERVICES = services([
  "tcp 10.96.0.1:80 > 10.0.0.1:8080",
  "udp [fd96::1]:53 > [fd00::1]:5353",
  "tcp 10.96.0.2:80 > reject",
  "tcp node4:32767 > 10.0.0.1:8080",
]);

async function open(namespace: NetworkNamespace): Promise<Dataplane> {
  runIn(namespace, "ip", "link", "set", "lo", "up");
  const dataplane = await openSubject({ plugin: nftablesWithIpvs }, namespace);
  const apply = dataplane.apply.bind(dataplane);
  dataplane.apply = (desired, signal) => apply({ ...desired, services: SERVICES }, signal);
  return dataplane;
}

describe.if(IN_GUEST)("on a kernel with IPVS", () =>
  dataplaneFuzz("nftables + ipvs", SEEDS, {
    open,
    rules: rulesOf,
  }));
