/** From an address or a port to its rule by a tree of chains, 16 ways at each, that changes where rules come and go. */
import { goto, jump, type Match, type Rule, rule } from "./ruleset.ts";

/** So many rules need no chain of their own: a chain has twice 16 at most. */
const INLINE_MAX = 2;
const DIGITS = "0123456789abcdef";

interface Leaf {
  readonly key: string;
  readonly rules: readonly Rule[];
}

interface Branch {
  /** What all keys below share. */
  readonly prefix: string;
  readonly children: Map<string, Leaf | Branch>;
  /** Leaves below. */
  size: number;
  /** Its chain, as it stands in the tree's; undefined: none, or to be made anew. */
  chain: string | undefined;
}

type Node = Leaf | Branch;

const isBranch = (node: Node): node is Branch => "children" in node;
const sizeOf = (node: Node): number => isBranch(node) ? node.size : 1;
const textOf = (node: Node): string => isBranch(node) ? node.prefix : node.key;

export interface ServiceTreeOptions {
  /** Where chains stand; also those of others. */
  readonly chains: Map<string, readonly Rule[]>;
  /** Of the chain for all keys that begin so. */
  readonly nameOf: (prefix: string) => string;
  /** What holds of every packet whose key begins so. */
  readonly matchesOf: (prefix: string) => readonly Match[];
}

/** Keys are of one length, in hexadecimal digits. Equal keys and rules give equal chains, whatever came before. */
export class ServiceTree {
  private root: Node | undefined;

  constructor(private readonly options: ServiceTreeOptions) {}

  set(key: string, rules: readonly Rule[]): void {
    const leaf = { key, rules };
    this.root = this.root === undefined ? leaf : this.insert(this.root, leaf, 0);
  }

  delete(key: string): void {
    if (this.root !== undefined) this.root = this.remove(this.root, key);
  }

  /** Makes the chains that changes have undone, and answers what leads to them: a few rules. What no key is for comes back to the next one. */
  finish(): readonly Rule[] {
    const { root } = this;
    if (root === undefined) return [];
    const rules = this.enter(root);
    if (!isBranch(root) || root.chain === undefined) return rules;
    return [rule(jump(root.chain), ...this.options.matchesOf(root.prefix))];
  }

  /** What every key begins with. */
  get prefix(): string {
    return this.root === undefined ? "" : textOf(this.root);
  }

  /** `known`: so many digits they share. */
  private insert(node: Node, leaf: Leaf, known: number): Node {
    const text = textOf(node), { key } = leaf;
    let shared = known;
    while (shared < text.length && text.charCodeAt(shared) === key.charCodeAt(shared)) shared++;
    if (shared === key.length) return leaf;
    if (shared < text.length || !isBranch(node)) {
      const children = new Map<string, Node>([[text[shared]!, node], [key[shared]!, leaf]]);
      return { prefix: text.slice(0, shared), children, size: sizeOf(node) + 1, chain: undefined };
    }
    this.touch(node);
    const digit = key[shared]!, child = node.children.get(digit);
    // It may become a part of what comes in its place.
    const before = child === undefined ? 0 : sizeOf(child);
    const next = child === undefined ? leaf : this.insert(child, leaf, shared + 1);
    node.size += sizeOf(next) - before;
    node.children.set(digit, next);
    return node;
  }

  private remove(node: Node, key: string): Node | undefined {
    if (!isBranch(node)) return node.key === key ? undefined : node;
    const digit = key[node.prefix.length]!, child = node.children.get(digit);
    if (child === undefined || !key.startsWith(node.prefix)) return node;
    this.touch(node);
    const before = sizeOf(child), next = this.remove(child, key);
    node.size += (next === undefined ? 0 : sizeOf(next)) - before;
    if (next !== undefined) {
      node.children.set(digit, next);
      return node;
    }
    node.children.delete(digit);
    return node.children.size > 1 ? node : [...node.children.values()][0]!;
  }

  private touch(node: Branch): void {
    if (node.chain !== undefined) this.options.chains.delete(node.chain);
    node.chain = undefined;
  }

  private enter(node: Node): readonly Rule[] {
    if (!isBranch(node)) return node.rules;
    const rules = () =>
      [...DIGITS].flatMap((digit) => {
        const child = node.children.get(digit);
        return child === undefined ? [] : this.enter(child);
      });
    if (node.size <= INLINE_MAX) return rules();
    const { chains, nameOf, matchesOf } = this.options;
    if (node.chain === undefined) {
      node.chain = nameOf(node.prefix);
      chains.set(node.chain, rules());
    }
    return [rule(goto(node.chain), ...matchesOf(node.prefix))];
  }
}
