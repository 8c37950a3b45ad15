/** Changes of pairs, put together where they are the same: what a what-if answers. Pure. */
import type { Family } from "../../model/address.ts";
import type { PacketChange, VerdictWord, WhatIfGroup } from "../explain/view.ts";
import type { PacketClasses } from "./packets.ts";
import type { Party } from "./parties.ts";

/** Parties that no rule of either world tells apart; the first one stands for all. */
export interface Group {
  readonly members: readonly Party[];
  /** Whether its own lists, or sets in them, differ: as a source, as a destination. */
  readonly sends: boolean;
  readonly receives: boolean;
}

/** What changes between a source and a destination group, in one family. */
export interface PairChange {
  readonly family: Family;
  readonly from: Group;
  readonly to: Group;
  /** Of one node: a node and its own pods. */
  readonly except: readonly (readonly [string, string])[];
  readonly change: Change;
}

/** One object for equal ones of a family. */
export interface Change {
  /** Of its family. */
  readonly id: number;
  readonly words: readonly { readonly now: VerdictWord; readonly then: VerdictWord; readonly words: Words }[];
}

export type Words = ReturnType<PacketClasses["words"]>;

interface Piece {
  readonly from: Group[];
  readonly to: Group[];
  readonly except: (readonly [string, string])[];
  readonly families: readonly Family[];
  /** Of its packets: equal for equal ones. */
  readonly key: string;
  readonly packets: readonly PacketChange[];
}

/** Pairs with equal changes put together: first by destination, then by source. */
export function mergeChanges(found: readonly PairChange[]): readonly WhatIfGroup[] {
  const pairs = new Map<Group, Map<Group, PairChange[]>>();
  for (const change of found) {
    let targets = pairs.get(change.from);
    if (targets === undefined) pairs.set(change.from, targets = new Map());
    const changes = targets.get(change.to);
    if (changes === undefined) targets.set(change.to, [change]);
    else changes.push(change);
  }
  const packets = new Map<string, readonly PacketChange[]>();
  let pieces: Piece[] = [];
  for (const [from, targets] of pairs) {
    for (const [to, changes] of targets) {
      const families = familiesOf(from, to);
      const key = `${families} ${changes.map(({ family, change }) => `${family}:${change.id}`).join(" ")}`;
      if (!packets.has(key)) packets.set(key, packetChanges(changes));
      pieces.push({
        from: [from],
        to: [to],
        except: [...changes[0]!.except],
        families,
        key,
        packets: packets.get(key)!,
      });
    }
  }
  const ids = new Map<Group, number>();
  const idOf = (group: Group): number => ids.get(group) ?? (ids.set(group, ids.size), ids.size - 1);
  for (const [same, joined] of [["to", "from"], ["from", "to"]] as const) {
    const together = new Map<string, Piece>();
    for (const piece of pieces) {
      const key = `${piece.key} | ${piece[same].map(idOf)}`;
      const other = together.get(key);
      if (other === undefined) together.set(key, piece);
      else {
        other[joined].push(...piece[joined]);
        other.except.push(...piece.except);
      }
    }
    pieces = [...together.values()];
  }
  const names = (groups: readonly Group[]) =>
    groups.flatMap(({ members }) => members.map(({ name }) => name)).toSorted();
  return pieces.map(({ from, to, except, families, packets }): WhatIfGroup => ({
    from: names(from),
    to: names(to),
    except,
    families,
    packets,
  })).toSorted((a, b) => byText(`${a.from[0]} ${a.to[0]}`, `${b.from[0]} ${b.to[0]}`));
}

/** Those that both have. */
const familiesOf = (from: Group, to: Group): readonly Family[] =>
  ([4, 6] as const).filter((family) =>
    [from, to].every(({ members: [party] }) => party!.addresses.now.has(family) && party!.addresses.then.has(family))
  );

const byText = (a: string, b: string): number => a < b ? -1 : a > b ? 1 : 0;

/** Words of both families made one where they are the same. */
function packetChanges(byFamily: readonly PairChange[]): readonly PacketChange[] {
  const all = byFamily.flatMap(({ family, change }) => change.words.map((words) => ({ family, ...words })));
  const changes: PacketChange[] = [];
  for (const [now, then] of [["allow", "deny"], ["deny", "allow"]] as const) {
    const families = new Map<string, Family[]>();
    let more = 0;
    for (const { family, words } of all.filter((change) => change.now === now)) {
      more = Math.max(more, words.more);
      for (const word of words.what) families.set(word, [...families.get(word) ?? [], family]);
    }
    for (const group of [[4, 6], [4], [6]] as const) {
      const what = [...families].filter(([, list]) => list.join() === group.join()).map(([word]) => word);
      if (what.length > 0) changes.push({ what, more, families: group, now, then });
    }
  }
  return changes;
}
