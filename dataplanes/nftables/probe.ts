/** What the kernel can do, found by asking it to: a transaction that is refused at its end, so that nothing is left of it. */
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import type { Family } from "../../src/model/address.ts";
import type { Aspect, Dataplane } from "../../src/sdk/dataplane.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { explainError, UnavailableError } from "../../src/sdk/errors.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import {
  newTable,
  ProtocolFamily,
  SUBSYSTEM_NFTABLES,
  type TableName,
} from "../../src/kernel/netlink/schema/nftables.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { CutOptions } from "./base_chains.ts";
import { diff } from "./diff.ts";
import { sampleTable } from "./fast_path_table.ts";
import { elementsOf, type Expression, interfaceKey, type NftChain, type NftSet, type Ruleset } from "./ruleset.ts";
import { serviceProbe } from "./services_probe.ts";

const PROBE: TableName = { family: ProtocolFamily.Inet, table: "manx-probe" };
const PROBE_LINKS: TableName = { family: ProtocolFamily.Netdev, table: "manx-probe" };

/** @throws {UnavailableError} where the kernel lacks what policy needs */
export function probe(socket: NetlinkSocket): Dataplane["capabilities"] {
  const policy = refusal(socket, policyRuleset);
  if (policy !== undefined) {
    throw new UnavailableError(
      `probe nftables: found ${
        explainError(policy)
      }, wanted a kernel with nf_tables, its inet family, maps, intervals, counters, conntrack, log and limit, and the right to use them`,
      { cause: policy },
    );
  }
  const aspects = new Set<Aspect>(["policy"]);
  if (refusal(socket, natRuleset) === undefined) aspects.add("nat");
  return { aspects, families: new Set<Family>([4, 6]), atomicity: "all" };
}

/** Whether the kernel has what services need: their rules themselves, for a frontend of each kind. */
export const probeServices = (socket: NetlinkSocket): boolean => refusal(socket, serviceProbe()) === undefined;

/** How flows can be cut by this bit of the connection mark; undefined where the kernel does not know connection marks. */
export function probeCut(socket: NetlinkSocket, mark: number): CutOptions | undefined {
  if (mark === 0) return undefined;
  const works = (rules: NftChain["rules"]) =>
    refusal(socket, {
      sets: persistentMap(),
      chains: persistentMap([["cut", base("filter", "forward", 0, rules)]]),
    }) ===
      undefined;
  const isTcp: readonly Expression[] = [{ op: "meta", key: "l4proto", dreg: 0 }, {
    op: "cmp",
    sreg: 0,
    is: "eq",
    data: String.fromCharCode(PROTOCOLS.TCP),
  }];
  if (!works([[{ op: "ct", key: "mark", dreg: 0 }, ACCEPT]])) return undefined;
  return { mark, resets: works([[...isTcp, { op: "tcpReset" }]]) };
}

/** Why established flows can take no short way; undefined where they can. */
export function probeFastPath(socket: NetlinkSocket): string | undefined {
  const sampled: Ruleset = {
    sets: persistentMap(),
    chains: persistentMap([[
      "sampled",
      base("filter", "postrouting", 0, [[
        { op: "random", modulus: 2, offset: 0, dreg: 0 },
        { op: "cmp", sreg: 0, is: "eq", data: "\0\0\0\0" },
        { op: "ct", key: "status", dreg: 0 },
      ]]),
    ]]),
  };
  const found = refusal(socket, sampled) ?? refused(socket, sampleTable(PROBE_LINKS));
  return found === undefined
    ? undefined
    : `found ${
      explainError(found)
    }, wanted a kernel whose nf_tables has the families inet and netdev, numgen, ct and fwd`;
}

/** Why the kernel would not take the ruleset; undefined where it would. */
function refusal(socket: NetlinkSocket, ruleset: Ruleset): unknown {
  return refused(socket, diff(undefined, ruleset, PROBE));
}

function refused(socket: NetlinkSocket, table: readonly NetlinkMessage[]): unknown {
  // Nothing before it can fail with EEXIST, so that this says: all before it was fine. The kernel then takes all back.
  const last: NetlinkMessage[] = [newTable(PROBE), newTable(PROBE, { exclusive: true })];
  try {
    socket.transaction("probe nftables", SUBSYSTEM_NFTABLES, [...table, ...last]);
  } catch (error) {
    return isErrno(error, "EEXIST") ? undefined : error;
  }
  return new Error("a transaction that cannot hold was accepted");
}

const ACCEPT: Expression = { op: "verdict", verdict: { kind: "accept" } };

const base = (
  type: "filter" | "nat",
  hook: "prerouting" | "forward" | "postrouting",
  priority: number,
  rules: NftChain["rules"],
): NftChain => ({
  base: { type, hook, priority, policy: "accept" },
  rules,
});

const policyRuleset: Ruleset = {
  sets: persistentMap<string, NftSet>([
    ["states", {
      fields: ["ct_state"],
      interval: false,
      map: true,
      elements: elementsOf([["\x02\0\0\0", { kind: "accept" }]]),
    }],
    ["links", {
      fields: ["ifname"],
      interval: false,
      map: true,
      elements: elementsOf([[interfaceKey("x"), { kind: "goto", chain: "end" }]]),
    }],
    ["nets", {
      fields: ["ipv6_addr"],
      interval: true,
      map: false,
      elements: elementsOf([["\0".repeat(16) + "\x7f" + "\xff".repeat(15), true]]),
    }],
    ["ports", {
      fields: ["inet_proto", "inet_service"],
      interval: true,
      map: true,
      elements: elementsOf([["\x06\0\0\0\x00\x01\0\0" + "\x06\0\0\0\x00\x09\0\0", { kind: "drop" }]]),
    }],
    ["counts", {
      fields: ["ipv6_addr"],
      interval: false,
      map: false,
      counted: true,
      elements: elementsOf([["\x01".repeat(16), "probe"]]),
    }],
  ]),
  chains: persistentMap<string, NftChain>([
    ["end", {
      rules: [[{ op: "limit", rate: 1, unitSeconds: 1, burst: 5 }, { op: "log", group: 1, prefix: "probe" }], [ACCEPT]],
    }],
    [
      "forward",
      base("filter", "forward", 0, [
        [{ op: "ct", key: "state", dreg: 0 }, { op: "vmap", set: "states", sreg: 0 }],
        [{ op: "meta", key: "iifname", dreg: 0 }, { op: "vmap", set: "links", sreg: 0 }],
        [{ op: "payload", base: "network", offset: 8, length: 16, dreg: 0 }, {
          op: "lookup",
          set: "nets",
          sreg: 0,
          invert: true,
        }, ACCEPT],
        [
          { op: "meta", key: "l4proto", dreg: 0 },
          { op: "payload", base: "transport", offset: 2, length: 2, dreg: 1 },
          { op: "vmap", set: "ports", sreg: 0 },
        ],
        [
          { op: "immediate", dreg: 0, data: "\x01".repeat(16) },
          { op: "lookup", set: "counts", sreg: 0, invert: false },
          ACCEPT,
        ],
        [{ op: "meta", key: "l4proto", dreg: 0 }, { op: "range", sreg: 0, is: "eq", from: "\x01", to: "\x02" }, ACCEPT],
      ]),
    ],
    ["raw", base("filter", "prerouting", -300, [[{ op: "notrack" }]])],
  ]),
};

const natRuleset: Ruleset = {
  sets: persistentMap(),
  chains: persistentMap<string, NftChain>([["nat", base("nat", "postrouting", 100, [[{ op: "masquerade" }]])]]),
};
