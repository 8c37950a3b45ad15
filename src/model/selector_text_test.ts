import { expect, test } from "bun:test";
import { parseSelector } from "./selector_parse.ts";
import { describeSelector, selectorMisses } from "./selector_text.ts";

/** Selector → what people read. */
const WORDS: readonly [string, string][] = [
  ["all()", "every endpoint"],
  ["app == 'web'", 'endpoints with app == "web"'],
  [
    "has(projectcalico.org/orchestrator) && projectcalico.org/namespace == 'prod' && app == 'web' && !has(old)",
    'pods in namespace prod with app == "web" and !has(old)',
  ],
  [
    "has(projectcalico.org/orchestrator) && pcns.team == 'a' && pcns.kubernetes.io/metadata.name == 'x'",
    'pods in namespace x in namespaces with team == "a"',
  ],
  ["has(projectcalico.org/namespace) && pcns.team in {'b', 'a'}", 'endpoints in namespaces with team in {"a", "b"}'],
  ["has(projectcalico.org/namespace)", "endpoints in any namespace"],
  ["!has(projectcalico.org/namespace) && kind == 'office'", 'endpoints in no namespace with kind == "office"'],
  ["global()", "endpoints in no namespace"],
  [
    "projectcalico.org/serviceaccount in {'x', 'y'} && has(projectcalico.org/serviceaccount) && pcsa.level == '2'",
    'endpoints as service account x or y as service accounts with level == "2"',
  ],
  [
    "projectcalico.org/namespace == 'a' || app == 'b'",
    'endpoints with (projectcalico.org/namespace == "a" || app == "b")',
  ],
  ["!(pcns.team == 'a' && pcns.zone == 'b')", 'endpoints in namespaces with !(team == "a" && zone == "b")'],
];
test.each([...WORDS])("in words: %s", (text, words) => expect(describeSelector(parseSelector(text))).toBe(words));

const POD = new Map([
  ["app", "web"],
  ["projectcalico.org/namespace", "prod"],
  ["projectcalico.org/orchestrator", "k8s"],
  ["projectcalico.org/serviceaccount", "builder"],
  ["pcns.team", "a"],
  ["pcsa.level", "2"],
]);
const NOBODY = new Map<string, string>();

const MISSES: readonly [string, ReadonlyMap<string, string>, string][] = [
  ["app == 'web'", POD, ""],
  ["app == 'db'", POD, 'has app=web, wanted app == "db"'],
  ["tier in {'x', 'y'}", POD, 'has no label tier, wanted tier in {"x", "y"}'],
  [
    "app == 'db' && has(tier) && app != 'z'",
    POD,
    'has app=web, wanted app == "db"; has no label tier, wanted has(tier)',
  ],
  ["app == 'db' || tier == 'x'", POD, 'has app=web and no label tier, wanted (app == "db" || tier == "x")'],
  ["!has(app)", POD, "has app=web, wanted !has(app)"],
  ["projectcalico.org/namespace == 'dev'", POD, "is in namespace prod, wanted namespace dev"],
  ["projectcalico.org/namespace in {'dev', 'test'}", NOBODY, "is in no namespace, wanted namespace dev or test"],
  ["projectcalico.org/serviceaccount == 'x'", POD, "runs as service account builder, wanted x"],
  ["projectcalico.org/serviceaccount == 'x'", NOBODY, "runs as no service account, wanted x"],
  ["has(projectcalico.org/orchestrator)", NOBODY, "is no pod"],
  ["has(projectcalico.org/namespace)", NOBODY, "is in no namespace"],
  ["global()", POD, "is in namespace prod, wanted what is in none"],
  [
    "pcns.team == 'b' && pcsa.level == '3'",
    POD,
    'has team=a by its namespace, wanted team == "b"; has level=2 by its service account, wanted level == "3"',
  ],
  ["!all()", POD, "does not match, wanted !all()"],
];
test.each([...MISSES])("why not: %s", (text, labels, reasons) => {
  expect(selectorMisses(parseSelector(text), labels).join("; ")).toBe(reasons);
});
