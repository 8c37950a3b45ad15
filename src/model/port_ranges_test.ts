import { expect, test } from "bun:test";
import { ALL_PORTS, cutPorts, subtractPorts, unitePorts } from "./port_ranges.ts";
import type { PortRange } from "./ports.ts";

const range = (first: number, last = first): PortRange => ({ first, last });

test("ranges are united where they overlap or touch, and holes are cut out", () => {
  expect(unitePorts([range(5, 9), range(1, 3), range(4), range(20)])).toEqual([range(1, 9), range(20)]);
  expect(unitePorts([range(9, 5)])).toEqual([]);
  expect(subtractPorts([range(1, 9)], [range(3), range(8, 99)])).toEqual([range(1, 2), range(4, 7)]);
  expect(subtractPorts(ALL_PORTS, [range(0), range(65535)])).toEqual([range(1, 65534)]);
});

test("every port is in the one cell whose owners cover it, apart or overlapping", () => {
  let at = 7;
  const below = (n: number) => (at = Math.imul(at, 1103515245) + 12345 >>> 0, (at >>> 8) % n);
  for (let round = 0; round < 300; round++) {
    const single = round % 2 === 0;
    const lists = Array.from({ length: 1 + below(6) }, () =>
      Array.from({ length: single ? 1 : 1 + below(3) }, () => {
        const first = below(40);
        return range(first, first + below(single ? 3 : 9));
      }));
    const cells = cutPorts(lists, 1_000)!;
    for (let port = 0; port < 60; port++) {
      const owners = lists.flatMap((ranges, owner) =>
        ranges.some(({ first, last }) => first <= port && port <= last) ? [owner] : []
      );
      const found = cells.filter(({ first, last }) => first <= port && port <= last);
      expect(found.map((cell) => cell.owners)).toEqual(owners.length === 0 ? [] : [owners]);
    }
    for (let i = 1; i < cells.length; i++) expect(cells[i]!.first).toBeGreaterThan(cells[i - 1]!.last);
  }
});

test("cells that would hold more owners than the budget are not cut", () => {
  expect(cutPorts([[range(1)], [range(2)], [range(3)]], 2)).toBeUndefined();
  expect(cutPorts([[range(1, 9)], [range(2, 8)]], 3)).toBeUndefined();
  expect(cutPorts([[range(1, 9)], [range(2, 8)]], 4)!.length).toBe(3);
});
