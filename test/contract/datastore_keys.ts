/** Keys and writes of made-up kinds, for datastore tests and the processes they start. */
import type { Resource, ResourceKey } from "../../src/model/resource.ts";
import type { Revision, Write } from "../../src/sdk/datastore.ts";

export const resource = (kind: string, name: string, spec: unknown, namespace = ""): Resource => ({
  apiVersion: "example.test/v1",
  kind,
  metadata: { name, ...(namespace === "" ? {} : { namespace }) },
  spec,
});

export const key = (kind: string, name: string, namespace = ""): ResourceKey => ({
  kind: `${kind}.example.test`,
  namespace,
  name,
});

export const put = (kind: string, name: string, spec: unknown, expect?: Revision | null): Write => ({
  key: key(kind, name),
  value: resource(kind, name, spec),
  ...(expect === undefined ? {} : { expect }),
});

export const drop = (kind: string, name: string, expect?: Revision | null): Write => ({
  key: key(kind, name),
  value: null,
  ...(expect === undefined ? {} : { expect }),
});
