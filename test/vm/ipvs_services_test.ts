/** Services by the composition of nftables and ipvs do what services of every dataplane do: `test/contract`. */
import { openSubject } from "../contract/dataplane.ts";
import { dataplaneServices } from "../contract/dataplane_services.ts";
import { nftablesWithIpvs } from "../contract/ipvs_composition.ts";
import { guestTest } from "./guest.ts";

/** The guest is slow, and what comes at all comes at once. */
const SILENCE_MS = 700;

dataplaneServices({
  open: (namespace) => openSubject({ plugin: nftablesWithIpvs }, namespace),
  test: guestTest,
  silenceMs: SILENCE_MS,
  unserved: "refused",
  affinityOutlastsConnections: true,
});
