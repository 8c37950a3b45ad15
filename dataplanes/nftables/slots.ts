/**
 * Under which name a workload's list stands in the kernel. One with policies: that of the first, by id, of the workloads that
 * have it. A workload has one list for each direction, so no two lists share a slot; and when a workload gets another list,
 * because a policy came or changed, the new one stands where the old one stood: elements and rules change in place, and counters
 * go on. A list without policies, which many workloads may have, is known by its content. Pure.
 */
import type { PolicyList } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import type { Direction } from "../../src/model/rule.ts";

interface Users {
  readonly direction: Direction;
  readonly isOpen: boolean;
  readonly ids: Set<string>;
  /** Undefined: it must be looked for. */
  first: string | undefined;
  slot: string | undefined;
}

export class Slots {
  /** By key of the list. */
  private readonly lists = new Map<string, Users>();
  private readonly touched = new Set<string>();

  /** The workload has the list. Whether it is the first that does. */
  add(key: string, { tiers }: PolicyList, direction: Direction, id: string): boolean {
    const users = this.lists.get(key);
    this.touched.add(key);
    if (users === undefined) {
      this.lists.set(key, { direction, isOpen: tiers.length === 0, ids: new Set([id]), first: id, slot: undefined });
      return true;
    }
    users.ids.add(id);
    if (users.first !== undefined && id < users.first) users.first = id;
    return false;
  }

  remove(key: string, id: string): void {
    const users = this.lists.get(key)!;
    this.touched.add(key);
    users.ids.delete(id);
    if (users.first === id) users.first = undefined;
  }

  /** Keys of lists that nobody has any more, which are forgotten; and of those that have another slot than before. */
  settle(): { readonly gone: readonly string[]; readonly moved: readonly string[] } {
    const gone: string[] = [], moved: string[] = [];
    for (const key of this.touched) {
      const users = this.lists.get(key)!;
      if (users.ids.size === 0) {
        this.lists.delete(key);
        gone.push(key);
        continue;
      }
      if (users.slot !== undefined && users.isOpen) continue;
      users.first ??= [...users.ids].reduce((least, id) => id < least ? id : least);
      const slot = digest(users.isOpen ? `open ${key}` : `${users.direction} ${users.first}`);
      if (users.slot === slot) continue;
      users.slot = slot;
      moved.push(key);
    }
    this.touched.clear();
    return { gone, moved };
  }

  of(key: string): string {
    return this.lists.get(key)!.slot!;
  }

  usersOf(key: string): Iterable<string> {
    return this.lists.get(key)!.ids;
  }
}
