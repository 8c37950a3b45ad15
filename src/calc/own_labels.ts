/**
 * Own labels, as the calculation keeps them: a quarter of a million pods may each have a label that no other has, so a pod's labels
 * cost one small object and one text, whatever their number, and equal ones are one object.
 */
import { isReservedLabel } from "../model/endpoint_labels.ts";
import type { Labels } from "../model/selector.ts";

/** Which labels something has, without their values: pods of one template have one shape. */
export class LabelShape {
  readonly places: ReadonlyMap<string, number>;
  /** Whether some of them are not their owner's to write. */
  readonly hasReserved: boolean;
  readonly byText = new Map<string, OwnLabels>();

  constructor(readonly text: string, readonly names: readonly string[]) {
    this.places = new Map(names.map((name, place) => [name, place]));
    this.hasReserved = names.some(isReservedLabel);
  }
}

/** What a read-only map needs besides `get` and its pairs. */
abstract class LabelMap implements ReadonlyMap<string, string> {
  abstract get(name: string): string | undefined;
  abstract [Symbol.iterator](): MapIterator<[string, string]>;

  has(name: string): boolean {
    return this.get(name) !== undefined;
  }
  get size(): number {
    let size = 0;
    for (const _ of this) size++;
    return size;
  }
  entries(): MapIterator<[string, string]> {
    return this[Symbol.iterator]();
  }
  *keys(): MapIterator<string> {
    for (const [name] of this) yield name;
  }
  *values(): MapIterator<string> {
    for (const [, value] of this) yield value;
  }
  forEach(tell: (value: string, name: string, map: ReadonlyMap<string, string>) => void): void {
    for (const [name, value] of this) tell(value, name, this);
  }
}

/** Made by a `LabelPool`: equal labels of one pool, in equal order, are one object. */
export class OwnLabels extends LabelMap {
  uses = 0;

  /** `text`: the values in order of the shape's names, each `measured`. */
  constructor(readonly shape: LabelShape, readonly text: string) {
    super();
  }

  get(name: string): string | undefined {
    const place = this.shape.places.get(name);
    return place === undefined ? undefined : this.at(place);
  }

  /** The value at a place of the shape. */
  at(place: number): string {
    const { text } = this;
    for (let start = 0, left = place;; left--) {
      const colon = text.indexOf(":", start);
      const end = colon + 1 + Number(text.slice(start, colon));
      if (left === 0) return text.slice(colon + 1, end);
      start = end;
    }
  }

  *[Symbol.iterator](): MapIterator<[string, string]> {
    for (const [place, name] of this.shape.names.entries()) yield [name, this.at(place)];
  }

  /** Those that their owner may write (`isReservedLabel`). */
  get visible(): Labels {
    return this.shape.hasReserved ? new Map([...this].filter(([name]) => !isReservedLabel(name))) : this;
  }
}

/** Followed by anything, it never reads as another text followed by something else. */
export const measured = (text: string): string => `${text.length}:${text}`;

/** Labels by content, held as long as somebody uses them. */
export class LabelPool {
  readonly #shapes = new Map<string, LabelShape>();

  get held(): number {
    let held = this.#shapes.size;
    for (const { byText } of this.#shapes.values()) held += byText.size;
    return held;
  }

  acquire(labels: Labels): OwnLabels {
    let names = "", text = "";
    for (const [name, value] of labels) {
      names += measured(name);
      text += measured(value);
    }
    let shape = this.#shapes.get(names);
    if (shape === undefined) this.#shapes.set(names, shape = new LabelShape(names, [...labels.keys()]));
    let own = shape.byText.get(text);
    if (own === undefined) shape.byText.set(text, own = new OwnLabels(shape, text));
    own.uses++;
    return own;
  }

  release(own: OwnLabels): void {
    if (--own.uses > 0) return;
    const { shape } = own;
    shape.byText.delete(own.text);
    if (shape.byText.size === 0) this.#shapes.delete(shape.text);
  }
}

/** Own labels, none of them reserved, over inherited ones, without a copy. */
export class LayeredLabels extends LabelMap {
  constructor(readonly own: Labels, readonly inherited: Labels) {
    super();
  }

  get(name: string): string | undefined {
    return this.own.get(name) ?? this.inherited.get(name);
  }
  *[Symbol.iterator](): MapIterator<[string, string]> {
    yield* this.own;
    for (const pair of this.inherited) if (!this.own.has(pair[0])) yield pair;
  }
}
