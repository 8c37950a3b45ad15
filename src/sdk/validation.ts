/**
 * Reading what somebody else wrote. A `Field` is a value with its place in the resource; every reading of it gives a
 * good value or `undefined` with the fault noted under its path. Nothing here throws, whatever the value holds.
 */
import { AddressSyntaxError, parseCidr, parseCidrStrict } from "../model/address.ts";
import type { Cidr } from "../model/address.ts";
import type { Selector } from "../model/selector.ts";
import { parseSelector, SelectorSyntaxError } from "../model/selector_parse.ts";

export interface Finding {
  /** For example `spec.ingress[0].ports[1].endPort`; "" for the whole. */
  readonly path: string;
  readonly message: string;
}

/** More than these of one resource are counted, not kept. */
export const FINDINGS_LIMIT = 50;

export class Findings {
  #kept = new Map<string, Finding>();
  #dropped = 0;
  #count = 0;

  /** The same finding twice is one. */
  add(path: string, message: string): void {
    this.#count++;
    const id = `${path}\n${message}`;
    if (this.#kept.has(id)) return;
    if (this.#kept.size < FINDINGS_LIMIT) this.#kept.set(id, { path, message });
    else this.#dropped++;
  }

  /** 0 where all is well. */
  get count(): number {
    return this.#count;
  }

  get all(): readonly Finding[] {
    const kept = [...this.#kept.values()];
    return this.#dropped === 0 ? kept : [...kept, { path: "", message: `found ${this.#dropped} more faults` }];
  }

  /** What `read` gives, or `undefined` where it noted a fault. */
  attempt<T>(read: () => T): T | undefined {
    const before = this.#count;
    const value = read();
    return this.#count === before ? value : undefined;
  }
}

export class Field {
  constructor(
    readonly findings: Findings,
    readonly value: unknown,
    readonly parent?: Field,
    readonly key: string | number = "",
  ) {}

  /** Neither absent nor `null`, which the Kubernetes API takes for absent. */
  get given(): boolean {
    return this.value !== undefined && this.value !== null;
  }

  get path(): string {
    const above = this.parent?.path ?? "";
    if (typeof this.key === "number") return `${above}[${this.key}]`;
    if (this.key === "") return above;
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(this.key)) return `${above}[${JSON.stringify(this.key)}]`;
    return above === "" ? this.key : `${above}.${this.key}`;
  }

  /** Notes a fault. */
  refuse(wanted: string, found: string = describe(this.value)): undefined {
    this.findings.add(this.path, `found ${found}, wanted ${wanted}`);
  }

  /** The field of an object; absent where it has none or is none. */
  at(name: string): Field {
    const own = isObject(this.value) && Object.hasOwn(this.value, name) ? this.value[name] : undefined;
    return new Field(this.findings, own, this, name);
  }

  /** Itself, checked to be an object with no other fields than these; what is no object reads as an empty one. */
  object(names: readonly string[]): Field {
    const checked = this.openObject();
    if (!isObject(checked.value)) return checked;
    for (const name of Object.keys(checked.value)) {
      if (names.includes(name)) continue;
      const near = nearest(name, names);
      const hint = near === undefined
        ? `one of ${names.join(", ")}`
        : `${near}, perhaps; the fields are ${names.join(", ")}`;
      new Field(this.findings, undefined, this, name).refuse(hint, "an unknown field");
    }
    return checked;
  }

  /** As `object`, for APIs of which we read a part only. */
  openObject(): Field {
    if (!this.given || isObject(this.value)) return this;
    this.refuse("an object");
    return new Field(this.findings, undefined, this.parent, this.key);
  }

  /** The fields of a map. */
  entries(): readonly (readonly [string, Field])[] {
    const map = this.openObject();
    return isObject(map.value) ? Object.keys(map.value).map((key) => [key, this.at(key)] as const) : [];
  }

  /** The members of a list. */
  items(limit: number = Infinity): readonly Field[] {
    if (!this.given) return [];
    if (!Array.isArray(this.value)) return this.refuse("a list") ?? [];
    if (this.value.length > limit) this.refuse(`at most ${limit} members`, `a list of ${this.value.length}`);
    return this.value.map((value, index) => new Field(this.findings, value, this, index));
  }

  /** Itself, noted as a fault where it is absent. */
  required(wanted: string): Field {
    if (!this.given) this.refuse(wanted, "nothing");
    return this;
  }

  text(wanted: string = "a string"): string | undefined {
    if (!this.given) return undefined;
    if (typeof this.value === "string") return this.value;
    return this.refuse(typeof this.value === "object" ? wanted : `${wanted} (in quotes)`);
  }

  /** Text for which `fault` has nothing to say. */
  name(fault: (text: string) => string | undefined): string | undefined {
    const text = this.text();
    const wanted = text === undefined ? undefined : fault(text);
    return wanted === undefined ? text : this.refuse(wanted);
  }

  flag(): boolean | undefined {
    if (!this.given || typeof this.value === "boolean") return this.value as boolean | undefined ?? undefined;
    return this.refuse("true or false");
  }

  integer(first: number, last: number): number | undefined {
    if (!this.given) return undefined;
    const value = this.value;
    if (typeof value === "number" && Number.isInteger(value) && value >= first && value <= last) return value;
    return this.refuse(`a whole number from ${first} to ${last}`);
  }

  number(): number | undefined {
    if (!this.given) return undefined;
    return typeof this.value === "number" && Number.isFinite(this.value) ? this.value : this.refuse("a number");
  }

  oneOf<T extends string>(values: readonly T[]): T | undefined {
    if (!this.given) return undefined;
    return values.find((value) => value === this.value) ?? this.refuse(values.join(" or "));
  }

  /** A prefix; `hostBits: "refused"` where bits past its length must be zero. */
  cidr(hostBits: "refused" | "cleared"): Cidr | undefined {
    return this.parsed(
      "a prefix such as 10.0.0.0/8 or fd00::/64",
      hostBits === "cleared" ? parseCidr : parseCidrStrict,
    );
  }

  /** Of the selector language. */
  selector(): Selector | undefined {
    return this.parsed("a selector", parseSelector);
  }

  /** What `parse` makes of the text; its syntax errors become faults. */
  parsed<T>(wanted: string, parse: (text: string) => T): T | undefined {
    const text = this.text(wanted);
    if (text === undefined) return undefined;
    try {
      return parse(text);
    } catch (error) {
      if (error instanceof SelectorSyntaxError) this.findings.add(this.path, error.message);
      else if (error instanceof AddressSyntaxError) this.refuse(error.wanted);
      else throw error;
      return undefined;
    }
  }
}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** A value in a few words, for messages. */
export function describe(value: unknown): string {
  switch (typeof value) {
    case "undefined":
      return "nothing";
    case "string":
      return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
    case "object":
      return value === null ? "null" : Array.isArray(value) ? "a list" : "an object";
    case "number":
    case "boolean":
    case "bigint":
      return String(value);
    default:
      return `a ${typeof value}`;
  }
}

/** The known name that was probably meant: another case, or one edit away. */
function nearest(name: string, names: readonly string[]): string | undefined {
  const lower = name.toLowerCase();
  return names.find((known) => known.toLowerCase() === lower) ??
    names.find((known) => withinOneEdit(known.toLowerCase(), lower));
}

function withinOneEdit(a: string, b: string): boolean {
  if (Math.abs(a.length - b.length) > 1 || Math.max(a.length, b.length) < 3) return false;
  let start = 0;
  while (start < a.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const middle = Math.max(a.length, b.length) - start - end;
  return middle <= 1 || middle === 2 && a.length === b.length && a[start] === b[start + 1] && a[start + 1] === b[start];
}
