import type { Address, Cidr } from "../model/address.ts";

/** How a pod is to be connected; everything decided, nothing to look up. */
export interface Attachment {
  /** Stable: a hash of network, container and interface name. */
  readonly id: string;
  /** Path of the pod's network namespace. */
  readonly netns: string;
  /** Name inside the pod. */
  readonly interfaceName: string;
  /** Host side, `mx` and 11 hex digits. */
  readonly hostInterface: string;
  readonly addresses: readonly Address[];
  /** Bytes; absent = the host's default. */
  readonly mtu?: number;
  /** `aa:bb:cc:dd:ee:ff`; absent = one is derived from `id`. */
  readonly mac?: string;
  /** In the pod, besides the way to its gateways. Absent = default routes of its families. */
  readonly routes?: readonly { readonly destination: Cidr; readonly via?: Address }[];
}

export interface Observed {
  readonly interfaceName: string;
  readonly mac: string;
  readonly hostInterface: string;
  readonly hostMac: string;
  readonly mtu: number;
  readonly addresses: readonly Cidr[];
  readonly gateways: readonly Address[];
  /** What CNI CHECK must complain of: one line each, empty when all is as desired. */
  readonly differences: readonly string[];
}

export interface PodWiring extends AsyncDisposable {
  /**
   * Optional: begins with what needs no address, while the lease is still being written. `apply` of the same attachment goes on from
   * there, `remove` takes it back; one of the two must follow. Throws nothing: what goes wrong is `apply`'s to throw.
   */
  begin?(desired: Omit<Attachment, "addresses">): void;
  /** All or nothing: a failure leaves neither link. `adopt`: an interface of ours that is there is brought to `desired`. */
  apply(desired: Attachment, ifExists: "fail" | "adopt", signal?: AbortSignal): Promise<Observed>;
  observe(desired: Attachment, signal?: AbortSignal): Promise<Observed | undefined>;
  /** Repeatable. On return no packet passes; the link itself may go a little later, with others. */
  remove(hostInterface: string, signal?: AbortSignal): Promise<void>;
  /** Removes links of ours whose host side is not in `live`; returns their names. */
  collect(live: ReadonlySet<string>, signal?: AbortSignal): Promise<readonly string[]>;
}
