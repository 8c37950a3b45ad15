import type { Address } from "../../src/model/address.ts";
import type { ServicePlace } from "../../src/kernel/service_flows.ts";
import type { Ruleset } from "./ruleset.ts";
import { anyAddress } from "./services_chains.ts";

/** The frontends that a table has: after a restart, whoever follows their UDP flows asks which there were. */
export function servicePlaces(ruleset: Ruleset | undefined): readonly ServicePlace[] {
  const places: ServicePlace[] = [];
  for (const family of [4, 6] as const) {
    const bytes = family === 4 ? 4 : 16;
    ruleset?.sets.get(`services${family}`)?.elements.forEach((_, key) => {
      if (key.length !== bytes + 8) return;
      const address = key.slice(0, bytes) as Address;
      places.push({
        family,
        protocol: key.charCodeAt(bytes),
        port: key.charCodeAt(bytes + 4) << 8 | key.charCodeAt(bytes + 5),
        ...address === anyAddress(family) ? {} : { address },
      });
    });
  }
  return places;
}
