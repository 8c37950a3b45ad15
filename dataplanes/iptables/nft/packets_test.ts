/** Real packets between namespaces through a node whose rules we wrote, in nf_tables. */
import { afterAll } from "bun:test";
import { dataplaneReach } from "../../../test/contract/dataplane_reach.ts";
import { openDataplane } from "../testdata/open.ts";
import { removeLocks } from "../testdata/tools.ts";

afterAll(removeLocks);

dataplaneReach((namespace) => openDataplane(namespace, { variant: "nft" }));
