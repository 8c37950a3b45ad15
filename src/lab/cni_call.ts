/** Calls the product as a container runtime would: CNI SPEC section 2, "Execution protocol". */
import { type Address, parseAddress } from "../model/address.ts";
import { inNamespace, namespacePath } from "../kernel/netns.ts";
import { ManxError } from "../sdk/errors.ts";
import type { NetworkNamespace } from "../sdk/kernel_door.ts";
import { childEnvironment, type SelfCommand } from "./self.ts";

const CALL_DEADLINE_MS = 30_000;

export interface PodAttachment {
  readonly self: SelfCommand;
  /** The node's daemon. */
  readonly socket: string;
  /** Where the runtime runs: the node. */
  readonly nodeNamespace: NetworkNamespace;
  readonly podNamespace: NetworkNamespace;
  readonly containerId: string;
  readonly namespace: string;
  readonly name: string;
}

/** ADD; the pod's addresses, in the result's order. @throws {ManxError} with the plugin's own error */
export async function cniAdd(pod: PodAttachment): Promise<readonly Address[]> {
  const result = await cniCall("ADD", pod) as { readonly ips?: readonly { readonly address: string }[] };
  return (result.ips ?? []).map(({ address }) => parseAddress(address.split("/")[0]!));
}

/** DEL. @throws {ManxError} */
export async function cniDel(pod: PodAttachment): Promise<void> {
  await cniCall("DEL", pod);
}

async function cniCall(verb: "ADD" | "DEL", pod: PodAttachment): Promise<unknown> {
  const config = { cniVersion: "1.1.0", name: "manx", type: "manx", socket: pod.socket };
  const env = childEnvironment({
    CNI_COMMAND: verb,
    CNI_CONTAINERID: pod.containerId,
    CNI_NETNS: namespacePath(pod.podNamespace),
    CNI_IFNAME: "eth0",
    CNI_PATH: "/opt/cni/bin",
    CNI_ARGS: `IgnoreUnknown=1;K8S_POD_NAMESPACE=${pod.namespace};K8S_POD_NAME=${pod.name}`,
  });
  const child = inNamespace(pod.nodeNamespace, () =>
    Bun.spawn({
      cmd: [...pod.self],
      detached: true,
      env,
      stdin: new TextEncoder().encode(JSON.stringify(config)),
      stdout: "pipe",
      stderr: "pipe",
      timeout: CALL_DEADLINE_MS,
      killSignal: "SIGKILL",
    }));
  const [output, errors, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  const what = `CNI ${verb} of pod ${pod.namespace}/${pod.name}`;
  let answer: unknown;
  try {
    answer = output.trim() === "" ? {} : JSON.parse(output);
  } catch (cause) {
    throw new ManxError("cni", `${what}: found an answer that is not JSON (${output.slice(0, 200)})`, { cause });
  }
  if (status === 0) return answer;
  const { code, msg, details } = answer as { readonly code?: number; readonly msg?: string; readonly details?: string };
  const words = msg === undefined
    ? errors.trim() || `exit status ${status ?? child.signalCode}`
    : `error ${code}: ${msg}${details ? `: ${details}` : ""}`;
  throw new ManxError("cni", `${what}: ${words}`);
}
