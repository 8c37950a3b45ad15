import { digest } from "../model/digest.ts";
import type { BackendList } from "../model/services.ts";
import type { Backends } from "./services_backends.ts";

/** A list, and who holds it. */
export interface HeldList {
  readonly content: string;
  readonly list: BackendList;
  uses: number;
}

/** Backend lists by content: one object each, as long as somebody holds it. */
export class BackendLists {
  readonly #lists = new Map<string, HeldList>();
  readonly #idle = new Set<HeldList>();

  get held(): number {
    return this.#lists.size;
  }

  acquire(backends: Backends): HeldList {
    const content = contentOf(backends);
    let held = this.#lists.get(content);
    if (held === undefined) {
      this.#lists.set(content, held = { content, list: { id: digest(content), ...backends }, uses: 0 });
    }
    held.uses++;
    return held;
  }

  /** Takes effect with the next `sweep`, so a list that is let go and taken up again stays the same object. */
  release(held: HeldList): void {
    if (--held.uses === 0) this.#idle.add(held);
  }

  sweep(): void {
    for (const held of this.#idle) if (held.uses === 0) this.#lists.delete(held.content);
    this.#idle.clear();
  }
}

/** Backends of one family have one length, so what stands before them says where each begins. */
function contentOf({ backends, empty }: Backends): string {
  let content = `${empty} ${backends[0]?.address.length ?? 0} `;
  for (const { address, port, draining } of backends) {
    content += address + String.fromCharCode(port >> 8, port & 0xff, draining ? 1 : 0);
  }
  return content;
}
