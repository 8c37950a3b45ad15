/** Which pools of a manifest share addresses with another. Pure. */
import { type Cidr, cidrsOverlap, formatCidr } from "../../model/address.ts";
import { IP_POOL, poolCidr } from "./core_source.ts";
import type { ManifestEntry } from "./manifest.ts";

/** Reasons against those of `entries` that are pools, among each other and beside `standing`, which the manifest does not replace. */
export function overlappingPools(
  entries: readonly Pick<ManifestEntry, "key" | "resource" | "where">[],
  standing: readonly { readonly name: string; readonly cidr: Cidr | undefined }[],
): readonly string[] {
  const others = [...standing];
  const reasons: string[] = [];
  for (const { key, resource, where } of entries.filter((entry) => entry.key.kind === IP_POOL)) {
    const cidr = poolCidr(resource);
    const other = others.find((one) => cidr !== undefined && one.cidr !== undefined && cidrsOverlap(cidr, one.cidr));
    if (other !== undefined) {
      reasons.push(
        `${where("spec.cidr")}: spec.cidr: found ${formatCidr(cidr!)}, which overlaps pool ${other.name} (${
          formatCidr(other.cidr!)
        }), wanted a prefix of its own`,
      );
    }
    others.push({ name: key.name, cidr });
  }
  return reasons;
}
