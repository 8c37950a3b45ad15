import { dataplaneFuzz } from "../contract/dataplane_fuzz.ts";

const SEEDS = 10;

dataplaneFuzz("nftables", SEEDS);
