import { isErrno } from "../../../src/kernel/errors.ts";
import { delLinkGroup } from "../../../src/kernel/netlink/schema/rt_link.ts";
import { explainError } from "../../../src/sdk/errors.ts";
import type { NetlinkSocket } from "../../../src/sdk/kernel_door.ts";
import type { Clock, Log } from "../../../src/sdk/plugin.ts";
import { DOOMED_GROUP } from "./plan.ts";

/**
 * Links that are doomed meanwhile share the next deletion. Long, because a deletion holds the lock of rtnetlink for some
 * milliseconds, in the way of other pods, and because most links need none: a runtime takes the pod's namespace away right
 * after DEL, and the kernel the link with it.
 */
const GATHER_MS = 1_000;
const RETRY_MS = 1_000;

/**
 * Deletes doomed links behind everybody's back. One deletion keeps the kernel waiting for about 20 ms whatever it deletes, so
 * they go together, by group, on another thread.
 */
export class Reaper implements AsyncDisposable {
  /** Counts `add`s, and those that a deletion begun later has covered. */
  #asked = 0;
  #done = 0;
  #running: Promise<void> | undefined;
  #hurry = new AbortController();
  #failure: unknown;
  #closing = false;

  constructor(private readonly socket: NetlinkSocket, private readonly clock: Clock, private readonly log: Log) {}

  /** Doomed links that may still be there. */
  get pending(): boolean {
    return this.#done < this.#asked;
  }

  /** A link has been put into the doomed group. */
  add(): void {
    this.#asked++;
    this.#running ??= this.#run();
  }

  /** Resolves when all links doomed before the call are gone. @throws {KernelError} where the kernel does not delete them */
  async flush(): Promise<void> {
    const wanted = this.#asked;
    while (this.#done < wanted) {
      this.#failure = undefined;
      this.#hurry.abort();
      this.#running ??= this.#run();
      await this.#running;
      if (this.#done < wanted && this.#failure !== undefined) throw this.#failure;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing = true;
    this.#hurry.abort();
    await this.#running;
    this.socket[Symbol.dispose]();
  }

  /** One deletion after another until none is asked for, or one failed and somebody waits to hear of it. */
  async #run(): Promise<void> {
    let waitMs = GATHER_MS;
    while (this.pending) {
      await this.#sleep(waitMs);
      const hurried = this.#hurry.signal.aborted;
      if (hurried) this.#hurry = new AbortController();
      try {
        await this.#delete();
        waitMs = GATHER_MS;
      } catch (error) {
        this.log.warn("links of removed pods could not be deleted yet", { error: explainError(error) });
        waitMs = RETRY_MS;
        if (!hurried && !this.#closing) continue;
        this.#failure = error;
        break;
      }
    }
    this.#running = undefined;
  }

  async #delete(): Promise<void> {
    const covered = this.#asked;
    try {
      await this.socket.requestBehind("delete the links of removed pods", [delLinkGroup(DOOMED_GROUP)]);
    } catch (error) {
      // None is left: their pods' namespaces went first.
      if (!isErrno(error, "ENODEV")) throw error;
    }
    this.#done = covered;
  }

  async #sleep(ms: number): Promise<void> {
    try {
      await this.clock.sleep(ms, this.#hurry.signal);
    } catch {
      // Somebody waits.
    }
  }
}
