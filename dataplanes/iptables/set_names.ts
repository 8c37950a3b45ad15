/** Sets that rules ask for, and their names: a name says what is in a set, so that a restart finds its own. Pure. */
import type { Cidr, Family } from "../../src/model/address.ts";
import type { SetId } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import { OURS } from "./ruleset.ts";

/** The union of some sets of the state and some prefixes. */
export interface SetUse {
  readonly kind: "net" | "port";
  readonly family: Family;
  readonly ids: readonly SetId[];
  readonly nets: readonly Cidr[];
}

const DIGEST_CHARACTERS = 20;

export function netSetName(family: Family, ids: readonly SetId[], nets: readonly Cidr[]): string {
  const content = ids.length === 1 && nets.length === 0 ? ids[0]! : JSON.stringify([ids, nets]);
  return `${OURS}${family}n-${digest(content).slice(0, DIGEST_CHARACTERS)}`;
}
export const portSetName = (family: Family, id: SetId): string =>
  `${OURS}${family}p-${digest(id).slice(0, DIGEST_CHARACTERS)}`;
/** Who may send from where: an address and an interface. */
export const sourceSetName = (family: Family): string => `${OURS}${family}i-source`;
