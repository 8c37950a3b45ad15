/** What the CNI personality asks of the daemon, and what it is told. JSON over the API socket, `POST /v1/cni/VERB`. */

/** Names one attachment: CNI SPEC section 2, "Attachment". */
export interface AttachmentName {
  /** Name of the network configuration. */
  readonly network: string;
  readonly containerId: string;
  readonly ifName: string;
}

export interface AddRequest extends AttachmentName {
  readonly netns: string;
  /** CNI_ARGS: K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID, IP … */
  readonly args: Readonly<Record<string, string>>;
  /** args.cni.labels of the network configuration. */
  readonly labels: Readonly<Record<string, string>>;
  /** Static addresses: args.cni.ips, runtimeConfig.ips or CNI_ARGS IP; text, without prefix or with its full length. */
  readonly ips?: readonly string[];
  readonly mac?: string;
  readonly mtu?: number;
  /** Names or prefixes, from the network configuration's `pools`. */
  readonly pools?: readonly string[];
  /** From the network configuration's `families`; default: both. */
  readonly families?: readonly (4 | 6)[];
  /** From the network configuration's `routes`; default: default routes. */
  readonly routes?: readonly { readonly dst: string; readonly gw?: string }[];
}

export interface AddReply {
  readonly interfaceName: string;
  readonly mac: string;
  readonly hostInterface: string;
  readonly hostMac: string;
  readonly mtu: number;
  /** With prefix lengths: `10.0.0.5/32`. */
  readonly addresses: readonly { readonly address: string; readonly gateway: string }[];
  readonly routes: readonly { readonly dst: string; readonly gw?: string }[];
  /**
   * Milliseconds the daemon spent: until the lease was on the disk; on wiring, most of it meanwhile; after the lease, until policy was in force, which it
   * mostly is by then; on all.
   */
  readonly timing: {
    readonly leaseMs: number;
    readonly wiringMs: number;
    readonly policyMs: number;
    readonly totalMs: number;
  };
}

export interface DelRequest extends AttachmentName {
  readonly netns?: string;
}

export interface CheckRequest extends AttachmentName {
  readonly netns: string;
  /** Addresses of the prevResult that this plugin gave, with prefix lengths. */
  readonly addresses: readonly string[];
}

export interface GcRequest {
  readonly network: string;
  readonly valid: readonly { readonly containerId: string; readonly ifName: string }[];
}

/** Body of every response with a status of 400 or more. */
export interface ErrorReply {
  readonly error: {
    /** `ManxError.code`, or `internal`. */
    readonly code: string;
    readonly message: string;
    readonly details?: readonly string[];
    /** CNI error number where the daemon knows it: SPEC section 5, "Error". */
    readonly cni?: number;
  };
}
