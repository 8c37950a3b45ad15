/** Explanations for a person at a terminal. Pure: values in, text out. */
import type { ExplainReply, Explanation, WhatIfReply } from "../api/protocol.ts";
import type { SourcePlace } from "../host/resources/source_lines.ts";
import type { Paint } from "./output.ts";

type StepView = Explanation["steps"][number];
type TierView = StepView["tiers"][number];
type PolicyView = TierView["policies"][number];
type PacketChange = WhatIfReply["groups"][number]["packets"][number];

/** Policies of a tier that are shown; `-o json` has more. */
const POLICIES_SHOWN = 6;
const PAIRS_SHOWN = 40;
const LABEL_COLUMNS = 10;
const INDENT = "    ";

export function renderExplainReply(reply: ExplainReply, paint: Paint): string {
  const { whatIf } = reply;
  const parts = reply.explanations.map((explanation) => renderExplanation(explanation, paint));
  return (whatIf === undefined ? parts : [...parts, renderWhatIf(whatIf, paint)]).join("\n");
}

const VERDICTS = { allow: "ALLOWED", deny: "DENIED" } as const;
const WORDS = { allow: "allowed", deny: "denied", next: "goes on" } as const;

export function renderExplanation(explanation: Explanation, paint: Paint): string {
  const { verdict, verdictNow, from, to, packet, steps, otherFamily, notes } = explanation;
  const tone = verdict === "allow" ? paint.good : paint.bad;
  const port = packet.portName === undefined ? "" : ` (${packet.portName})`;
  const before = verdictNow === undefined
    ? ""
    : verdictNow === verdict
    ? `   ${paint.dim(`as it is now`)}`
    : `   ${paint.bold(`${WORDS[verdictNow]} now`)}`;
  const head = `${paint.bold(tone(VERDICTS[verdict]))}   ${
    paint.bold(`${from.name} → ${to.name}`)
  }   ${packet.text}${port}${before}`;
  const ends = paint.dim(`${" ".repeat(VERDICTS[verdict].length)}   ${endText(from)} → ${endText(to)}`);
  const sections = steps.map((step) => renderStep(step, paint));
  const further = [
    ...(otherFamily === undefined || otherFamily.same ? [] : [
      `IPv${otherFamily.family} is ${
        WORDS[otherFamily.verdict]
      }: ${otherFamily.reason} (-${otherFamily.family} explains it)`,
    ]),
    ...notes,
  ];
  const remarks = further.length === 0 ? [] : [further.map((note) => `  ${paint.dim("note")}  ${note}\n`).join("")];
  return [`${head}\n${ends}\n`, ...sections, ...remarks].join("\n");
}

const endText = ({ address, node }: Explanation["from"]): string =>
  node === undefined ? address : `${address} on ${node}`;

const STAGES: Readonly<Record<StepView["stage"], string>> = {
  ingress: "ingress",
  egress: "egress",
  forwardIngress: "ingress, forwarded,",
  forwardEgress: "egress, forwarded,",
  preDnat: "ingress, before address translation,",
  untrackedIngress: "ingress, before connection tracking,",
  untrackedEgress: "egress, before connection tracking,",
};

/** `ingress (forwarded)`, for tables. */
export const stageTitle = (stage: StepView["stage"]): string => {
  const [direction, ...rest] = STAGES[stage].split(",").map((part) => part.trim()).filter((part) => part !== "");
  return rest.length === 0 ? direction! : `${direction} (${rest.join(", ")})`;
};

function renderStep(step: StepView, paint: Paint): string {
  const { endpoint, node, stage, verdict, reached, reason, decision, tiers, near, nearMore, staged, counter } = step;
  const word = reached ? WORDS[verdict] : verdict === "next" ? "would go on" : `would be ${WORDS[verdict]}`;
  const tone = verdict === "deny" ? paint.bad : verdict === "allow" ? paint.good : (text: string) => text;
  const place = node === "" ? "" : ` on ${node}`;
  const lines = [`  ${paint.bold(`${STAGES[stage]} of ${endpoint}${place}`)}: ${tone(word)}`];
  const say = (label: string, texts: readonly string[]) => {
    for (const [at, text] of texts.entries()) {
      lines.push(`${INDENT}${paint.dim((at === 0 ? label : "").padEnd(LABEL_COLUMNS))}${text}`);
    }
  };
  const rule = decision?.rule;
  say("because", [reason]);
  if (rule?.place !== undefined) say("written", [placeText(rule.place)]);
  if (rule?.name !== undefined) say("name", [rule.name]);
  for (const [key, value] of Object.entries(rule?.annotations ?? {})) say("noted", [`${key}: ${value}`]);
  for (const tier of tiers) say("tier", renderTier(tier, paint));
  for (const { policy, rule, because } of near) {
    say("near", [
      `${at(rule.place ?? policy.place)}${policy.title} ${rule.path}`,
      paint.dim(rule.text),
      ...because.map((why) => `${paint.bad("✗")} ${why}`),
    ]);
  }
  if (nearMore > 0) say("", [paint.dim(`and ${nearMore} more rules that fail by as much or more`)]);
  for (const { policy, outcome, rule, changes } of staged) {
    const what = outcome === "no match" ? "matches nothing here" : `would ${outcome}`;
    const effect = changes
      ? paint.bold("in force, it would turn the verdict round")
      : "in force, it would change nothing";
    say("staged", [
      `${at(rule?.place ?? policy.place)}${policy.title}${
        rule === undefined ? "" : ` ${rule.path}`
      }: ${what}; ${effect}`,
    ]);
  }
  if (decision !== undefined) say("counted", [counterText(counter)]);
  return `${lines.join("\n")}\n`;
}

const placeText = ({ file, line }: SourcePlace): string => `${file}:${line}`;
const at = (place: SourcePlace | undefined): string => place === undefined ? "" : `${placeText(place)} `;

function counterText(counter: StepView["counter"]): string {
  if ("absent" in counter) return `no counter: ${counter.absent}`;
  const { packets, bytes, sharedWith } = counter;
  const shared = sharedWith === 0
    ? ""
    : `, shared with ${sharedWith} other ${sharedWith === 1 ? "decision" : "decisions"} that the kernel has as one`;
  return `${count(packets, "new flow")}, ${count(bytes, "byte")}${shared}`;
}

function renderTier({ name, order, defaultAction, outcome, policies, more }: TierView, paint: Paint): string[] {
  const head = `${name}: order ${order ?? "last"}, default ${defaultAction === "deny" ? "Deny" : "Pass"}; ${
    outcome === "pass" ? "passed on" : WORDS[outcome]
  }`;
  // The last one is the one that decided, or the last that did not.
  const shown = policies.length <= POLICIES_SHOWN
    ? policies
    : [...policies.slice(0, POLICIES_SHOWN - 1), policies.at(-1)!];
  const hidden = policies.length - shown.length + more;
  const lines = shown.flatMap((policy, i) => [
    ...(hidden > 0 && i === shown.length - 1 ? [paint.dim(`- … ${hidden} more that do not match`)] : []),
    ...renderPolicy(policy, paint),
  ]);
  return [head, ...lines];
}

function renderPolicy({ title, place, staged, outcome, rules, selects }: PolicyView, paint: Paint): string[] {
  const where = place === undefined ? "" : ` (${placeText(place)})`;
  const result = outcome === "no match" ? "no match" : outcome;
  return [
    `- ${title}${where}${staged ? ", staged" : ""}: ${count(rules, "rule")}, ${result}`,
    paint.dim(`  selects ${selects}`),
  ];
}

export function renderWhatIf(whatIf: WhatIfReply, paint: Paint): string {
  const { changes, groups, pairs, compared, added, removed, notes } = whatIf;
  const lines = changes.map(({ kind, namespace, name, outcome }) => {
    const [head, ...group] = kind.split(".");
    const title = `${[head!.toLowerCase(), ...group].join(".")}/${name}`;
    const word = outcome === "unchanged" ? paint.dim("unchanged") : `would be ${outcome}`;
    return `${paint.dim("what if".padEnd(LABEL_COLUMNS))}${title}${
      namespace === "" || namespace === "default" ? "" : ` in ${namespace}`
    } ${word}`;
  });
  const who = [
    count(compared.endpoints, "endpoint"),
    count(compared.nodes, "node"),
    count(compared.networks, "network"),
  ].join(", ");
  lines.push(
    "",
    pairs === 0
      ? paint.bold(`No pair's reachability changes (${who})`)
      : `${paint.bold(pairs === 1 ? "1 pair changes" : `${pairs} pairs change`)} ${paint.dim(`(${who})`)}`,
  );
  let shown = 0;
  for (const [from, to, { packets, families }] of pairsOf(groups)) {
    if (shown++ === PAIRS_SHOWN) break;
    lines.push(
      `  ${from} → ${to}: ${packets.map((change) => renderChange(change, families.length, paint)).join("; ")}`,
    );
  }
  if (pairs > PAIRS_SHOWN) lines.push(paint.dim(`  … and ${pairs - PAIRS_SHOWN} more pairs (-o json has all)`));
  if (added.length > 0) lines.push(`  ${paint.dim("new, not compared:")} ${added.join(", ")}`);
  if (removed.length > 0) lines.push(`  ${paint.dim("gone, not compared:")} ${removed.join(", ")}`);
  for (const note of notes) lines.push(`  ${paint.dim("note")}  ${note}`);
  return `${lines.join("\n")}\n`;
}

function* pairsOf(groups: WhatIfReply["groups"]): Generator<readonly [string, string, WhatIfReply["groups"][number]]> {
  for (const group of groups) {
    const left = new Set(group.except.map(([from, to]) => `${from}\0${to}`));
    for (const from of group.from) for (const to of group.to) if (!left.has(`${from}\0${to}`)) yield [from, to, group];
  }
}

/** `families`: how many the pair has. Which one is meant goes without saying where it has one, and of ICMP. */
function renderChange({ what, more, families: own, now, then }: PacketChange, families: number, paint: Paint): string {
  const tone = then === "allow" ? paint.good : paint.bad;
  const isPart = own.length < families && !what.every((word) => word.startsWith("icmp"));
  const words = `${what.join(", ")}${more > 0 ? ` and ${more} more` : ""}${isPart ? ` (IPv${own[0]})` : ""}`;
  return `${words} ${WORDS[now]} now, ${tone(`${WORDS[then]} then`)}`;
}

const count = (many: number, noun: string): string => `${many} ${noun}${many === 1 ? "" : "s"}`;
