/** Services over real packets. */
import { dataplaneServices } from "../../test/contract/dataplane_services.ts";
import { openDataplane } from "./testdata/open.ts";

dataplaneServices({ open: (namespace) => openDataplane(namespace) });
