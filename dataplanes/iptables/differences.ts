/** What the kernel has otherwise than wanted, as lines for people: `- ` found, `+ ` wanted, `~ ` so much more. Reads at most. */
import { type Address, type Cidr, type Family, formatAddress, formatCidr } from "../../src/model/address.ts";
import { listSets, parseSetPart, type SetPart } from "../../src/kernel/netlink/schema/ipset.ts";
import type { NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { printRule } from "./print.ts";
import { type IpSet, OURS, type Table } from "./ruleset.ts";
import type { ShownTable } from "./backend.ts";
import { isRule, type PlanOptions, type WantedTable } from "./table.ts";

/** Of one chain or set; how many there are beyond is said. */
const LINES_MAX = 50;
/** Rules are looked for among as many others as this allows; where more differ, their numbers are told. */
const COMPARISONS_MAX = 1_000_000;

/**
 * @param found what there is; undefined where the kernel has no such table yet
 * @param wanted `table`, encoded; undefined where nothing of ours is to be there
 * @param isAsWanted whether nothing would be written
 */
export function tableDifferences(
  found: ShownTable | undefined,
  table: Table | undefined,
  wanted: WantedTable,
  options: PlanOptions,
  isAsWanted: () => boolean,
): readonly string[] {
  const chains = new Map((found?.chains ?? []).map((chain) => [chain.name, chain]));
  const family = found?.family ?? table?.family ?? 4;
  const title = `ip${family === 6 ? "6" : ""}tables ${found?.info.table ?? table?.table}`;
  const lines: string[] = [];
  for (const { name, rules } of chains.values()) {
    if (name.startsWith(OURS) && !wanted.chains.has(name)) {
      lines.push(`- ${title} chain ${name} with ${rules.length} rules`);
    }
  }
  for (const [name, rules] of wanted.chains) {
    const chain = chains.get(name);
    if (chain === undefined) lines.push(`+ ${title} chain ${name} with ${rules.length} rules`);
    else {
      const printed = (index: number) => printRule(table!.chains.get(name)![index]!, family);
      lines.push(...chainDifferences(`${title} -A ${name}`, family, chain, rules, printed, options));
    }
  }
  for (const [hook, rule] of wanted.hooks) {
    const jumps = (chains.get(hook)?.rules ?? []).filter((entry) => isRule(family, entry, rule, options.indexOf));
    if (jumps.length === 0) lines.push(`+ ${title} -A ${hook} -j ${rule.chain}`);
  }
  if (found === undefined || lines.length > 0) return lines;
  // Our jumps stand elsewhere, more than once, or lead from other people's chains.
  return isAsWanted() ? [] : [`- ${title} jumps to chains of ours elsewhere than wanted`];
}

function chainDifferences(
  title: string,
  family: Family,
  chain: ShownTable["chains"][number],
  wanted: NonNullable<ReturnType<WantedTable["chains"]["get"]>>,
  printed: (index: number) => string,
  { indexOf }: PlanOptions,
): readonly string[] {
  const found = chain.rules;
  const same = (i: number, j: number) => isRule(family, found[i]!, wanted[j]!, indexOf);
  let start = 0;
  while (start < found.length && start < wanted.length && same(start, start)) start++;
  let end = found.length, wantedEnd = wanted.length;
  while (end > start && wantedEnd > start && same(end - 1, wantedEnd - 1)) end--, wantedEnd--;
  if (start === end && start === wantedEnd) return [];
  if ((end - start) * (wantedEnd - start) > COMPARISONS_MAX) {
    return [`~ ${title}: found ${found.length} rules, wanted ${wanted.length}, and many of them are others`];
  }
  const left = new Set(Array.from({ length: end - start }, (_, i) => start + i));
  const missing: number[] = [];
  for (let j = start; j < wantedEnd; j++) {
    const at = [...left].find((i) => same(i, j));
    if (at === undefined) missing.push(j);
    else left.delete(at);
  }
  const lines = [
    ...[...left].map((i) => `- ${title} rule ${i + 1}`),
    ...missing.map((j) => `+ ${title} ${printed(j)}`),
  ];
  if (lines.length === 0) return [`- ${title}: its ${found.length} rules in another order`];
  return bounded(lines, title);
}

/** @throws {KernelError} */
export function setDifferences(socket: NetlinkSocket, wanted: ReadonlyMap<string, IpSet>): readonly string[] {
  const found = new Map<string, { readonly header: NonNullable<SetPart["header"]>; readonly members: Set<string> }>();
  for (const message of socket.dump("list ip sets", listSets())) {
    const { name, header, members } = parseSetPart(message);
    if (!name.startsWith(OURS)) continue;
    if (header !== undefined) found.set(name, { header, members: new Set(members) });
    else for (const member of members) found.get(name)?.members.add(member);
  }
  const lines: string[] = [];
  for (const [name, { members }] of found) {
    if (!wanted.has(name)) lines.push(`- ip set ${name} with ${members.size} members`);
  }
  for (const [name, set] of wanted) {
    const there = found.get(name);
    if (there === undefined) lines.push(`+ ip set ${name}`);
    else if (there.header.kind !== set.kind || there.header.family !== set.family) {
      lines.push(`- ip set ${name} of another type`, `+ ip set ${name}`);
    } else {
      const title = `ip set ${name}`, missing: string[] = [];
      set.content.forEach((member) => {
        if (!there.members.delete(member)) missing.push(member);
      });
      const text = (member: string) => printMember(set, member);
      lines.push(...bounded([
        ...[...there.members].map((member) => `- ${title} ${text(member)}`).sort(),
        ...missing.map((member) => `+ ${title} ${text(member)}`).sort(),
      ], title));
    }
  }
  return lines;
}

/** As `ipset list` shows it. */
function printMember({ kind, family }: IpSet, member: string): string {
  const bytes = family === 4 ? 4 : 16;
  if (kind === "net") return formatCidr(member as Cidr);
  if (kind === "interface") return `${formatCidr(member.slice(0, bytes + 1) as Cidr)},${member.slice(bytes + 1)}`;
  const port = member.charCodeAt(bytes + 1) << 8 | member.charCodeAt(bytes + 2);
  return `${formatAddress(member.slice(0, bytes) as Address)},${member.charCodeAt(bytes)}:${port}`;
}

function bounded(lines: readonly string[], title: string): readonly string[] {
  if (lines.length <= LINES_MAX) return lines;
  return [...lines.slice(0, LINES_MAX), `~ ${title} and ${lines.length - LINES_MAX} lines more`];
}
