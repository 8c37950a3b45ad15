/** Strict reading of YAML with the place of everything: what is wrong is said with its line and field path, all of it at once. */
import { type Document, isAlias, isMap, isScalar, isSeq, LineCounter, type Node, parseDocument } from "yaml";

/** A mapping, sequence or scalar of a YAML file, with its place. */
export interface Field {
  readonly node: Node | null;
  /** `steps[1].expect`; "" for the whole file. */
  readonly path: string;
  /** From 1. */
  readonly line: number;
}

/** Collects what is wrong in one file. */
export class YamlReader {
  readonly problems: string[] = [];
  readonly root: Field;
  readonly #document: Document.Parsed;
  readonly #lines = new LineCounter();

  constructor(readonly file: string, text: string) {
    this.#document = parseDocument(text, { lineCounter: this.#lines, prettyErrors: false, uniqueKeys: true });
    for (const error of [...this.#document.errors, ...this.#document.warnings]) {
      this.problems.push(`${file}:${this.#lines.linePos(error.pos[0]).line}: ${error.message}`);
    }
    this.root = { node: this.#document.contents, path: "", line: 1 };
  }

  /** Notes a problem at `line` (default: the field's own). */
  refuse(field: Field, found: string, wanted: string, line = field.line): void {
    this.problems.push(
      `${this.file}:${line}: ${field.path === "" ? "" : `${field.path}: `}found ${found}, wanted ${wanted}`,
    );
  }

  /** The fields of a mapping; a key that is not in `known` is refused. undefined where it is not a mapping. */
  mapping(field: Field, known: readonly string[]): ReadonlyMap<string, Field> | undefined {
    const fields = this.entries(field);
    if (fields === undefined) return undefined;
    for (const [key, value] of fields) {
      if (!known.includes(key)) this.refuse(value, `the field "${key}"`, `one of ${known.join(", ")}`);
    }
    return fields;
  }

  /** The entries of a mapping with any keys. */
  entries(field: Field): ReadonlyMap<string, Field> | undefined {
    const node = this.#resolved(field);
    if (!isMap(node)) {
      this.refuse(field, describe(node), "a mapping");
      return undefined;
    }
    const fields = new Map<string, Field>();
    for (const pair of node.items) {
      const key = isScalar(pair.key) ? String(pair.key.value) : "";
      const at = this.#line(pair.key as Node | null, field.line);
      const path = field.path === "" ? key : `${field.path}.${key}`;
      if (!isScalar(pair.key)) this.refuse({ ...field, line: at }, "a key that is no plain text", "a plain key");
      else fields.set(key, { node: pair.value as Node | null, path, line: this.#line(pair.value as Node | null, at) });
    }
    return fields;
  }

  /** The items of a sequence; empty, with a problem noted, where it is none. */
  sequence(field: Field): readonly Field[] {
    const node = this.#resolved(field);
    if (!isSeq(node)) {
      this.refuse(field, describe(node), "a list");
      return [];
    }
    return node.items.map((item, index) => ({
      node: item as Node | null,
      path: `${field.path}[${index}]`,
      line: this.#line(item as Node | null, field.line),
    }));
  }

  /** Text; a number or boolean in its place is refused, as YAML would turn `1.10` or `no` into something else. */
  text(field: Field, wanted = "text"): string | undefined {
    const node = this.#resolved(field);
    if (isScalar(node) && typeof node.value === "string") return node.value;
    this.refuse(field, describe(node), wanted);
    return undefined;
  }

  integer(field: Field, wanted: string): number | undefined {
    const node = this.#resolved(field);
    if (isScalar(node) && typeof node.value === "number" && Number.isInteger(node.value)) return node.value;
    this.refuse(field, describe(node), wanted);
    return undefined;
  }

  /** The line in the file on which line `index` (from 0) of a block scalar's text stands, an alias's at its anchor. */
  lineWithin(field: Field, index: number): number {
    const node = this.#resolved(field);
    if (!isScalar(node) || node.range === undefined || node.range === null) return field.line;
    const first = this.#lines.linePos(node.range[0]).line;
    return node.type === "BLOCK_LITERAL" || node.type === "BLOCK_FOLDED" ? first + 1 + index : first;
  }

  isEmpty(field: Field): boolean {
    const node = this.#resolved(field);
    return node === null || (isScalar(node) && node.value === null);
  }

  #resolved(field: Field): Node | null {
    return isAlias(field.node) ? field.node.resolve(this.#document) ?? null : field.node;
  }

  #line(node: Node | null | undefined, otherwise: number): number {
    return node?.range ? this.#lines.linePos(node.range[0]).line : otherwise;
  }
}

function describe(node: Node | null): string {
  if (isMap(node)) return "a mapping";
  if (isSeq(node)) return "a list";
  if (isScalar(node) && node.value !== null) return JSON.stringify(node.value);
  return "nothing";
}
