/**
 * What somebody else wrote into the datastore and nobody can read: a problem on the status, the last good version stays, and where there is
 * none, what it selects is closed. By real daemons on one file, with real packets.
 */
import { Database } from "bun:sqlite";
import { afterAll, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { WaitKey } from "../../src/api/protocol.ts";
import { type Manifest, PolicyLab } from "./policy_lab.ts";

const TEST_DEADLINE_MS = 60_000;

const WORLD = `
nodes: [ { name: n1 }, { name: n2 } ]
namespaces: { prod: {}, dev: {} }
pods:
  - { name: a, namespace: prod, node: n1, labels: { app: a }, serves: [tcp/80, tcp/81] }
  - { name: b, namespace: prod, node: n2, labels: { app: b }, serves: [tcp/80] }
  - { name: c, namespace: dev, node: n1, labels: { app: c }, serves: [tcp/80] }
  - { name: d, namespace: dev, node: n2, labels: { app: d }, serves: [tcp/80] }
`;
const OPEN = [
  "prod/a -> prod/b tcp/80 allow",
  "prod/b -> prod/a tcp/80 allow",
  "dev/c -> prod/a tcp/80 allow",
  "prod/a -> dev/c tcp/80 allow",
  "dev/c -> dev/d tcp/80 allow",
];

let opened: Promise<PolicyLab> | undefined;
afterAll(async () => await (await opened)?.[Symbol.asyncDispose]());

/** The file itself, past every check. */
class Store implements Disposable {
  readonly #lab: PolicyLab;
  readonly #db: Database;
  readonly #notice: string;
  /** Of what was written here. */
  readonly #keys: WaitKey[] = [];

  constructor(lab: PolicyLab) {
    this.#lab = lab;
    const path = join(lab.directory, "datastore.db");
    this.#db = new Database(path);
    this.#db.run("PRAGMA busy_timeout = 10000");
    this.#notice = `${path}-notice`;
  }

  /** In force on both nodes on return. `value`: a resource's JSON, or any text; null deletes. */
  async put(kind: string, namespace: string, name: string, value: unknown): Promise<void> {
    const key = { kind, namespace, name, revision: this.write(kind, namespace, name, value) };
    this.#keys.push(key);
    await this.#lab.sandbox.inForce([value === null ? { ...key, outcome: "deleted" } : key]);
  }

  /** The same without waiting; gives the revision. */
  write(kind: string, namespace: string, name: string, value: unknown): string {
    const text = value === null || typeof value === "string" ? value : JSON.stringify(value);
    const put = this.#db.transaction(() => {
      const { latest } = this.#db.query<{ latest: number }, []>("SELECT max(revision) AS latest FROM resources").get()!;
      this.#db.query(
        `INSERT INTO resources (kind, namespace, name, revision, value) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (kind, namespace, name) DO UPDATE SET revision = excluded.revision, value = excluded.value`,
      ).run(kind, namespace, name, latest + 1, text);
      return String(latest + 1);
    });
    const revision = put.immediate();
    writeFileSync(this.#notice, "x");
    return revision;
  }

  /** `KIND/NAMESPACE/NAME: EFFECT`, as both nodes say. */
  async problems(): Promise<readonly string[]> {
    const [one, other] = (await this.#lab.sandbox.statuses()).map(({ problems }) =>
      [...new Set(problems.map(({ subject, effect }) => `${subject}: ${effect}`))].sort()
    );
    expect(other).toEqual(one);
    return one!;
  }

  /** Takes away all that was written here. */
  async clear(): Promise<void> {
    for (const { kind, namespace, name } of this.#keys.splice(0)) await this.put(kind, namespace, name, null);
    this.#keys.length = 0;
  }

  [Symbol.dispose](): void {
    this.#db.close();
  }
}

/** Runs `body` in the open world, which is open again behind it. */
async function withStore(body: (store: Store, lab: PolicyLab) => Promise<void>): Promise<void> {
  const lab = await (opened ??= PolicyLab.open(WORLD));
  using store = new Store(lab);
  try {
    await body(store, lab);
  } finally {
    await store.clear();
  }
  expect(await store.problems()).toEqual([]);
  expect(await lab.wrongLines(OPEN)).toEqual([]);
}

const KUBERNETES = "NetworkPolicy.networking.k8s.io";
const kubernetes = (name: string, spec: unknown): Manifest => ({
  apiVersion: "networking.k8s.io/v1",
  kind: "NetworkPolicy",
  metadata: { name, namespace: "prod" },
  spec,
} as Manifest);
const A = { podSelector: { matchLabels: { app: "a" } } };

test(
  "a fault in the rules of a policy that was never good closes what it selects, in the directions that it names",
  async () => {
    await withStore(async (store, lab) => {
      const faulty = { ...A, policyTypes: ["Ingress"], ingress: [{ ports: [{ port: 99_999 }] }, {}] };
      await store.put(KUBERNETES, "prod", "p", kubernetes("p", faulty));
      expect(await store.problems()).toEqual([`${KUBERNETES}/prod/p: fail-closed`]);
      expect(
        await lab.wrongLines([
          "prod/b -> prod/a tcp/80 deny",
          "dev/c -> prod/a tcp/80 deny",
          "prod/a -> prod/b tcp/80 allow",
          "prod/a -> dev/c tcp/80 allow",
          "dev/c -> prod/b tcp/80 allow",
        ]),
      ).toEqual([]);
    });
  },
  TEST_DEADLINE_MS,
);

test("a selector that cannot be read closes its namespace, and no other", async () => {
  await withStore(async (store, lab) => {
    const spec = {
      podSelector: { matchExpressions: [{ key: "app", operator: "Like", values: ["a"] }] },
      ingress: [{}],
    };
    await store.put(
      KUBERNETES,
      "prod",
      "p",
      kubernetes("p", { ...spec, policyTypes: ["Ingress", "Egress"], egress: [{}] }),
    );
    expect(
      await lab.wrongLines([
        "dev/c -> prod/a tcp/80 deny",
        "prod/a -> prod/b tcp/80 deny",
        "prod/b -> dev/d tcp/80 deny",
        "dev/c -> dev/d tcp/80 allow",
      ]),
    ).toEqual([]);
  });
}, TEST_DEADLINE_MS);

test(
  "a global policy whose selector cannot be read closes everything, a tier without a place what its policies select",
  async () => {
    await withStore(async (store, lab) => {
      const head = { apiVersion: "projectcalico.org/v3", kind: "GlobalNetworkPolicy", metadata: { name: "p" } };
      const spec = { selector: "app ==", ingress: [{ action: "Allow" }], types: ["Ingress", "Egress"] };
      await store.put("GlobalNetworkPolicy.projectcalico.org", "", "p", { ...head, spec });
      expect(await lab.wrongLines(OPEN.map((line) => line.replace("allow", "deny")))).toEqual([]);
      await store.put("GlobalNetworkPolicy.projectcalico.org", "", "p", null);
      const tier = { apiVersion: "projectcalico.org/v3", kind: "Tier", metadata: { name: "t" } };
      await store.put("Tier.projectcalico.org", "", "t", { ...tier, spec: { order: "first" } });
      await store.put("GlobalNetworkPolicy.projectcalico.org", "", "t.p", {
        ...head,
        metadata: { name: "t.p" },
        spec: {
          tier: "t",
          selector: "app == 'a'",
          types: ["Ingress"],
          ingress: [{ action: "Allow", source: { selector: "app == 'b'" } }],
        },
      });
      expect(
        await lab.wrongLines([
          "prod/b -> prod/a tcp/80 deny",
          "dev/c -> prod/a tcp/80 deny",
          "prod/a -> prod/b tcp/80 allow",
        ]),
      ).toEqual([]);
    });
  },
  TEST_DEADLINE_MS,
);

test("a policy of a tier that is not there is judged last, and denies what it does not allow", async () => {
  await withStore(async (store, lab) => {
    const policy = (name: string, spec: unknown) =>
      store.put("GlobalNetworkPolicy.projectcalico.org", "", name, {
        apiVersion: "projectcalico.org/v3",
        kind: "GlobalNetworkPolicy",
        metadata: { name },
        spec,
      });
    const fromB = [{ action: "Allow", source: { selector: "app == 'b'" } }];
    await policy("late.open", { tier: "late", selector: "app == 'a'", types: ["Ingress"], ingress: fromB });
    const judgedLast = [
      "prod/b -> prod/a tcp/80 allow",
      "prod/b -> prod/a tcp/81 allow",
      "dev/c -> prod/a tcp/80 deny",
    ];
    expect(await lab.wrongLines(judgedLast)).toEqual([]);
    // Before it there is whatever has a place.
    const pass = [{ action: "Pass", protocol: "TCP", destination: { ports: [80] } }];
    await policy("shut", { selector: "app == 'a'", types: ["Ingress"], ingress: pass });
    const passed = ["prod/b -> prod/a tcp/80 allow", "prod/b -> prod/a tcp/81 deny", "dev/c -> prod/a tcp/80 deny"];
    expect(await lab.wrongLines(passed)).toEqual([]);
    const tier = { apiVersion: "projectcalico.org/v3", kind: "Tier", metadata: { name: "late" }, spec: { order: 1 } };
    await store.put("Tier.projectcalico.org", "", "late", tier);
    expect(await lab.wrongLines(judgedLast)).toEqual([]);
    await store.put("Tier.projectcalico.org", "", "late", null);
    expect(await lab.wrongLines(passed)).toEqual([]);
  });
}, TEST_DEADLINE_MS);

test("a fault in a new version leaves the last good one in force, bytes that are nothing as well", async () => {
  await withStore(async (store, lab) => {
    const onlyB = { ...A, ingress: [{ from: [{ podSelector: { matchLabels: { app: "b" } } }] }] };
    const holds = ["prod/b -> prod/a tcp/80 allow", "dev/c -> prod/a tcp/80 deny", "prod/a -> dev/c tcp/80 allow"];
    await store.put(KUBERNETES, "prod", "p", kubernetes("p", onlyB));
    expect(await lab.wrongLines(holds)).toEqual([]);
    const bad: readonly unknown[] = [
      kubernetes("p", { ...A, ingress: [{ from: [{ podSelector: 5 }] }] }),
      kubernetes("p", { podSelector: {}, ingres: [{}] }),
      "{ not JSON",
      "[]",
      "5",
      '{"kind":"NetworkPolicy"}',
      { ...kubernetes("p", onlyB), apiVersion: "networking.k8s.io/v9" },
      { ...kubernetes("p", onlyB), kind: "Namespace" },
    ];
    for (const value of bad) {
      await store.put(KUBERNETES, "prod", "p", value);
      expect([value, await store.problems()]).toEqual([value, [`${KUBERNETES}/prod/p: last-good`]]);
    }
    expect(await lab.wrongLines(holds)).toEqual([]);
    await store.put(KUBERNETES, "prod", "p", kubernetes("p", { ...A, ingress: [{}] }));
    expect(await store.problems()).toEqual([]);
    expect(await lab.wrongLines(["dev/c -> prod/a tcp/80 allow"])).toEqual([]);
  });
}, TEST_DEADLINE_MS);

test("bytes that are nothing, under the name of a policy that was never good, close its namespace", async () => {
  await withStore(async (store, lab) => {
    await store.put(KUBERNETES, "prod", "p", "\0\0 nonsense");
    expect(await store.problems()).toEqual([`${KUBERNETES}/prod/p: fail-closed`]);
    expect(
      await lab.wrongLines([
        "dev/c -> prod/a tcp/80 deny",
        "dev/c -> prod/b tcp/80 deny",
        "dev/c -> dev/d tcp/80 allow",
      ]),
    )
      .toEqual([]);
  });
}, TEST_DEADLINE_MS);

test("a kind that nobody reads here changes nothing, and keeps nothing behind it waiting", async () => {
  await withStore(async (store, lab) => {
    const gadget = { apiVersion: "example.org/v1", kind: "Gadget", metadata: { name: "x", namespace: "prod" } };
    store.write("Gadget.example.org", "prod", "x", gadget);
    await store.put(KUBERNETES, "prod", "p", kubernetes("p", { ...A, ingress: [] }));
    expect(await store.problems()).toEqual([]);
    expect(await lab.wrongLines(["dev/c -> prod/a tcp/80 deny", "prod/a -> prod/b tcp/80 allow"])).toEqual([]);
    store.write("Gadget.example.org", "prod", "x", null);
  });
}, TEST_DEADLINE_MS);
