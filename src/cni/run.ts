import type { AddReply, AddRequest, CheckRequest, DelRequest, GcRequest } from "../sdk/attach.ts";
import { type Environment, readArgs, readAttachment, readVerb, type Verb, VERBS } from "./environment.ts";
import { CniError, CniErrorCode } from "./errors.ts";
import {
  addressesOf,
  decodeObject,
  type Json,
  type NetworkConfig,
  readIps,
  readMac,
  readNetworkConfig,
} from "./network_config.ts";
import { renderResult } from "./result.ts";
import { atLeast, isSupported, isVersionText, NEWEST_VERSION, SUPPORTED_VERSIONS } from "./version.ts";

export interface CniIo {
  /** All of stdin. @throws {CniError} 5, 6 */
  readonly readStdin: () => string;
  /** Takes one line, without its end. */
  readonly write: (text: string) => void;
  readonly ask: Ask;
}

/** One request to the daemon that listens on `socket`; its answer. @throws {CniError} what it refused, 11 where it is away */
export type Ask = (socket: string, path: string, body?: unknown) => Promise<unknown>;

/**
 * One CNI call: what the binary does where CNI_COMMAND is set. Whatever happens, exactly what the runtime is to read is
 * written once. @returns the exit status: 0, or 1 with an error object written (CNI SPEC section 5)
 */
export async function runCni(env: Environment, { readStdin, write, ask }: CniIo): Promise<0 | 1> {
  let version: string = NEWEST_VERSION;
  try {
    const verb = readVerb(env);
    if (verb === "VERSION") {
      write(line({ cniVersion: askedVersion(readStdin), supportedVersions: SUPPORTED_VERSIONS }));
      return 0;
    }
    const raw = decodeObject(readStdin());
    if (typeof raw.cniVersion === "string" && isSupported(raw.cniVersion)) version = raw.cniVersion;
    const config = readNetworkConfig(raw);
    if (!atLeast(config.version, VERBS[verb].since)) {
      throw new CniError(
        CniErrorCode.IncompatibleVersion,
        `CNI ${verb}: found cniVersion "${config.version}", wanted "${VERBS[verb].since}" or later`,
      );
    }
    const result = await RUN[verb](env, config, (path, body) => ask(config.socket, path, body));
    if (result !== undefined) write(line(result));
    return 0;
  } catch (cause) {
    const error = cause instanceof CniError
      ? cause
      : new CniError(CniErrorCode.Internal, `manx failed: ${cause instanceof Error ? cause.message : String(cause)}`);
    write(line({ cniVersion: version, code: error.code, msg: error.message, details: error.details }));
    return 1;
  }
}

/** As `Ask`, of the daemon that the configuration names. */
type AskDaemon = (path: string, body?: unknown) => Promise<unknown>;

const RUN: Readonly<
  Record<
    Exclude<Verb, "VERSION">,
    (env: Environment, config: NetworkConfig, ask: AskDaemon) => Promise<Json | undefined>
  >
> = {
  async ADD(env, config, ask) {
    if (config.prevResult !== undefined) {
      throw new CniError(
        CniErrorCode.InvalidConfig,
        "prevResult: found one, wanted none: manx makes the interface, so it is the first plugin of a list",
      );
    }
    const netns = env.CNI_NETNS!;
    const args = readArgs(env);
    const request: AddRequest = {
      ...readAttachment(env, config.name),
      netns,
      args,
      labels: config.labels,
      ips: config.ips ?? (args.IP === undefined ? undefined : readIps("CNI_ARGS IP", args.IP.split(","))),
      mac: config.mac ?? (args.MAC === undefined ? undefined : readMac("CNI_ARGS MAC", args.MAC)),
      mtu: config.mtu,
      pools: config.pools,
      families: config.families,
      routes: config.routes,
    };
    const reply = await ask("/v1/cni/add", request) as AddReply;
    return renderResult(config.version, reply, netns, config.dns);
  },

  async DEL(env, config, ask) {
    const request: DelRequest = { ...readAttachment(env, config.name), netns: env.CNI_NETNS || undefined };
    await ask("/v1/cni/del", request);
    return undefined;
  },

  async CHECK(env, config, ask) {
    if (config.prevResult === undefined) {
      throw new CniError(CniErrorCode.InvalidConfig, "prevResult: found none, wanted the result of ADD");
    }
    const attachment = readAttachment(env, config.name);
    const addresses = addressesOf(config.prevResult, attachment.ifName);
    const request: CheckRequest = { ...attachment, netns: env.CNI_NETNS!, addresses };
    await ask("/v1/cni/check", request);
    return undefined;
  },

  async GC(_env, config, ask) {
    if (config.validAttachments === undefined) {
      throw new CniError(
        CniErrorCode.InvalidConfig,
        "cni.dev/valid-attachments: found none, wanted the list of attachments to keep; nothing was removed",
      );
    }
    const request: GcRequest = { network: config.name, valid: config.validAttachments };
    await ask("/v1/cni/gc", request);
    return undefined;
  },

  async STATUS(_env, _config, ask) {
    try {
      await ask("/v1/cni/status");
    } catch (cause) {
      if (!(cause instanceof CniError)) throw cause;
      if (cause.code === CniErrorCode.NotAvailable || cause.code === CniErrorCode.LimitedConnectivity) throw cause;
      // Whatever the reason, an ADD would fail; what runs keeps its network, for the kernel holds it.
      throw new CniError(CniErrorCode.NotAvailable, cause.message, cause.details);
    }
    return undefined;
  },
};

const line = (value: unknown): string => JSON.stringify(value);

/** VERSION echoes what it was asked in: CNI SPEC section 2, "VERSION". Older runtimes send nothing, or something else. */
function askedVersion(readStdin: () => string): string {
  try {
    const { cniVersion } = decodeObject(readStdin());
    return typeof cniVersion === "string" && isVersionText(cniVersion) ? cniVersion : NEWEST_VERSION;
  } catch {
    return NEWEST_VERSION;
  }
}
