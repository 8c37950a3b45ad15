/**
 * What travels over the daemon's socket: HTTP/1.1 on a unix socket, JSON bodies. Every response with a status of 400 or more
 * carries an `ErrorReply` (sdk/attach.ts). CNI requests and replies are in sdk/attach.ts as well.
 */
import type { PluginView, WaitKey } from "../host/view.ts";
import type { KindDefinition } from "../sdk/policy_source.ts";

export type { ExplainReply, ExplainRequest, Explanation, PoliciesReply, WhatIfReply } from "../host/explain/view.ts";
export type {
  DeniedEvent,
  LogEvent,
  LoggedEnd,
  LogQuery,
  NameView,
  PacketEvent,
} from "../host/logs/packet_log_view.ts";
export type {
  ApplyReply,
  DataplaneDiffView as DataplaneDiffReply,
  DataplaneSwitchView as DataplaneSwitchReply,
  IpamView as IpamReply,
  ManifestRequest,
  Outcome,
  PluginView,
  ProblemView,
  ResourceList,
  ResourceOutcome,
  StatusView as StatusReply,
  TimingView,
  WaitKey,
} from "../host/view.ts";

export { DEFAULT_SOCKET } from "../host/defaults.ts";

export const PATHS = {
  /** POST ManifestRequest → ApplyReply */
  apply: "/v1/apply",
  /** POST ManifestRequest → ApplyReply */
  delete: "/v1/delete",
  /** POST WaitRequest → WaitReply; 504 with code `deadline` */
  wait: "/v1/wait",
  /**
   * GET /v1/resources/PLURAL?namespace=NS (absent: all) and /v1/resources/PLURAL/NAME?namespace=NS (absent: default) → ResourceList;
   * DELETE /v1/resources/PLURAL/NAME?namespace=NS&wait=MS → ApplyReply
   */
  resources: "/v1/resources",
  /** GET → KindList */
  kinds: "/v1/kinds",
  /** GET → StatusReply */
  status: "/v1/status",
  /** GET → PluginsReply */
  plugins: "/v1/plugins",
  /** GET → VersionReply */
  version: "/v1/version",
  /**
   * GET /v1/logs?follow=true&since=MS&limit=N&pod=NS/NAME&verdict=deny, all of them optional → `application/x-ndjson`, a LogEvent
   * (packet_log_view.ts) a line: what is kept, oldest first, then, with `follow`, what comes
   */
  logs: "/v1/logs",
  /** POST ExplainRequest → ExplainReply; shapes in explain_view.ts */
  explain: "/v1/explain",
  /** GET /v1/policies?endpoint=NAME&namespace=NS (absent: default) → PoliciesReply */
  policies: "/v1/policies",
  /** GET → IpamReply */
  ipam: "/v1/ipam",
  /** GET → DataplaneDiffReply */
  dataplaneDiff: "/v1/dataplane/diff",
  /** POST DataplaneSwitchRequest → DataplaneSwitchReply; 400 where it may not be, 503 where it cannot be now: nothing has changed then */
  dataplaneSwitch: "/v1/dataplane/switch",
  /**
   * POST /v1/cni/{add,del,check,gc,status}: AddRequest → AddReply; DelRequest, CheckRequest, GcRequest, {} → {}.
   * POST /v1/cni/call: a whole call of the plugin (cni/call.ts) → its exit status, `0` or `1`, and what it writes; 421 where it is another daemon's
   */
  cni: "/v1/cni",
} as const;

export interface WaitRequest {
  readonly keys: readonly WaitKey[];
  readonly deadlineMs: number;
}

export interface DataplaneSwitchRequest {
  /** A built-in name. */
  readonly use: string;
  /** Of its slot; absent: that of the configuration where it names this dataplane, else none. */
  readonly config?: unknown;
}

export interface WaitReply {
  readonly waitedMs: number;
}

export type KindView = KindDefinition;

export interface KindList {
  readonly kinds: readonly KindView[];
}

export interface PluginsReply {
  readonly api: string;
  readonly plugins: readonly PluginView[];
}

export interface VersionReply {
  readonly version: string;
  readonly api: string;
}
