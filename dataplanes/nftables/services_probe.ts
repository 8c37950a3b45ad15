/** A table with a frontend of each kind, to ask the kernel whether it takes what services need. */
import { parseAddress, parseCidr } from "../../src/model/address.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { type BackendList, frontendKey, type ServiceFrontend } from "../../src/model/services.ts";
import { elementsOf, type NftSet, type Ruleset } from "./ruleset.ts";
import { ServiceRules } from "./services.ts";
import { Chains } from "./shared_entries.ts";

export function serviceProbe(): Ruleset {
  const frontends = ([["192.0.2.1", "0.0.0.0/0", 4], ["2001:db8::1", "::/0", 6]] as const).flatMap(
    ([text, all, family]) => {
      const address = parseAddress(text);
      const one: BackendList = { id: "one", backends: [{ address, port: 1 }], empty: "reject" };
      const none: BackendList = { id: "none", backends: [], empty: "reject" };
      const place = { family, protocol: PROTOCOLS.TCP, title: "probe" };
      const external = {
        ...place,
        backends: one,
        masqueradeOutside: true,
        affinitySeconds: 1,
        sources: [parseCidr(all)],
      };
      return [
        { ...place, address, port: 1, scope: "cluster" as const, backends: none, masqueradeOutside: false },
        { ...external, address, port: 2, scope: "external" as const, outside: none },
        { ...external, port: 3, scope: "node" as const },
      ].map((frontend): ServiceFrontend => ({ ...frontend, key: frontendKey(frontend) }));
    },
  );
  const chains = new Chains();
  const interfaces = (fields: NftSet["fields"]): NftSet => ({
    fields,
    interval: false,
    map: false,
    elements: elementsOf([]),
  });
  const sets = persistentMap<string, NftSet>([["workloads", interfaces(["ifname"])], [
    "self",
    interfaces(["ifname", "ifname"]),
  ]])
    .edit();
  new ServiceRules(1, chains).follow(
    {
      frontends: persistentMap(frontends.map((one) => [one.key, one] as const)),
      healthChecks: persistentMap(),
      nodePortAddresses: [],
      podNets: [],
    },
    sets,
  );
  return { sets: sets.finish(), chains: chains.finish() };
}
