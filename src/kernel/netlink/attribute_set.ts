/** Attribute types whose payload is attributes again. */
import { DecodeError, EncodeError } from "../errors.ts";
import type { AttributeType, Infer, Siblings, Sought, UnknownAttribute } from "./attribute.ts";
import {
  ATTRIBUTE_HEADER_BYTES,
  littleEndian,
  NLA_F_NESTED,
  NLA_TYPE_MASK,
  type Reader,
  type Writer,
} from "./bytes.ts";
import { bytes } from "./scalar.ts";

export type Shape = Readonly<Record<string, readonly [id: number, type: AttributeType<any>]>>;
/** Everything is optional: the kernel decides what must be there. */
export type Values<S extends Shape> =
  & {
    readonly [K in keyof S as S[K][1] extends AttributeType<undefined> ? never : K]?: Infer<S[K][1]>;
  }
  & { readonly unknown?: readonly UnknownAttribute[] };

interface Field {
  readonly name: string;
  readonly id: number;
  /** nla_type as sent. */
  readonly header: number;
  readonly type: AttributeType<unknown>;
}

/** A set of attributes by name: `attrs({ table: [1, str], … })`. Written in the order of the schema. */
export function attrs<const S extends Shape>(shape: S): AttributeType<Values<S>> {
  const fields: Field[] = Object.entries(shape).map(([name, [id, type]]) => (
    { name, id, type, header: type.nested ? id | NLA_F_NESTED : id }
  ));
  const byId: (Field | undefined)[] = [];
  for (const field of fields) {
    if (byId[field.id] !== undefined) throw new Error(`schema names attribute ${field.id} twice: ${field.name}`);
    byId[field.id] = field;
  }
  const count = fields.length;
  const names = fields.map((field) => field.name);

  function readField(reader: Reader, field: Field, start: number, end: number, into: Record<string, unknown>): void {
    try {
      into[field.name] = field.type.decode(reader, start, end, into);
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      throw new DecodeError(error.offset, error.found, error.wanted, joinPath(field.name, error.path));
    }
  }

  return {
    nested: true,
    encode(writer, value) {
      const values = value as Siblings;
      for (let i = 0; i < count; i++) {
        const field = values[names[i]!];
        if (field === undefined) continue;
        const { type, header } = fields[i]!;
        if (type.ignored || (field === false && type.presence)) continue;
        const at = writer.open(header);
        type.encode(writer, field, values);
        closeNamed(writer, at, names[i]!);
      }
      const unknown = value.unknown;
      if (unknown !== undefined) {
        for (const { type, payload } of unknown) {
          const at = writer.open(type);
          writer.raw(payload);
          closeNamed(writer, at, `attribute ${type & NLA_TYPE_MASK}`);
        }
      }
    },
    decode(reader, start, end) {
      const value: Record<string, unknown> = {};
      let unknown: UnknownAttribute[] | undefined;
      let later: (readonly [Field, number, number])[] | undefined;
      reader.enter(start);
      for (let at = start; at < end;) {
        const length = reader.attributeLength(at, end);
        const header = reader.view.getUint16(at + 2, littleEndian);
        const field = byId[header & NLA_TYPE_MASK];
        const from = at + ATTRIBUTE_HEADER_BYTES, to = at + length;
        if (field === undefined) (unknown ??= []).push({ type: header, payload: reader.copy(from, to) });
        else if (field.type.dependent) (later ??= []).push([field, from, to]);
        else if (!field.type.ignored) readField(reader, field, from, to, value);
        at += length + 3 & ~3;
      }
      if (later !== undefined) { for (const [field, from, to] of later) readField(reader, field, from, to, value); }
      if (unknown !== undefined) value.unknown = unknown;
      reader.leave();
      return value as Values<S>;
    },
    locate(reader, start, end, sought) {
      const siblings = siblingsOf(reader, start, end, byId);
      for (let at = start; at < end;) {
        const length = reader.attributeLength(at, end);
        if (sought.offset >= at && sought.offset < at + length) {
          const id = reader.view.getUint16(at + 2, littleEndian) & NLA_TYPE_MASK;
          const field = byId[id];
          if (field === undefined) return `attribute ${id}`;
          const from = at + ATTRIBUTE_HEADER_BYTES;
          if (sought.offset < from) return joinPath(field.name, missingName(field.type, sought, siblings));
          return joinPath(field.name, field.type.locate?.(reader, from, at + length, sought, siblings));
        }
        at += length + 3 & ~3;
      }
      return undefined;
    },
    nameOf: (id) => byId[id]?.name,
  };
}

/** The plain siblings of dependent attributes, enough to know what those are. */
function siblingsOf(reader: Reader, start: number, end: number, byId: readonly (Field | undefined)[]): Siblings {
  const value: Record<string, unknown> = {};
  for (let at = start; at < end;) {
    const length = reader.attributeLength(at, end);
    const field = byId[reader.view.getUint16(at + 2, littleEndian) & NLA_TYPE_MASK];
    if (field !== undefined && !field.type.nested && !field.type.dependent) {
      value[field.name] = field.type.decode(reader, at + ATTRIBUTE_HEADER_BYTES, at + length, value);
    }
    at += length + 3 & ~3;
  }
  return value;
}

const missingName = (type: AttributeType<unknown>, { missingId }: Sought, siblings: Siblings): string | undefined =>
  missingId === undefined ? undefined : type.nameOf?.(missingId, siblings) ?? String(missingId);

/** `head.tail`, or `head[3]` where the tail is an index. */
export const joinPath = (head: string, tail: string | undefined): string =>
  tail === undefined || tail === "" ? head : tail.startsWith("[") ? head + tail : `${head}.${tail}`;

function closeNamed(writer: Writer, at: number, name: string): void {
  try {
    writer.close(at);
  } catch (error) {
    if (error instanceof EncodeError && error.path === "") throw new EncodeError(error.found, error.wanted, name);
    throw error;
  }
}

/** Attributes within an attribute, named lazily so that schemas can refer to later ones and to themselves. */
export function nested<T>(schema: () => AttributeType<T>): AttributeType<T> {
  return {
    nested: true,
    encode: (writer, value, siblings) => schema().encode(writer, value, siblings),
    decode: (reader, start, end, siblings) => schema().decode(reader, start, end, siblings),
    locate: (reader, start, end, sought, siblings) => schema().locate?.(reader, start, end, sought, siblings),
    nameOf: (id, siblings) => schema().nameOf?.(id, siblings),
  };
}

function sequence<T>(element: () => AttributeType<T>, idOf: (index: number) => number): AttributeType<readonly T[]> {
  return {
    nested: true,
    encode(writer, values, siblings) {
      const type = element();
      const bits = type.nested ? NLA_F_NESTED : 0;
      for (let i = 0; i < values.length; i++) {
        const at = writer.open(idOf(i) | bits);
        type.encode(writer, values[i]!, siblings);
        writer.close(at);
      }
    },
    decode(reader, start, end, siblings) {
      const type = element();
      const values: T[] = [];
      reader.enter(start);
      for (let at = start; at < end;) {
        const length = reader.attributeLength(at, end);
        try {
          values.push(type.decode(reader, at + ATTRIBUTE_HEADER_BYTES, at + length, siblings));
        } catch (error) {
          if (!(error instanceof DecodeError)) throw error;
          throw new DecodeError(error.offset, error.found, error.wanted, joinPath(`[${values.length}]`, error.path));
        }
        at += length + 3 & ~3;
      }
      reader.leave();
      return values;
    },
    locate(reader, start, end, sought, siblings) {
      for (let at = start, index = 0; at < end; index++) {
        const length = reader.attributeLength(at, end);
        if (sought.offset >= at && sought.offset < at + length) {
          const from = at + ATTRIBUTE_HEADER_BYTES;
          const below = sought.offset < from
            ? missingName(element(), sought, siblings)
            : element().locate?.(reader, from, at + length, sought, siblings);
          return joinPath(`[${index}]`, below);
        }
        at += length + 3 & ~3;
      }
      return undefined;
    },
  };
}

/** An array whose elements all carry the same attribute type: NFTA_LIST_ELEM (1) of nf_tables.h and its like. */
export const list = <T>(element: () => AttributeType<T>, elementId = 1): AttributeType<readonly T[]> =>
  sequence(element, () => elementId);

/** An array whose attribute types count up from `firstId`; read in wire order, whatever the types say. */
export const indexed = <T>(element: () => AttributeType<T>, firstId = 1): AttributeType<readonly T[]> =>
  sequence(element, (index) => firstId + index);

type Cases = Readonly<Record<string, AttributeType<any>>>;

/**
 * A payload whose schema a sibling chooses by name, IFLA_INFO_DATA by IFLA_INFO_KIND say. Where the sibling is
 * none of `cases` the payload is kept as bytes.
 */
export function switched<const C extends Cases>(
  selector: string,
  cases: () => C,
): AttributeType<{ readonly [K in keyof C]: Infer<C[K]> }[keyof C] | Uint8Array> {
  const choose = (siblings: Siblings): AttributeType<any> | undefined => {
    const name = siblings[selector];
    const all = cases();
    return typeof name === "string" && Object.hasOwn(all, name) ? all[name] : undefined;
  };
  return {
    nested: true,
    dependent: true,
    encode(writer, value, siblings) {
      if (value instanceof Uint8Array) return writer.raw(value);
      const type = choose(siblings);
      if (type === undefined) {
        throw new EncodeError(
          `${selector} ${JSON.stringify(siblings[selector])}`,
          `one of ${Object.keys(cases()).join(", ")}`,
        );
      }
      type.encode(writer, value, siblings);
    },
    decode: (reader, start, end, siblings) => (choose(siblings) ?? bytes).decode(reader, start, end, siblings),
    locate: (reader, start, end, sought, siblings) => choose(siblings)?.locate?.(reader, start, end, sought, siblings),
    nameOf: (id, siblings) => choose(siblings)?.nameOf?.(id, siblings),
  };
}
