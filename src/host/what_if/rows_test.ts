/** Rows say of every class of packets what the evaluator says of its packet. */
import { expect, test } from "bun:test";
import { createCalc, DEFAULT_FAILSAFE } from "../../calc/mod.ts";
import { Random, randomChange } from "../../calc/testing/random_world.ts";
import { parseWorld } from "../../calc/testing/world_text.ts";
import { addressFamily, parseAddress } from "../../model/address.ts";
import type { DesiredState, PolicyList } from "../../model/desired.ts";
import { judgeList } from "../../model/evaluate.ts";
import { hasBit } from "../bits.ts";
import { allLists } from "./lists.ts";
import { classifyPackets } from "./packets.ts";
import { Rows } from "./rows.ts";

const ADDRESSES = [
  "10.0.0.1",
  "10.0.0.2",
  "10.0.0.3",
  "10.0.1.1",
  "192.168.7.7",
  "9.9.9.9",
  "fd00::1",
  "fd00::2",
  "fd09::1",
]
  .map(parseAddress);

/** Every list, pair of addresses and class that `judgeList` sees otherwise. */
function differences(state: DesiredState, lists: readonly PolicyList[]): { asked: number; found: string[] } {
  const found: string[] = [];
  let asked = 0;
  for (const family of [4, 6] as const) {
    const addresses = ADDRESSES.filter((address) => addressFamily(address) === family);
    const packets = classifyPackets(family, { lists, sets: [state.sets], ports: [] });
    const rows = new Rows(state, packets, addresses);
    for (const list of lists) {
      for (const [source, from] of addresses.entries()) {
        for (const [destination, to] of addresses.entries()) {
          const row = rows.row(list, source, destination);
          for (let at = 0; at < packets.size; at++) {
            const packet = packets.packet(at, from, to);
            const wanted = judgeList(state, list, packet).verdict;
            const said = hasBit(row.allow, at)
              ? hasBit(row.deny, at) ? "both" : "allow"
              : hasBit(row.deny, at)
              ? "deny"
              : "next";
            asked++;
            if (said !== wanted) {
              found.push(`${list.id} ${source} → ${destination} ${JSON.stringify(packet)}: ${said}, wanted ${wanted}`);
            }
          }
        }
      }
    }
  }
  return { asked, found };
}

test.each(Array.from({ length: 40 }, (_, seed) => seed + 1))("random lists, seed %d", (seed) => {
  const random = new Random(seed * 1_000_003);
  const calc = createCalc({ node: "n1", failsafe: DEFAULT_FAILSAFE });
  const { desired } = calc.step(Array.from({ length: 60 }, () => randomChange(random)));
  const lists = allLists(desired);
  const { asked, found } = differences(desired, lists);
  expect(found).toEqual([]);
  expect(asked).toBeGreaterThan(100);
});

test("ports by range, name and service, their negations, source ports and ICMP are classes of their own", () => {
  const { desired } = createCalc({ node: "n1", failsafe: DEFAULT_FAILSAFE }).step(parseWorld(`
    pod a 10.0.0.1 app=a port=http:tcp/8080
    pod b 10.0.0.2 app=b port=http:tcp/80,dns:udp/53
    remote c 10.0.0.3 app=c port=http:tcp/81
    service default/db tcp/5432 10.0.0.3
    tier first order=1 default=pass
    policy p selects app == "a" tier=first
      egress pass tcp to port 8000-8999
      egress deny !udp to port 1-100
      egress log
    policy q selects app == "a" order=1
      ingress allow tcp to port http,100-200 not port 150
      ingress allow udp from port 53,1000-1999
      ingress allow icmp 8/0
      ingress deny icmp 8
      egress allow tcp to [app == "b"] port http
      egress allow tcp to service default/db
      egress allow sctp to not port 9
      egress allow tcp to [app == "c"] not port http
    pod e 10.0.1.1 app=e
    policy only-ports selects app == "e"
      egress allow tcp to [has(app)] port http
    policy r selects app == "a" order=2 staged
      ingress allow
  `));
  const lists = allLists(desired);
  expect(differences(desired, lists).found).toEqual([]);
  const { ingress } = desired.workloads.get("a")!;
  const packets = classifyPackets(4, { lists: [ingress], sets: [desired.sets], ports: [] });
  const rows = new Rows(desired, packets, ADDRESSES.filter((address) => addressFamily(address) === 4));
  // To a, at 10.0.0.1, from anybody.
  expect(packets.words(rows.row(ingress, 4, 0).allow)).toEqual({
    what: [
      "tcp/100-149",
      "tcp/151-200",
      "tcp/8080",
      "udp/1-65535 from port 53",
      "udp/1-65535 from port 1000-1999",
      "icmp/8/0",
    ],
    more: 0,
  });
});
