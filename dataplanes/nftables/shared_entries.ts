import { type MapEditor, type PersistentMap, persistentMap } from "../../src/model/persistent_map.ts";
import { type NftChain, sameBase, sameRules } from "./ruleset.ts";

/** Entries that stand as long as somebody holds them; the value is what was given last. */
export class SharedEntries<V> {
  private readonly editor: MapEditor<string, V> = persistentMap<string, V>().edit();
  private readonly holders = new Map<string, number>();

  get(key: string): V | undefined {
    return this.editor.get(key);
  }

  /** One more holder. */
  retain(key: string, value: V): void {
    this.holders.set(key, (this.holders.get(key) ?? 0) + 1);
    this.editor.set(key, value);
  }

  /** One holder less. Whether it was the last. */
  release(key: string): boolean {
    const left = this.holders.get(key)! - 1;
    if (left > 0) {
      this.holders.set(key, left);
      return false;
    }
    this.holders.delete(key);
    this.editor.delete(key);
    return true;
  }

  finish(): PersistentMap<string, V> {
    return this.editor.finish();
  }
}

/** Chains; one that says the same as before stays the same object. */
export class Chains extends SharedEntries<NftChain> {
  override retain(name: string, chain: NftChain): void {
    const before = this.get(name);
    const same = before !== undefined && sameBase(before.base, chain.base) && sameRules(before.rules, chain.rules);
    super.retain(name, same ? before : chain);
  }
}
