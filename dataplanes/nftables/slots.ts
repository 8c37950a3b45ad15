/**
 * Under which name a list stands in the kernel. Named by the policies that it has, not by what they say: so a policy that
 * changes changes elements and rules in place, and its counters go on. Two lists that stand at the same time never share a
 * slot: where the policies are the same and the content is not, all but one are named by content. Pure.
 */
import type { PolicyList } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import type { Direction } from "../../src/model/rule.ts";

/** Lists with equal shapes name the same policies in the same order. */
export const shapeOf = ({ tiers, profiles, end }: PolicyList, direction: Direction): string => {
  let text = `${direction} ${end}`;
  for (const { name, policies } of tiers) {
    text += `\n${JSON.stringify(name)}`;
    for (const { id } of policies) text += ` ${JSON.stringify(id)}`;
  }
  text += "\n";
  for (const { id } of profiles) text += ` ${JSON.stringify(id)}`;
  return text;
};

/** Slots of the lists that there are, by key. */
export class Slots {
  /** By shape: keys of the lists that have it. */
  private readonly shapes = new Map<string, Set<string>>();
  private readonly shapeOf = new Map<string, string>();
  private readonly slots = new Map<string, string>();
  private readonly touched = new Set<string>();

  add(key: string, shape: string): void {
    this.shapeOf.set(key, shape);
    const keys = this.shapes.get(shape);
    if (keys === undefined) this.shapes.set(shape, new Set([key]));
    else keys.add(key);
    this.touched.add(shape);
  }

  remove(key: string): void {
    const shape = this.shapeOf.get(key)!;
    this.shapeOf.delete(key);
    this.slots.delete(key);
    const keys = this.shapes.get(shape)!;
    keys.delete(key);
    if (keys.size === 0) this.shapes.delete(shape);
    this.touched.add(shape);
  }

  /** Keys of lists that have another slot than before. The same for the same lists, however they came. */
  settle(): readonly string[] {
    const moved: string[] = [];
    for (const shape of this.touched) {
      const keys = [...this.shapes.get(shape) ?? []].sort();
      keys.forEach((key, at) => {
        const slot = digest(at === 0 ? shape : `${shape}\n${key}`);
        if (this.slots.get(key) === slot) return;
        this.slots.set(key, slot);
        moved.push(key);
      });
    }
    this.touched.clear();
    return moved;
  }

  of(key: string): string {
    return this.slots.get(key)!;
  }
}
