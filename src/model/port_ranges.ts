/** Arithmetic on sets of ports: ranges sorted, disjoint and never adjacent. */
import type { PortRange } from "./ports.ts";

export const ALL_PORTS: readonly PortRange[] = [{ first: 0, last: 65535 }];

export function unitePorts(ranges: readonly PortRange[]): readonly PortRange[] {
  if (ranges.length === 1 && ranges[0]!.first <= ranges[0]!.last) return ranges;
  const sorted = ranges.filter((range) => range.first <= range.last).sort((a, b) => a.first - b.first);
  const united: { first: number; last: number }[] = [];
  for (const { first, last } of sorted) {
    const open = united[united.length - 1];
    if (open !== undefined && first <= open.last + 1) open.last = Math.max(open.last, last);
    else united.push({ first, last });
  }
  return united;
}

/** `from` must be united. */
export function subtractPorts(from: readonly PortRange[], holes: readonly PortRange[]): readonly PortRange[] {
  let left = from;
  for (const hole of unitePorts(holes)) {
    left = left.flatMap(({ first, last }) => {
      if (hole.last < first || hole.first > last) return [{ first, last }];
      const parts: PortRange[] = [];
      if (first < hole.first) parts.push({ first, last: hole.first - 1 });
      if (hole.last < last) parts.push({ first: hole.last + 1, last });
      return parts;
    });
  }
  return left;
}

export const portBytes = (port: number): string => String.fromCharCode(port >> 8, port & 0xff);

/** One cell of a cut port space: these ports are covered by exactly these ranges' owners. */
export interface PortCell {
  readonly first: number;
  readonly last: number;
  /** Indexes into what was cut, ascending, never empty. */
  readonly owners: readonly number[];
}

/**
 * Cuts the port space where any of the lists begins or ends. Neighbours with the same owners are one cell.
 * Undefined where the cells would hold more than `budget` owners in all.
 */
export function cutPorts(lists: readonly (readonly PortRange[])[], budget: number): readonly PortCell[] | undefined {
  return cutApart(lists, budget) ?? cutAnywhere(lists, budget);
}

/** Where every list is one range and none overlaps another: each is a cell by itself. Undefined where they are not so. */
function cutApart(lists: readonly (readonly PortRange[])[], budget: number): readonly PortCell[] | undefined {
  if (lists.length > budget) return undefined;
  const cells: PortCell[] = [];
  for (let owner = 0; owner < lists.length; owner++) {
    const ranges = lists[owner]!;
    if (ranges.length !== 1) return undefined;
    const { first, last } = ranges[0]!;
    if (first > last) return undefined;
    cells.push({ first, last, owners: [owner] });
  }
  cells.sort((a, b) => a.first - b.first);
  for (let i = 1; i < cells.length; i++) if (cells[i]!.first <= cells[i - 1]!.last) return undefined;
  return cells;
}

function cutAnywhere(lists: readonly (readonly PortRange[])[], budget: number): readonly PortCell[] | undefined {
  const starts = new Map<number, number[]>(), ends = new Map<number, number[]>();
  const note = (at: Map<number, number[]>, point: number, owner: number) => {
    const owners = at.get(point);
    if (owners === undefined) at.set(point, [owner]);
    else owners.push(owner);
  };
  lists.forEach((ranges, owner) => {
    for (const { first, last } of unitePorts(ranges)) {
      note(starts, first, owner);
      note(ends, last + 1, owner);
    }
  });
  const points = [...new Set([...starts.keys(), ...ends.keys()])].sort((a, b) => a - b);
  const active = new Set<number>();
  const cells: PortCell[] = [];
  let spent = 0;
  for (let i = 0; i + 1 < points.length; i++) {
    const point = points[i]!;
    for (const owner of ends.get(point) ?? []) active.delete(owner);
    for (const owner of starts.get(point) ?? []) active.add(owner);
    if (active.size === 0) continue;
    spent += active.size;
    if (spent > budget) return undefined;
    const owners = [...active].sort((a, b) => a - b);
    const before = cells[cells.length - 1];
    if (before !== undefined && before.last === point - 1 && sameOwners(before.owners, owners)) {
      cells[cells.length - 1] = { ...before, last: points[i + 1]! - 1 };
    } else cells.push({ first: point, last: points[i + 1]! - 1, owners });
  }
  return cells;
}

const sameOwners = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((owner, i) => owner === b[i]);
