/** Real packets between namespaces through a node whose rules we wrote. */
import { dataplaneReach } from "../../test/contract/dataplane_reach.ts";
import { openDataplane } from "./testdata/open.ts";

dataplaneReach((namespace) => openDataplane(namespace));
