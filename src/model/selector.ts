/** Label selectors: the tree that `parseSelector` makes and the evaluator walks. Language: policy-semantics, "Matching". */
export type Labels = ReadonlyMap<string, string>;

export type Selector =
  | { readonly op: "all" }
  /** In no namespace: host endpoints and global network sets. */
  | { readonly op: "global" }
  | { readonly op: "eq" | "ne" | "contains" | "startsWith" | "endsWith"; readonly label: string; readonly value: string }
  /** `values` sorted, without repeats. */
  | { readonly op: "in" | "notIn"; readonly label: string; readonly values: readonly string[] }
  | { readonly op: "has"; readonly label: string }
  | { readonly op: "not"; readonly of: Selector }
  | { readonly op: "and" | "or"; readonly of: readonly Selector[] };
