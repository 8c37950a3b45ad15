/** What an attribute type is; `scalar.ts`, `struct.ts` and `attribute_set.ts` have the ones there are. */
import type { Reader, Writer } from "./bytes.ts";

/** How one payload is written and read. Custom types implement it: see `README.md`. */
export interface AttributeType<T> {
  /** The payload is itself attributes: NLA_F_NESTED is set on the attribute that carries it. */
  readonly nested?: boolean;
  /** Read after its siblings, because one of them says what it is. */
  readonly dependent?: boolean;
  /** `false` means: leave the attribute away. */
  readonly presence?: boolean;
  /** Read and dropped: padding attributes. */
  readonly ignored?: boolean;
  /** Fixed size in bytes, for types that may be fields of a `struct`. */
  readonly size?: number;
  /** Appends the payload; `siblings` is the attribute set that `value` belongs to. */
  encode(writer: Writer, value: T, siblings: Siblings): void;
  /** Reads the payload at `start`..`end`. @throws {DecodeError} */
  decode(reader: Reader, start: number, end: number, siblings: Siblings): T;
  /** Name path below this payload of what is sought; undefined where it is not here. */
  locate?(reader: Reader, start: number, end: number, sought: Sought, siblings: Siblings): string | undefined;
  /** The name that attribute `id` has directly within this payload. */
  nameOf?(id: number, siblings: Siblings): string | undefined;
}
/** An attribute by the offset of its header (or any byte of it), and the id of the one missing within it, if that is the matter. */
export interface Sought {
  readonly offset: number;
  readonly missingId?: number;
}
/** Attributes beside the one in hand, decoded so far or about to be encoded. */
export type Siblings = Readonly<Record<string, unknown>>;

/** The value type of a schema. */
export type Infer<S> = S extends AttributeType<infer T> ? T : never;

/** An attribute the schema does not name: kept, and written back. `type` is nla_type with its flag bits. */
export interface UnknownAttribute {
  readonly type: number;
  readonly payload: Uint8Array;
}

/** For what stands alone. */
export const noSiblings: Siblings = {};

/** A type that may be a field of a `struct`. */
export type FixedType<T> = AttributeType<T> & { readonly size: number };
