/** Services over real packets, in nf_tables. */
import { afterAll } from "bun:test";
import { dataplaneServices } from "../../../test/contract/dataplane_services.ts";
import { openDataplane } from "../testdata/open.ts";
import { removeLocks } from "../testdata/tools.ts";

afterAll(removeLocks);

dataplaneServices({ open: (namespace) => openDataplane(namespace, { variant: "nft" }) });
