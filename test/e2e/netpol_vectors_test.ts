import { netpolVectors } from "./netpol_vectors.ts";

netpolVectors("nftables");
