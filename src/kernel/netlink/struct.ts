/** C structures as attribute payloads and message headers. */
import { type AttributeType, type FixedType, type Infer, noSiblings, type Siblings } from "./attribute.ts";
import type { Writer } from "./bytes.ts";

type StructShape = Readonly<Record<string, FixedType<number> | FixedType<bigint> | Padding>>;
interface Padding {
  readonly padBytes: number;
}
/** Field names are keys; padding fields (any name) are not part of the value. */
export type StructValues<S extends StructShape> = {
  readonly [K in keyof S as S[K] extends Padding ? never : K]: Infer<S[K]>;
};
export type StructType<T> = AttributeType<T> & {
  readonly size: number;
  /** Appends the structure; a field left away is zero. */
  write(writer: Writer, value: Partial<T>): void;
};

/** Unused bytes of a structure, written as zero. */
export const pad = (padBytes: number): Padding => ({ padBytes });

/** A C structure without implicit padding: write `pad(n)` where the compiler would. */
export function struct<const S extends StructShape>(shape: S): StructType<StructValues<S>> {
  const fields = Object.entries(shape).map(([name, type]) => ({ name, type }));
  let size = 0;
  for (const { type } of fields) size += "padBytes" in type ? type.padBytes : type.size;
  const write = (writer: Writer, value: Siblings): void => {
    for (const { name, type } of fields) {
      if ("padBytes" in type) writer.zeros(type.padBytes);
      else {
        const field = value[name];
        if (field === undefined) writer.zeros(type.size);
        else (type as FixedType<unknown>).encode(writer, field, value);
      }
    }
  };
  return {
    size,
    write: write as StructType<StructValues<S>>["write"],
    encode: write as StructType<StructValues<S>>["encode"],
    decode(reader, start, end) {
      reader.need(start, end, size, "a structure");
      const value: Record<string, unknown> = {};
      let at = start;
      for (const { name, type } of fields) {
        if ("padBytes" in type) at += type.padBytes;
        else {
          value[name] = type.decode(reader, at, at + type.size, value);
          at += type.size;
        }
      }
      return value as StructValues<S>;
    },
  };
}

/** A fixed structure and attributes behind it within one attribute: VETH_INFO_PEER holds a whole link message, say. */
export function headed<H, A>(
  header: StructType<H>,
  attributes: () => AttributeType<A>,
): AttributeType<{ readonly header: Partial<H>; readonly attributes: A }> {
  const headerBytes = header.size + 3 & ~3;
  return {
    nested: true,
    encode(writer, value) {
      header.write(writer, value.header);
      if (headerBytes !== header.size) writer.zeros(headerBytes - header.size);
      attributes().encode(writer, value.attributes, noSiblings);
    },
    decode: (reader, start, end) => ({
      header: header.decode(reader, start, end, noSiblings),
      attributes: attributes().decode(reader, Math.min(end, start + headerBytes), end, noSiblings),
    }),
    locate: (reader, start, end, sought) =>
      attributes().locate?.(reader, Math.min(end, start + headerBytes), end, sought, noSiblings),
    nameOf: (id) => attributes().nameOf?.(id, noSiblings),
  };
}
