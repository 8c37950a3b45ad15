/** Reading untyped fields of a resource: each reader returns the value, or undefined after noting what was found and wanted. */
import {
  type Address,
  AddressSyntaxError,
  type Cidr,
  parseAddress,
  parseCidr,
  parseCidrStrict,
} from "../../model/address.ts";
import { describe } from "../config.ts";

export interface Finding {
  /** `spec.ports[0].port` */
  readonly path: string;
  readonly message: string;
}

export type Fields = Readonly<Record<string, unknown>>;

export class Findings {
  readonly all: Finding[] = [];

  note(path: string, found: unknown, wanted: string): undefined {
    this.all.push({ path, message: `found ${describe(found)}, wanted ${wanted}` });
    return undefined;
  }

  /** A mapping; with `keys`, no others may be there. Absent = empty. */
  fields(raw: unknown, path: string, keys?: readonly string[]): Fields {
    if (raw === undefined || raw === null) return {};
    if (typeof raw !== "object" || Array.isArray(raw)) {
      this.note(path, raw, "a mapping");
      return {};
    }
    for (const key of keys === undefined ? [] : Object.keys(raw)) {
      if (!keys!.includes(key)) {
        this.all.push({
          path: path === "" ? key : `${path}.${key}`,
          message: `found an unknown field, wanted one of ${keys!.join(", ")}`,
        });
      }
    }
    return raw as Fields;
  }

  list(raw: unknown, path: string): readonly unknown[] {
    if (raw === undefined || raw === null) return [];
    if (!Array.isArray(raw)) {
      this.note(path, raw, "a list");
      return [];
    }
    return raw;
  }

  text(raw: unknown, path: string, wanted = "text"): string | undefined {
    return raw === undefined || raw === null ? undefined : typeof raw === "string" ? raw : this.note(path, raw, wanted);
  }

  flag(raw: unknown, path: string): boolean | undefined {
    return raw === undefined || raw === null
      ? undefined
      : typeof raw === "boolean"
      ? raw
      : this.note(path, raw, "true or false");
  }

  integer(raw: unknown, path: string, least: number, most: number): number | undefined {
    if (raw === undefined || raw === null) return undefined;
    if (typeof raw !== "number" || !Number.isInteger(raw) || raw < least || raw > most) {
      return this.note(path, raw, `a whole number from ${least} to ${most}`);
    }
    return raw;
  }

  address(raw: unknown, path: string): Address | undefined {
    return this.#parse(raw, path, "an IPv4 or IPv6 address", parseAddress);
  }

  /** `strict`: no bits past the prefix. */
  cidr(raw: unknown, path: string, strict: boolean): Cidr | undefined {
    return this.#parse(raw, path, "an IPv4 or IPv6 prefix", strict ? parseCidrStrict : parseCidr);
  }

  labels(raw: unknown, path: string): Map<string, string> {
    const labels = new Map<string, string>();
    for (const [name, value] of Object.entries(this.fields(raw, path))) {
      if (typeof value !== "string") this.note(`${path}.${name}`, value, "text (quote numbers, true and false)");
      else labels.set(name, value);
    }
    return labels;
  }

  #parse<T>(raw: unknown, path: string, wanted: string, parse: (text: string) => T): T | undefined {
    if (raw === undefined || raw === null) return undefined;
    if (typeof raw !== "string") return this.note(path, raw, wanted);
    try {
      return parse(raw);
    } catch (error) {
      if (!(error instanceof AddressSyntaxError)) throw error;
      return this.note(path, raw, error.wanted);
    }
  }
}
