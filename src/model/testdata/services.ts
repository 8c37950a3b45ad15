/** For tests: services from a line each. */
import { type Address, parseAddress, parseCidr } from "../address.ts";
import { digest } from "../digest.ts";
import { persistentMap } from "../persistent_map.ts";
import { PROTOCOLS } from "../ports.ts";
import type { random } from "./random_lists.ts";
import { type BackendList, frontendKey, type ServiceFrontend, type ServiceState } from "../services.ts";

/** `10.0.0.1:80`, `[fd00::1]:80`. */
export function endpoint(text: string): { readonly address: Address; readonly port: number } {
  const at = text.lastIndexOf(":");
  return { address: parseAddress(text.slice(0, at).replace(/[[\]]/g, "")), port: Number(text.slice(at + 1)) };
}

/** `backends`: each `10.0.0.1:80`, those that drain with a `~` before; `reject` or `drop` for a list without. */
export function backends(text: string): BackendList {
  const isNone = text === "reject" || text === "drop";
  const all = isNone ? [] : text.split(" ").map((one) => ({
    ...endpoint(one.replace("~", "")),
    ...one.startsWith("~") ? { draining: true as const } : {},
  }));
  return { id: digest(text), backends: all, empty: text === "drop" ? "drop" : "reject" };
}

/**
 * `tcp 10.96.0.1:80 > 10.0.0.1:8080 10.0.0.2:8080`, `udp node4:30053 > …`; then, each after a bar: `scope external`,
 * `outside 10.0.0.1:80`, `masquerade`, `affinity 60`, `sources 192.0.2.0/24`. Node ports are of scope `node`.
 */
export function frontend(line: string): ServiceFrontend {
  const [head, ...more] = line.split(" | ");
  const [place, list] = head!.split(" > ");
  const [name, where] = place!.split(" ");
  const isNode = where!.startsWith("node");
  const port = Number(where!.slice(where!.lastIndexOf(":") + 1));
  const at = isNode
    ? { family: Number(where![4]) as 4 | 6, port }
    : { ...endpoint(where!), family: (where!.startsWith("[") ? 6 : 4) as 4 | 6 };
  const option = (key: string) => more.find((one) => one.split(" ")[0] === key)?.slice(key.length + 1);
  const protocol = PROTOCOLS[name!.toUpperCase() as "TCP"];
  const outside = option("outside"), affinity = option("affinity"), sources = option("sources");
  return {
    key: frontendKey({ ...at, protocol }),
    ...at,
    protocol,
    title: "test/service",
    scope: isNode ? "node" : (option("scope") ?? "cluster") as ServiceFrontend["scope"],
    backends: backends(list!),
    masqueradeOutside: option("masquerade") !== undefined,
    ...outside === undefined ? {} : { outside: backends(outside) },
    ...affinity === undefined ? {} : { affinitySeconds: Number(affinity) },
    ...sources === undefined ? {} : { sources: sources.split(" ").filter((one) => one !== "").map(parseCidr) },
  };
}

export function services(
  lines: readonly string[],
  more: { readonly podNets?: readonly string[]; readonly nodePortAddresses?: readonly string[] } = {},
): ServiceState {
  return {
    frontends: persistentMap(lines.map(frontend).map((one) => [one.key, one] as const)),
    healthChecks: persistentMap(),
    nodePortAddresses: (more.nodePortAddresses ?? []).map(parseCidr),
    podNets: (more.podNets ?? []).map(parseCidr),
  };
}

/** Random frontends over few places, so that they come, go and change. */
export function someServices(r: ReturnType<typeof random>, places = 6): ServiceState {
  const lines: string[] = [];
  for (let at = 0; at < places; at++) {
    if (r.chance(0.3)) continue;
    const v6 = r.chance(0.4);
    const list = () => {
      const some = Array.from({ length: 4 }, (_, i) => v6 ? `[fd00::${i + 1}]:80` : `10.0.0.${i + 1}:80`).filter(() =>
        r.chance(0.5)
      );
      return some.length === 0
        ? r.pick(["reject", "drop"])
        : some.map((one) => r.chance(0.2) ? `~${one}` : one).join(" ");
    };
    const place = r.chance(0.3) ? `node${v6 ? 6 : 4}:${30_000 + at}` : v6 ? `[fd96::${at}]:80` : `10.96.0.${at}:80`;
    const more = [
      ...r.chance(0.5) ? [" | scope external"] : [],
      ...r.chance(0.3) ? [` | outside ${list()}`] : [],
      ...r.chance(0.3) ? [" | masquerade"] : [],
      ...r.chance(0.3) ? [` | affinity ${r.pick([60, 10_800])}`] : [],
      ...r.chance(0.2) ? [` | sources ${v6 ? "fd00::/64 fd00:0:1::/48" : "10.0.0.0/24 192.0.2.1/32"}`] : [],
    ];
    lines.push(`${r.pick(["tcp", "udp", "sctp"])} ${place} > ${list()}${more.join("")}`);
  }
  return services(lines, {
    podNets: r.pick([[], ["10.0.0.0/8", "fd00::/16"]]),
    nodePortAddresses: r.pick([[], ["192.0.2.0/24"]]),
  });
}
