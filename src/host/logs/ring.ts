/** The last so many values. */
export class Ring<T> implements Iterable<T> {
  readonly #values: T[] = [];
  /** Where the oldest is, once it is full. */
  #start = 0;

  constructor(readonly capacity: number) {}

  get size(): number {
    return this.#values.length;
  }

  add(value: T): void {
    if (this.#values.length < this.capacity) this.#values.push(value);
    else {
      this.#values[this.#start] = value;
      this.#start = (this.#start + 1) % this.capacity;
    }
  }

  /** Oldest first. */
  *[Symbol.iterator](): IterableIterator<T> {
    for (let i = 0; i < this.#values.length; i++) yield this.#values[(this.#start + i) % this.#values.length]!;
  }
}
