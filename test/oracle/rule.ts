/** Rules and policies of every dialect in one form: a rule is a list of conditions that must all hold. */
import type { Address } from "./address.ts";
import type { Holder } from "./holder.ts";
import { ManifestError } from "./manifest.ts";
import { hasPorts } from "./protocol.ts";

export interface Packet {
  readonly protocol: number;
  readonly source: Address;
  readonly destination: Address;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly icmp?: { readonly type: number; readonly code: number };
}

export type Direction = "ingress" | "egress";
export type Side = "source" | "destination";

export const DIRECTIONS = ["ingress", "egress"] as const;

export const portOf = (packet: Packet, side: Side): number | undefined =>
  !hasPorts(packet.protocol) ? undefined : side === "source" ? packet.sourcePort : packet.destinationPort;

export interface Condition {
  /** As the manifest calls it. */
  readonly field: string;
  holds(packet: Packet): boolean;
}

export interface Rule {
  /** Where it stands in its policy, for people. */
  readonly where: string;
  readonly action: "allow" | "deny" | "pass" | "log";
  readonly conditions: readonly Condition[];
}

/** The first condition that does not hold. @returns undefined where the rule matches */
export const mismatch = (rule: Rule, packet: Packet): string | undefined =>
  rule.conditions.find((condition) => !condition.holds(packet))?.field;

export interface Policy {
  /** For people. */
  readonly title: string;
  readonly kind: string;
  readonly namespace: string;
  readonly name: string;
  readonly tier: string;
  /** Infinity: last. */
  readonly order: number;
  readonly directions: readonly Direction[];
  /** When it is asked; before DNAT and before connection tracking it is by host endpoints alone. */
  readonly stage: "normal" | "preDnat" | "untracked";
  readonly applyOnForward: boolean;
  /** Asked of everything with labels; network sets are never the policy's own. */
  selects(holder: Holder): boolean;
  readonly rules: Readonly<Record<Direction, readonly Rule[]>>;
}

/** Reads a policy in parts, so that one bad part leaves the rest readable, and the whole can be made to deny. */
export interface Reading {
  /** @returns `otherwise` where `read` finds what it cannot read */
  attempt<Value>(read: () => Value, otherwise: Value): Value;
  readonly problems: readonly string[];
}

export function createReading(): Reading {
  const problems: string[] = [];
  return {
    problems,
    attempt(read, otherwise) {
      try {
        return read();
      } catch (error) {
        if (!(error instanceof ManifestError)) throw error;
        problems.push(error.message);
        return otherwise;
      }
    },
  };
}

const DENY_ALL: readonly Rule[] = [{ where: "cannot be read", action: "deny", conditions: [] }];

/** What cannot be read opens nothing: such a policy denies whatever it selects, in the directions that it names. `place`: where it then stands. */
export function finish(policy: Policy, { problems }: Reading, place: Partial<Policy> = {}): Policy {
  return problems.length === 0 ? policy : { ...policy, ...place, rules: { ingress: DENY_ALL, egress: DENY_ALL } };
}
