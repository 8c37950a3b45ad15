/** Events of nf_tables that others caused. */
import { isErrno } from "../../../src/kernel/errors.ts";
import { GROUP_NFTABLES, NETLINK_NETFILTER } from "../../../src/kernel/netlink/schema/nftables.ts";
import { type Touched, touchedBy } from "../../../src/kernel/netlink/schema/nftables_compat.ts";
import { explainError } from "../../../src/sdk/errors.ts";
import type { NetlinkSocket } from "../../../src/sdk/kernel_door.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import type { Watch } from "../backend.ts";

/** Others change tables in bursts: the rest is waited for so long. */
const SETTLE_MS = 20;

export class NftWatch implements Watch {
  private socket: NetlinkSocket | undefined;
  private readonly stop = new AbortController();
  private pending = true;
  private wake: () => void = () => {};

  /**
   * @param touch whether what an event is about may be ours
   * @param lost whether events that were lost may have told of that
   */
  constructor(
    private readonly host: Host,
    private readonly ownPortId: number,
    private readonly touch: (touched: Touched) => boolean,
    private readonly lost: () => boolean,
  ) {
    this.open();
  }

  async changed(signal: AbortSignal): Promise<void> {
    if (!this.pending) {
      const wake = () => this.wake();
      signal.addEventListener("abort", wake, { once: true });
      try {
        await new Promise<void>((resolve) => {
          this.wake = resolve;
          if (signal.aborted) resolve();
        });
      } finally {
        signal.removeEventListener("abort", wake);
      }
    }
    if (!signal.aborted) await this.host.clock.sleep(SETTLE_MS, signal).catch(() => {});
    if (!signal.aborted) this.pending = false;
  }

  private open(): void {
    this.socket = this.host.kernel.netlink(NETLINK_NETFILTER, { groups: [GROUP_NFTABLES] });
    void this.listen(this.socket);
  }

  private async listen(socket: NetlinkSocket): Promise<void> {
    const { signal } = this.stop;
    try {
      for await (const messages of socket.events(signal)) {
        for (const message of messages) {
          if (message.portId === this.ownPortId) continue;
          const touched = touchedBy(message);
          if (touched !== undefined && this.touch(touched)) this.alarm();
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      socket[Symbol.dispose]();
      if (!isErrno(error, "ENOBUFS")) this.host.log.warn("nftables events failed", { error: explainError(error) });
      try {
        this.open();
        if (this.lost()) this.alarm();
      } catch (failure) {
        this.host.log.error("nftables events cannot be had", { error: explainError(failure) });
      }
    }
  }

  private alarm(): void {
    this.pending = true;
    this.wake();
  }

  [Symbol.dispose](): void {
    this.stop.abort();
    this.socket?.[Symbol.dispose]();
    this.wake();
  }
}
