import type { AttachmentName } from "../sdk/attach.ts";
import { CniError, CniErrorCode } from "./errors.ts";
import type { CniVersion } from "./version.ts";

export type Environment = Readonly<Record<string, string | undefined>>;
export type Verb = "ADD" | "DEL" | "CHECK" | "GC" | "STATUS" | "VERSION";
type Variable = "CNI_CONTAINERID" | "CNI_NETNS" | "CNI_IFNAME" | "CNI_PATH";

/**
 * What each verb needs besides CNI_COMMAND: CNI SPEC section 2, "CNI operations". 0.3.x lists CNI_CONTAINERID as optional
 * and CNI_NETNS for DEL too; we name attachments by the first and never need the second to take one away.
 */
export const VERBS: Readonly<Record<Verb, { readonly since: CniVersion; readonly required: readonly Variable[] }>> = {
  ADD: { since: "0.3.0", required: ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] },
  DEL: { since: "0.3.0", required: ["CNI_CONTAINERID", "CNI_IFNAME"] },
  CHECK: { since: "0.4.0", required: ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] },
  GC: { since: "1.1.0", required: ["CNI_PATH"] },
  STATUS: { since: "1.1.0", required: [] },
  VERSION: { since: "0.3.0", required: [] },
};

/** Names of containers and networks: CNI SPEC, "CNI_CONTAINERID" and "Network configuration format". */
export function isName(text: string): boolean {
  // Not a regular expression, here and below: each is compiled at its first use, and a call has no second.
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i), letter = code | 0x20;
    const isAlphanumeric = code >= 0x30 && code <= 0x39 || letter >= 0x61 && letter <= 0x7a;
    if (!isAlphanumeric && (i === 0 || code !== 0x5f && code !== 0x2e && code !== 0x2d)) return false;
  }
  return text.length > 0;
}

/** @throws {CniError} 4 naming the variables that are missing or bad */
export function readVerb(env: Environment): Verb {
  const command = env.CNI_COMMAND ?? "";
  if (!Object.hasOwn(VERBS, command)) {
    throw invalid(`CNI_COMMAND: found ${JSON.stringify(command)}, wanted one of ${Object.keys(VERBS).join(", ")}`);
  }
  const verb = command as Verb;
  const missing = VERBS[verb].required.filter((name) => (env[name] ?? "") === "");
  if (missing.length > 0) throw invalid(`CNI ${verb}: ${missing.join(", ")} not set, wanted in the environment`);
  if (env.CNI_CONTAINERID !== undefined && VERBS[verb].required.includes("CNI_CONTAINERID")) {
    if (!isName(env.CNI_CONTAINERID)) {
      throw invalid(
        `CNI_CONTAINERID: found ${
          JSON.stringify(env.CNI_CONTAINERID)
        }, wanted a letter or digit, then letters, digits, "_", "." and "-"`,
      );
    }
    checkInterfaceName(env.CNI_IFNAME!);
  }
  return verb;
}

/** For the verbs that name an attachment, after `readVerb`. */
export const readAttachment = (env: Environment, network: string): AttachmentName => ({
  network,
  containerId: env.CNI_CONTAINERID!,
  ifName: env.CNI_IFNAME!,
});

/** `K8S_POD_NAME=a;K8S_POD_NAMESPACE=b`. @throws {CniError} 4 for a part without `=` */
export function readArgs(env: Environment): Readonly<Record<string, string>> {
  const args: Record<string, string> = {};
  for (const pair of (env.CNI_ARGS ?? "").split(";")) {
    if (pair === "") continue;
    const at = pair.indexOf("=");
    if (at < 1) throw invalid(`CNI_ARGS: found ${JSON.stringify(pair)}, wanted KEY=value pairs joined by ";"`);
    // Not a plain assignment: a key may be called __proto__.
    Object.defineProperty(args, pair.slice(0, at), {
      value: pair.slice(at + 1),
      enumerable: true,
      writable: true,
      configurable: true,
    });
  }
  return args;
}

/** The kernel's own rule (dev_valid_name in net/core/dev.c), said before anything is tried. */
function checkInterfaceName(name: string): void {
  let isPrintable = name.length > 0 && name.length <= 15;
  for (let i = 0; i < name.length; i++) {
    const code = name.charCodeAt(i);
    isPrintable &&= code > 0x20 && code < 0x7f && code !== 0x2f && code !== 0x3a;
  }
  if (!isPrintable || name === "." || name === "..") {
    throw invalid(
      `CNI_IFNAME: found ${
        JSON.stringify(name)
      }, wanted 1 to 15 printable characters without "/", ":" or space, not "." or ".."`,
    );
  }
}

const invalid = (message: string) => new CniError(CniErrorCode.InvalidEnvironment, message);
