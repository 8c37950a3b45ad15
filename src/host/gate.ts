/** Turns for asynchronous work: one at a time for each name, and one alone for all of them. */
export interface Gate {
  /** Waits for its turn among the holders of `name`; dispose of it to give the turn away. */
  enter(name: string): Promise<Disposable>;
  /** Waits until nobody is inside; until it is disposed of, nobody enters. */
  enterAlone(): Promise<Disposable>;
}

export function createGate(): Gate {
  /** The last of each name's queue. */
  const queues = new Map<string, Promise<void>>();
  let inside = 0;
  let alone: Promise<void> | undefined;
  let onEmpty: (() => void) | undefined;

  const leave = () => {
    if (--inside === 0) onEmpty?.();
  };

  return {
    async enter(name) {
      const before = queues.get(name);
      const { promise, resolve } = Promise.withResolvers<void>();
      queues.set(name, promise);
      await before;
      while (alone !== undefined) await alone;
      inside++;
      return {
        [Symbol.dispose]() {
          if (queues.get(name) === promise) queues.delete(name);
          resolve();
          leave();
        },
      };
    },
    async enterAlone() {
      while (alone !== undefined) await alone;
      const { promise, resolve } = Promise.withResolvers<void>();
      alone = promise;
      if (inside > 0) await new Promise<void>((empty) => onEmpty = empty);
      onEmpty = undefined;
      return {
        [Symbol.dispose]() {
          alone = undefined;
          resolve();
        },
      };
    },
  };
}
