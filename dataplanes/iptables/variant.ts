/**
 * Which of the two iptables of a kernel is written to. Both see every packet; what matters is that people find our rules where they find
 * those of everybody else.
 */
import type { Family } from "../../src/model/address.ts";
import { getChains, parseChain } from "../../src/kernel/netlink/schema/nftables.ts";
import { familyNumber } from "../../src/kernel/netlink/schema/nftables_compat.ts";
import { explainError, UnavailableError } from "../../src/sdk/errors.ts";
import type { NetlinkSocket, XtablesSocket } from "../../src/sdk/kernel_door.ts";
import type { Host } from "../../src/sdk/plugin.ts";
import type { Backend } from "./backend.ts";
import { freeBits, type IptablesConfig } from "./config.ts";
import { LegacyTables } from "./legacy.ts";
import { NftTables } from "./nft/backend.ts";
import { nftExtensions, refusal } from "./nft/probe.ts";
import { type Abilities, hostVariant, probe } from "./probe.ts";
import { OURS, type TableName, TABLES } from "./ruleset.ts";
import { KEPT_CHAIN, type ParsedTable } from "./table.ts";

export type Variant = "legacy" | "nft";

/** What there is of others in one of them. */
export interface Traces {
  /** Chains of theirs, or rules in the kernel's own. */
  readonly rules: boolean;
  /** The kubelet makes a chain for this very question. */
  readonly hint: boolean;
}

export interface Choice {
  readonly variant: Variant;
  /** For people. */
  readonly why: string;
}

/** @param link what the host's `iptables` is, as far as its links say */
export function chooseVariant(
  traces: Readonly<Record<Variant, Traces | undefined>>,
  link: Variant | undefined,
): Choice {
  const { legacy, nft } = traces;
  if (legacy === undefined) return { variant: "nft", why: "the kernel has no legacy iptables" };
  if (nft === undefined) return { variant: "legacy", why: "the kernel has no iptables in nf_tables" };
  if (legacy.hint !== nft.hint) return { variant: nft.hint ? "nft" : "legacy", why: "the kubelet's chains are there" };
  if (legacy.rules !== nft.rules) {
    return { variant: nft.rules ? "nft" : "legacy", why: "everybody else's rules are there" };
  }
  if (link !== undefined) return { variant: link, why: `the host's iptables is iptables-${link}` };
  return { variant: "legacy", why: "nothing says otherwise" };
}

const HINTS: ReadonlySet<string> = new Set(["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"]);
const isTheirs = (name: string): boolean => !name.startsWith(OURS) && name !== KEPT_CHAIN;

/** @throws {TableError} {KernelError} */
export function legacyTraces(backend: LegacyTables): Traces {
  const tables: ParsedTable[] = backend.places().map((place) => backend.read(place));
  const chains = tables.flatMap((table) => table.chains);
  return {
    hint: chains.some(({ name }) => HINTS.has(name)),
    rules: chains.some(({ name, hook, rules }) =>
      hook === undefined ? isTheirs(name) : rules.some(({ leads }) => typeof leads !== "object" || isTheirs(leads.name))
    ),
  };
}

/** @throws {KernelError} */
export function nftTraces(netlink: NetlinkSocket, families: ReadonlySet<Family>): Traces {
  const chains = [...families].flatMap((family) => {
    const number = familyNumber(family);
    return netlink.dump("list chains", getChains(number)).map(parseChain).filter(({ header, attributes }) =>
      header.family === number && TABLES.includes(attributes.table as TableName)
    ).map(({ attributes: { table, name = "", hook, use = 0 } }) => ({ of: `${family} ${table}`, name, hook, use }));
  });
  // One rule in a hook's chain is our jump, where we have chains at all.
  const withOurs = new Set(chains.filter(({ name }) => !isTheirs(name)).map(({ of }) => of));
  return {
    hint: chains.some(({ name }) => HINTS.has(name)),
    rules: chains.some(({ of, name, hook, use }) =>
      hook === undefined ? isTheirs(name) : use > (withOurs.has(of) ? 1 : 0)
    ),
  };
}

export interface Opened extends Choice {
  readonly backend: Backend;
  readonly abilities: Abilities;
  /** The one that is not written to. */
  readonly other: Backend;
}

/** @throws {UnavailableError} where the kernel lacks what policy needs, or the variant that is asked for */
export function openVariant(
  config: IptablesConfig,
  host: Host,
  netlink: NetlinkSocket,
  sockets: ReadonlyMap<Family, XtablesSocket>,
): Opened {
  const legacy = new Map([...sockets].filter(([, socket]) => socket.supports("target", "ERROR", 0)));
  const refusals = new Map([...sockets.keys()].map((family) => [family, refusal(netlink, family)]));
  const nft = new Set([...refusals].filter(([, refused]) => refused === undefined).map(([family]) => family));
  const hasLegacy = legacy.has(4), hasNft = nft.has(4);
  const legacyTables = new LegacyTables(sockets),
    nftTables = new NftTables(host, netlink, nft, freeBits(config.markMask));
  if (!hasLegacy && !hasNft || config.variant === "nft" && !hasNft) {
    throw new UnavailableError(
      `probe iptables (nft): found ${
        explainError(refusals.get(4))
      }, wanted a kernel with nf_tables and its use of x_tables`,
    );
  }
  if (config.variant === "legacy" && !hasLegacy) {
    throw new UnavailableError("probe iptables: found a kernel without ip_tables, wanted one that has it");
  }
  const choice = config.variant !== "auto"
    ? { variant: config.variant, why: "the configuration says so" }
    : chooseVariant({
      legacy: hasLegacy ? legacyTraces(legacyTables) : undefined,
      nft: hasNft ? nftTraces(netlink, nft) : undefined,
    }, hostVariant());
  const isNft = choice.variant === "nft";
  const extensions = isNft ? new Map([...nft].map((family) => [family, nftExtensions(netlink, family)])) : legacy;
  const abilities = probe(extensions, netlink);
  const [backend, other] = isNft ? [nftTables, legacyTables] : [legacyTables, nftTables];
  return { ...choice, backend, abilities, other };
}
