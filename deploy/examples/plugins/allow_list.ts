/**
 * A plugin of one's own, complete: a policy dialect with a single kind.
 *
 *     apiVersion: example.org/v1
 *     kind: AllowList
 *     metadata: { name: office, namespace: default }
 *     spec: { labels: { app: web }, from: [10.1.0.0/16, 192.0.2.7/32], ports: [80, 443] }
 *
 * The pods of the namespace with those labels accept TCP to those ports from those IPv4 prefixes, and nothing else.
 * With it in `policy:` (deploy/manx.yaml), `manx apply`, `manx get allowlists` and `manx status` know the kind.
 *
 * A plugin is one file and needs no imports: the host hands it everything, and looks at what it gives back by its shape.
 * To develop with types, `import type { Plugin } from ".../src/sdk/plugin.ts"`: type imports are gone at run time.
 */

interface Resource {
  readonly metadata: { readonly name: string; readonly namespace?: string };
  readonly spec?: unknown;
}

/** What the pod's endpoint carries its namespace as. */
const NAMESPACE_LABEL = "projectcalico.org/namespace";
const TCP = 6;

const kind = {
  kind: "AllowList.example.org",
  name: "AllowList",
  plural: "allowlists",
  shortNames: ["al"],
  apiVersions: ["example.org/v1"],
  namespaced: true,
};

/** A prefix as the model has it: its 4 bytes as characters, host bits zero, then its length; undefined for anything else. */
function packPrefix(text: unknown): string | undefined {
  const match = typeof text === "string" ? /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\/(\d{1,2})$/.exec(text) : null;
  if (match === null) return undefined;
  const [a, b, c, d, length] = match.slice(1).map(Number) as [number, number, number, number, number];
  if ([a, b, c, d].some((byte) => byte > 255) || length > 32) return undefined;
  const value = (a << 24 | b << 16 | c << 8 | d) >>> 0;
  if (length < 32 && (value << length >>> 0) !== 0) return undefined;
  return String.fromCharCode(a, b, c, d, length);
}

/** Everything that is wrong, by field; `rules` is what is left to allow. */
function read(resource: Resource) {
  const faults: { path: string; message: string }[] = [];
  const fault = (path: string, found: unknown, wanted: string) => {
    faults.push({ path, message: `found ${JSON.stringify(found) ?? "nothing"}, wanted ${wanted}` });
  };
  const spec = (typeof resource.spec === "object" && resource.spec !== null ? resource.spec : {}) as Record<
    string,
    unknown
  >;
  for (const key of Object.keys(spec)) {
    if (!["labels", "from", "ports"].includes(key)) fault(`spec.${key}`, spec[key], "one of labels, from, ports");
  }
  const labels = Object.entries(typeof spec.labels === "object" && spec.labels !== null ? spec.labels : {});
  for (const [label, value] of labels) if (typeof value !== "string") fault(`spec.labels.${label}`, value, "text");
  const from = Array.isArray(spec.from) ? spec.from : [];
  if (from.length === 0) fault("spec.from", spec.from, "a list of IPv4 prefixes");
  const nets = from.map((text, i) => {
    const packed = packPrefix(text);
    if (packed === undefined) fault(`spec.from[${i}]`, text, "an IPv4 prefix without host bits, such as 10.1.0.0/16");
    return packed;
  });
  const ports = Array.isArray(spec.ports) ? spec.ports : [];
  if (ports.length === 0) fault("spec.ports", spec.ports, "a list of ports");
  for (const [i, port] of ports.entries()) {
    if (!Number.isInteger(port) || port < 1 || port > 65535) fault(`spec.ports[${i}]`, port, "1 to 65535");
  }
  return { faults, labels: labels.filter(([, value]) => typeof value === "string"), nets, ports };
}

const source = {
  kinds: [kind],

  validate(resource: Resource) {
    return read(resource).faults.map((fault) => ({ subject: keyOf(resource), ...fault, effect: "refused" }));
  },

  /** Never throws. What cannot be read allows nothing: the pods it names are closed until it is mended. */
  translate(resource: Resource) {
    const { faults, labels, nets, ports } = read(resource);
    const { kind, namespace, name } = keyOf(resource);
    const id = `${kind}/${namespace}/${name}`;
    const allow = {
      action: "allow",
      family: 4,
      protocol: TCP,
      source: { nets },
      destination: { ports: ports.map((port) => ({ first: port, last: port })) },
      origin: { policy: id, direction: "ingress", index: 0 },
    };
    const policy = {
      kind: "policy",
      id,
      tier: "default",
      order: 1000,
      sortName: name,
      selects: {
        op: "and",
        of: [
          { op: "eq", label: NAMESPACE_LABEL, value: namespace },
          ...labels.map(([label, value]) => ({ op: "eq", label, value })),
        ],
      },
      stage: "normal",
      staged: false,
      ingress: faults.length === 0 ? [allow] : [],
    };
    const problems = faults.map((fault) => ({ subject: keyOf(resource), ...fault, effect: "fail-closed" }));
    return { objects: [policy], problems };
  },
};

const keyOf = (resource: Resource) => ({
  kind: kind.kind,
  namespace: resource.metadata.namespace ?? "default",
  name: resource.metadata.name,
});

export default {
  api: "1.0",
  kind: "policy",
  name: "allow-list",
  /** The `config` of its slot. It takes none; a plugin with settings checks them here and throws an Error with a `path`. */
  parseConfig(raw: unknown) {
    if (raw !== undefined) throw Object.assign(new Error("found settings, wanted none"), { path: "" });
  },
  open: () => Promise.resolve(source),
};
