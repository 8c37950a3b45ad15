/** What the daemon shows to its API: everything a client may ask or cause, as plain data. */
import type { Resource } from "../model/resource.ts";
import type { LogEvent, LogQuery, LogsView } from "./logs/packet_log_view.ts";
import type { AddReply, AddRequest, CheckRequest, DelRequest, GcRequest } from "../sdk/attach.ts";
import type { KindDefinition } from "../sdk/policy_source.ts";
import type { Explainer } from "./explain/explain.ts";

/** One manifest text, several documents. All of it is stored or none. */
export interface ManifestRequest {
  readonly text: string;
  /** Named in errors. */
  readonly file: string;
  /** Validate and say what would happen; store nothing. */
  readonly dryRun?: boolean;
  /** Milliseconds to wait until it is in force on this daemon's node; absent or 0 = do not wait. */
  readonly wait?: number;
}

export type Outcome = "created" | "configured" | "unchanged" | "deleted" | "absent";

/** A resource and what became of it. `kind` is the `ResourceKind`: `NetworkPolicy.networking.k8s.io`. */
export interface ResourceOutcome {
  readonly kind: string;
  /** "" for cluster-scoped kinds. */
  readonly namespace: string;
  readonly name: string;
  readonly outcome: Outcome;
  /** Of the write; of what stands where unchanged; "" where absent or a dry run. */
  readonly revision: string;
}

export interface ApplyReply {
  readonly results: readonly ResourceOutcome[];
  /** Present where `wait` was asked: whether it was in force when the wait ended. */
  readonly inForce?: boolean;
  /** Milliseconds waited. */
  readonly waitedMs?: number;
}

/** As `ResourceOutcome`s of an apply or delete, passed on as they came. */
export interface WaitKey {
  readonly kind: string;
  readonly namespace: string;
  readonly name: string;
  readonly revision: string;
  /** `deleted` and `absent`: wait until it is gone. */
  readonly outcome?: Outcome;
}

/** `networkpolicies` names two kinds: then there are two groups. Items carry `metadata.resourceVersion`. */
export interface ResourceList {
  readonly groups: readonly { readonly kind: KindDefinition; readonly items: readonly Resource[] }[];
}

export interface ProblemView {
  /** `Kind.group/namespace/name`, or the part of the daemon it concerns: `dataplane`. */
  readonly subject: string;
  readonly path: string;
  readonly message: string;
  /** `not-in-force`: tried again until it is; `in-force`: what is wanted is in force all the same. */
  readonly effect: "refused" | "last-good" | "fail-closed" | "ignored" | "not-in-force" | "in-force";
}

export interface TimingView {
  readonly count: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

export interface StatusView {
  readonly version: string;
  readonly node: string;
  readonly addresses: readonly string[];
  readonly pid: number;
  readonly uptimeMs: number;
  readonly config: string;
  readonly socket: string;
  readonly datastore: { readonly use: string; readonly inSync: boolean };
  readonly ipam: { readonly use: string };
  readonly generation: { readonly wanted: number; readonly applied: number };
  readonly dataplane: {
    readonly use: string;
    /** Present where it was switched away from what the configuration says. */
    readonly configured?: string;
    readonly converged: boolean;
    readonly lastApply: { readonly messages: number; readonly ms: number } | null;
    readonly problems: readonly string[];
    /** What somebody else had changed last and was put right: how long ago, why we looked, what there is to tell. Absent: nothing yet. */
    readonly lastRepair?: { readonly agoMs: number; readonly reason: string; readonly notes: readonly string[] };
  };
  readonly routing: { readonly use: string; readonly converged: boolean; readonly problems: readonly string[] };
  /** Logged packets; absent: no dataplane logs any. */
  readonly logs?: LogsView;
  /** Workloads of this node. */
  readonly endpoints: number;
  readonly problems: readonly ProblemView[];
  readonly counters: {
    readonly changes: number;
    readonly rounds: number;
    readonly applies: number;
    readonly messages: number;
    readonly failures: number;
    readonly resyncs: number;
    readonly adds: number;
    readonly addFailures: number;
    readonly dels: number;
  };
  /** Absent: the dataplane cannot cut flows. */
  readonly flowCuts?: FlowCutsView;
  /**
   * Milliseconds, of the last up to 1,000 each. `lease`: the part of `add` until the commit is on the disk; `wiring` goes on meanwhile, and so does a
   * `round`, a pass of the reconcile loop. `policy`: from the commit until it is in force.
   */
  readonly timings: Readonly<Record<"add" | "lease" | "wiring" | "policy" | "del" | "round", TimingView>>;
  /** Bytes. */
  readonly memory: { readonly rss: number };
}

/** Established flows that a change of policy denies. Counts since the start. */
export interface FlowCutsView {
  readonly state: "on" | "off";
  /** Changes after which flows were looked at. */
  readonly passes: number;
  /** Flows that the kernel listed, those of them that were judged by policy, and what became of these. */
  readonly listed: number;
  readonly judged: number;
  readonly cut: number;
  /** Cut before, and allowed again. */
  readonly restored: number;
  /** Of addresses that their workloads have given up. */
  readonly removed: number;
  /** Found and not yet done. */
  readonly pending: number;
  readonly lastPassMs: number;
}

/** How the kernel differs from what is wanted. */
export interface DataplaneDiffView {
  readonly generation: number;
  readonly dataplanes: readonly {
    readonly name: string;
    /** As `Dataplane.diff` gives them; absent: it cannot tell. */
    readonly lines?: readonly string[];
    /** Why it cannot. */
    readonly cannot?: string;
  }[];
}

/** A dataplane was exchanged for another, or is in force already: then `from` is `to`, and nothing was done. */
export interface DataplaneSwitchView {
  readonly from: string;
  readonly to: string;
  /** That both were in force at. */
  readonly generation: number;
  /** Sent to the kernel for the new one. */
  readonly messages: number;
  /** Packets about which both were asked before anything changed, and decided alike; `complete`: there was nothing more worth asking. */
  readonly compared: { readonly packets: number; readonly complete: boolean };
  readonly tookMs: number;
  /** From when both were in force and checked to when nothing was left of the old one. */
  readonly overlapMs: number;
  /** What of the old one could not be removed yet, a line each; it is tried again. */
  readonly left: readonly string[];
  /** The configuration file. */
  readonly config: string;
  /** What the configuration names in its place, and where the switch is remembered; absent: it names this one. */
  readonly configured?: string;
  readonly record?: string;
}

export interface PluginView {
  /** `datastore`, `policy` … */
  readonly slot: string;
  readonly name: string;
  /** `built-in`, or the path of its file. */
  readonly source: string;
  readonly api: string;
  /** Of the file; absent for built-in ones. */
  readonly sha256?: string;
}

export interface IpamView {
  readonly use: string;
  readonly pools: readonly {
    readonly pool: string;
    readonly cidr: string;
    /** Decimal text: IPv6 pools exceed what a JSON number holds. */
    readonly capacity: string;
    readonly used: number;
    readonly blocks: number;
  }[];
}

/** Every call may reject with a `ManxError`; its `code` decides what the client is told. */
export interface HostView {
  readonly resources: {
    readonly kinds: readonly KindDefinition[];
    apply(request: ManifestRequest, signal?: AbortSignal): Promise<ApplyReply>;
    delete(request: ManifestRequest, signal?: AbortSignal): Promise<ApplyReply>;
    /** `kindName`: plural, singular, short name or any of them with `.group`. `namespace` undefined = all. */
    list(kindName: string, namespace: string | undefined, signal?: AbortSignal): Promise<ResourceList>;
    get(kindName: string, namespace: string, name: string, signal?: AbortSignal): Promise<ResourceList>;
    remove(kindName: string, namespace: string, name: string, wait: number, signal?: AbortSignal): Promise<ApplyReply>;
  };
  readonly attachments: {
    add(request: AddRequest, signal?: AbortSignal): Promise<AddReply>;
    del(request: DelRequest, signal?: AbortSignal): Promise<void>;
    check(request: CheckRequest, signal?: AbortSignal): Promise<void>;
    gc(request: GcRequest, signal?: AbortSignal): Promise<void>;
    /** Whether an ADD could succeed now. */
    ready(signal?: AbortSignal): Promise<void>;
  };
  readonly explainer: Explainer;
  /** Resolves with the milliseconds it took. @throws {ManxError} code `deadline` */
  wait(keys: readonly WaitKey[], deadlineMs: number, signal?: AbortSignal): Promise<number>;
  /** Logged packets. @throws {ManxError} code `unavailable` where too many read them already */
  logs(query: LogQuery, signal: AbortSignal): AsyncIterableIterator<LogEvent>;
  readonly dataplanes: {
    /** Changes nothing. @throws {ManxError} code `unavailable` before anything is in force */
    diff(signal?: AbortSignal): Promise<DataplaneDiffView>;
    /** `config`: of its slot. Where it rejects, what was in force still is. */
    switch(
      request: { readonly use: string; readonly config?: unknown },
      signal?: AbortSignal,
    ): Promise<DataplaneSwitchView>;
  };
  status(): StatusView;
  plugins(): readonly PluginView[];
  ipam(signal?: AbortSignal): Promise<IpamView>;
}
