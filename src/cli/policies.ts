import { stringify } from "yaml";
import { PATHS, type PoliciesReply } from "../api/protocol.ts";
import { call } from "./client.ts";
import { stageTitle } from "./explain_text.ts";
import { complain, print, table } from "./output.ts";

export interface PoliciesOptions {
  readonly endpoint: string;
  readonly namespace: string;
  readonly output: "table" | "wide" | "yaml" | "json";
  readonly socket: string;
}

/** `manx policies`. @returns the exit status */
export async function runPolicies({ endpoint, namespace, output, socket }: PoliciesOptions): Promise<number> {
  const query = new URLSearchParams({ endpoint, namespace });
  const reply = await call<PoliciesReply>(socket, "GET", `${PATHS.policies}?${query}`);
  if (output === "json") print(JSON.stringify(reply, null, 2));
  else if (output === "yaml") print(stringify(reply, { lineWidth: 0, aliasDuplicateObjects: false }));
  else if (reply.lists.length === 0) {
    complain(`${reply.endpoint} has no host endpoint: policy does not concern it`);
  } else print(renderPolicies(reply, output === "wide"));
  return 0;
}

type List = PoliciesReply["lists"][number];
type Policy = List["profiles"][number];

/** In the order of judgement; each tier ends with what becomes of packets that none of its rules match. */
export function renderPolicies({ lists }: PoliciesReply, wide: boolean): string {
  const endpoints = [...new Set(lists.map(({ endpoint }) => endpoint))];
  const header = ["DIRECTION", "TIER", "ORDER", "POLICY", "RULES", "SOURCE", ...wide ? ["SELECTS"] : []];
  return endpoints.map((endpoint) => {
    const rows = lists.filter((list) => list.endpoint === endpoint).flatMap((list) => rowsOf(list, wide));
    return `${endpoints.length > 1 ? `${endpoint}\n` : ""}${table(header, rows)}`;
  }).join("\n");
}

function rowsOf({ stage, tiers, profiles, end }: List, wide: boolean): string[][] {
  const direction = stageTitle(stage);
  const row = (tier: string, order: string, policy: string, rules = "", source = "", selects = "") =>
    [direction, tier, order, policy, rules, source, ...wide ? [selects] : []].map((cell) => cell || "-");
  const policyRow = (tier: string, { order, title, staged, rules, place, selects }: Policy, isProfile = false) =>
    row(
      tier,
      isProfile ? "" : order === null ? "last" : String(order),
      `${title}${staged ? " (staged)" : ""}`,
      String(rules),
      place === undefined ? "" : `${place.file}:${place.line}`,
      isProfile ? "" : selects,
    );
  const rows = tiers.flatMap(({ name, defaultAction, policies }) => {
    const ends = defaultAction === "deny" ? [row(name, "", "otherwise Deny")] : [];
    return [...policies.map((policy) => policyRow(name, policy)), ...ends];
  });
  const isClosed = tiers.some(({ defaultAction }) => defaultAction === "deny");
  rows.push(...profiles.map((profile) => policyRow("", profile, true)));
  if (end === "deny" && profiles.length === 0 && !isClosed) rows.push(row("", "", "otherwise Deny"));
  return rows;
}
