/** Services over real packets. */
import { afterAll, describe } from "bun:test";
import { dataplaneServices } from "../../test/contract/dataplane_services.ts";
import { openDataplane } from "./testdata/open.ts";
import { removeLocks } from "./testdata/tools.ts";

afterAll(removeLocks);

for (const variant of ["legacy", "nft"]) {
  describe(`iptables (${variant})`, () =>
    dataplaneServices({ open: (namespace) => openDataplane(namespace, { variant }) }));
}
