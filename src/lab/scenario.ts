/**
 * Scenarios: a small world, manifests applied to it step by step, and what must be reachable after each step.
 * The format is described in `deploy/examples/scenarios/README.md`; `scenario_parser.ts` reads it.
 */
import { type Address, type Family, formatAddress } from "../model/address.ts";
import { ManxError } from "../sdk/errors.ts";
import type { Expectation, Service, ServiceProtocol } from "./expectation.ts";

/** As manifests have them. */
export type Labels = Readonly<Record<string, string>>;

export interface Scenario {
  /** As given on the command line. */
  readonly file: string;
  readonly title: string;
  readonly world: ScenarioWorld;
  readonly steps: readonly Step[];
}

export interface ScenarioWorld {
  readonly families: readonly Family[];
  readonly nodes: readonly ScenarioNode[];
  /** By name; `default` is always there. */
  readonly namespaces: ReadonlyMap<string, Labels>;
  readonly pods: readonly ScenarioPod[];
  readonly hosts: readonly ScenarioHost[];
  readonly dnat: readonly Dnat[];
}

export interface ScenarioNode {
  readonly name: string;
  readonly serves: readonly Service[];
}

export interface ScenarioPod {
  /** `namespace/name` */
  readonly id: string;
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
  readonly labels: Labels;
  readonly serviceAccount?: string;
  readonly serves: readonly Service[];
}

/** A machine outside the cluster, one hop behind interface `link` of `node`. */
export interface ScenarioHost {
  readonly name: string;
  readonly address: Address;
  readonly link: string;
  /** Whose interface it is; a host on the shared segment (`eth0`) is behind all of them, and this one is its gateway. */
  readonly node: string;
  readonly serves: readonly Service[];
}

/** What comes to the node's own addresses at `port` goes to the pod, as with a hostPort. */
export interface Dnat {
  readonly node: string;
  readonly protocol: ServiceProtocol;
  readonly port: number;
  /** Pod id. */
  readonly to: string;
  readonly toPort: number;
}

export interface Step {
  readonly name: string;
  readonly line: number;
  readonly action?: { readonly verb: "apply" | "delete"; readonly manifest: Manifest };
  readonly expect: readonly Expectation[];
}

/** Text as written, with placeholders. */
export interface Manifest {
  readonly text: string;
  /** Of its first line in the scenario file, from 1. */
  readonly line: number;
}

/** A scenario file that cannot be run; every problem is `FILE:LINE: field: found …, wanted …`. */
export class ScenarioError extends ManxError {
  override readonly name = "ScenarioError";
  constructor(readonly problems: readonly string[]) {
    super("scenario", problems.join("\n"));
  }
}

/** `${…}` in a manifest; what stands between the braces is the first group. */
export const PLACEHOLDER = /\$\{([^}]*)\}/g;

/** Replaces `${ip:NAME}` and `${ip6:NAME}` by what `addressOf` knows of NAME: `redis`, `prod/redis`, `laptop`, `node:kube-01`. */
export function fillPlaceholders(
  manifest: string,
  addressOf: (name: string, family: Family | undefined) => Address | undefined,
): string {
  return manifest.replace(PLACEHOLDER, (whole, inner: string) => {
    const reference = readPlaceholder(inner);
    const address = reference && addressOf(reference.name, reference.family);
    return address === undefined ? whole : formatAddress(address);
  });
}

/** What stands between the braces; undefined where it is no such reference. */
export function readPlaceholder(inner: string): { name: string; family: Family | undefined } | undefined {
  const match = /^(ip|ip4|ip6):(.+)$/.exec(inner);
  if (match === null) return undefined;
  return { name: match[2]!, family: match[1] === "ip" ? undefined : match[1] === "ip4" ? 4 : 6 };
}
