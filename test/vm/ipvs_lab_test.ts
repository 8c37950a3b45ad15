/** The compiled binary on a kernel with IPVS: worked examples and Kubernetes' own cases, by nftables and ipvs together. */
import { describe } from "bun:test";
import { dataplanePackets } from "../contract/dataplane_packets.ts";
import { IN_GUEST } from "./guest.ts";

describe.if(IN_GUEST)("on a kernel with IPVS", () => dataplanePackets("ipvs", "examples"));
