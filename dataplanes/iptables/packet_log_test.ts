/** Logged packets through the real kernel, each test in network namespaces of its own. */
import { afterAll, describe } from "bun:test";
import { dataplaneLogs } from "../../test/contract/dataplane_logs.ts";
import { openDataplane } from "./testdata/open.ts";
import { removeLocks } from "./testdata/tools.ts";

afterAll(removeLocks);

describe.each(["legacy", "nft"] as const)(
  "iptables (%s)",
  (variant) => dataplaneLogs((namespace, config) => openDataplane(namespace, { variant, ...config })),
);
