import { stringify } from "yaml";
import { PATHS, type ResourceList } from "../api/protocol.ts";
import type { Resource } from "../model/resource.ts";
import { call, CommandError } from "./client.ts";
import { columnsOf } from "./columns.ts";
import { complain, duration, print, table } from "./output.ts";

export interface GetOptions {
  readonly kind: string;
  readonly name?: string;
  readonly namespace: string;
  readonly allNamespaces?: boolean;
  readonly output: "table" | "wide" | "yaml" | "json";
  readonly socket: string;
}

/** `pod/web` as `pod`, `web`. */
export function splitKindName(text: string): readonly [string, string | undefined] {
  const slash = text.indexOf("/");
  return slash < 0 ? [text, undefined] : [text.slice(0, slash), text.slice(slash + 1)];
}

/** `manx get`. @returns the exit status */
export async function runGet(options: GetOptions): Promise<number> {
  const [kind, slashName] = splitKindName(options.kind);
  const name = slashName ?? options.name;
  if (slashName !== undefined && options.name !== undefined) {
    throw new CommandError(`get ${options.kind}: found a second name, wanted one`, [], 64);
  }
  if (name !== undefined && options.allNamespaces) {
    throw new CommandError(`get ${kind} ${name}: found -A with a name, wanted -n NAMESPACE`, [], 64);
  }
  const query = options.allNamespaces ? "" : `?${new URLSearchParams({ namespace: options.namespace })}`;
  const path = `${PATHS.resources}/${encodeURIComponent(kind)}${
    name === undefined ? "" : `/${encodeURIComponent(name)}`
  }${query}`;
  const { groups } = await call<ResourceList>(options.socket, "GET", path);
  const items = groups.flatMap((group) => group.items);
  if (options.output === "yaml" || options.output === "json") {
    print(
      renderDocument(
        name !== undefined && items.length === 1 ? items[0]! : { apiVersion: "v1", kind: "List", items },
        options.output,
      ),
    );
    return 0;
  }
  if (items.length === 0) {
    complain(
      options.allNamespaces || groups.every((group) => !group.kind.namespaced)
        ? "No resources found"
        : `No resources found in namespace ${options.namespace}`,
    );
    return 0;
  }
  const filled = groups.filter((group) => group.items.length > 0);
  const sections = filled.map((group) => {
    const title = filled.length > 1 ? `${group.kind.kind}\n` : "";
    return title +
      renderTable(
        group,
        options.allNamespaces === true && group.kind.namespaced,
        options.output === "wide",
        Date.now(),
      );
  });
  print(sections.join("\n"));
  return 0;
}

const renderDocument = (value: unknown, form: "yaml" | "json"): string =>
  form === "json" ? JSON.stringify(value, null, 2) : stringify(value, { lineWidth: 0, aliasDuplicateObjects: false });

/** `nowMs`: since 1970. */
export function renderTable(
  { kind, items }: ResourceList["groups"][number],
  withNamespace: boolean,
  wide: boolean,
  nowMs: number,
): string {
  const columns = columnsOf(kind.kind).filter((column) => wide || !column.wide);
  const header = [...withNamespace ? ["NAMESPACE"] : [], "NAME", ...columns.map((column) => column.title), "AGE"];
  const rows = items.map((item) => [
    ...withNamespace ? [item.metadata.namespace ?? ""] : [],
    item.metadata.name,
    ...columns.map((column) => column.cell(item) || "<none>"),
    age(item, nowMs),
  ]);
  return table(header, rows);
}

function age(item: Resource, nowMs: number): string {
  const bornMs = Date.parse(item.metadata.creationTimestamp ?? "");
  return Number.isNaN(bornMs) ? "<unknown>" : duration(nowMs - bornMs);
}
