import nftables from "../../dataplanes/nftables/mod.ts";
import { dataplaneContract } from "./dataplane.ts";

// The worked examples and the e2e cases run on it in test/lab/scenarios_test.ts and test/e2e/netpol_vectors_test.ts, fuzzed packets in
// test/fuzz/kernel_test.ts.
dataplaneContract({
  plugin: nftables,
  kernel: {
    harm: {
      "a deleted table": ["nft delete table inet manx"],
      "a flushed table": ["nft flush table inet manx"],
      "an inserted rule": ["nft insert rule inet manx forward-to accept"],
      "a chain of somebody else": ["nft add chain inet manx extra", "nft add rule inet manx extra accept"],
      "a deleted element": ["nft delete element inet manx workloads { mx1 }"],
      "a policy changed to drop": ["nft 'chain inet manx input { policy drop; }'"],
      "a dormant table": ["nft 'table inet manx { flags dormant; }'"],
    },
  },
});
