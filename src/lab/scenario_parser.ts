/** Reads scenario files. Pure: text in, a checked value or every problem of the file out. */
import { parseAllDocuments } from "yaml";
import { type Address, addressFamily, cidrContains, type Family, parseAddress } from "../model/address.ts";
import { NODE_ADDRESSES, POOLS } from "./address_plan.ts";
import { type Expectation, parseExpectation, parseService, PartySyntaxError, type Service } from "./expectation.ts";
import {
  type Dnat,
  type Labels,
  type Manifest,
  PLACEHOLDER,
  readPlaceholder,
  type Scenario,
  ScenarioError,
  type ScenarioHost,
  type ScenarioNode,
  type ScenarioPod,
  type ScenarioWorld,
  type Step,
} from "./scenario.ts";
import { type Field, YamlReader } from "./yaml_reader.ts";

export const MAX_NODES = 64;
export const MAX_PODS = 1_000;
export const MAX_HOSTS = 250;

const DEFAULT_NODE = "kube-01";
const NAME = /^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$/;
const LINK = /^[a-z][a-z0-9._-]{0,14}$/;

/** @throws {ScenarioError} with everything that is wrong with `text` */
export function parseScenario(file: string, text: string): Scenario {
  const reader = new YamlReader(file, text);
  const scenario = reader.problems.length === 0 ? new ScenarioParser(reader).parse() : undefined;
  if (reader.problems.length > 0 || scenario === undefined) throw new ScenarioError(reader.problems);
  return scenario;
}

/** What stands under `world:`, by itself: for those who take steps of their own. @throws {ScenarioError} */
export function parseWorld(file: string, text: string): ScenarioWorld {
  const reader = new YamlReader(file, text);
  const world = reader.problems.length === 0 ? new ScenarioParser(reader).world(reader.root) : undefined;
  if (reader.problems.length > 0 || world === undefined) throw new ScenarioError(reader.problems);
  return world;
}

class ScenarioParser {
  readonly #reader: YamlReader;
  constructor(reader: YamlReader) {
    this.#reader = reader;
  }

  parse(): Scenario | undefined {
    const reader = this.#reader;
    const fields = reader.mapping(reader.root, ["scenario", "world", "steps"]);
    if (fields === undefined) return undefined;
    const title = this.#required(fields, reader.root, "scenario", "one line of text");
    const world = this.world(fields.get("world"));
    const stepsField = fields.get("steps");
    if (stepsField === undefined) reader.refuse(reader.root, 'no field "steps"', "a list of steps");
    const stepFields = stepsField === undefined ? [] : reader.sequence(stepsField);
    const steps = stepFields.flatMap((field, index) => this.#step(field, index, world));
    if (stepsField !== undefined && stepFields.length > 0 && steps.every((step) => step.expect.length === 0)) {
      if (reader.problems.length === 0) {
        reader.refuse(stepsField, "no expectation in any step", "at least one, or nothing is tried");
      }
    } else if (stepsField !== undefined && stepFields.length === 0) {
      reader.refuse(stepsField, "no steps", "at least one");
    }
    return { file: reader.file, title: title ?? "", world, steps };
  }

  world(field: Field | undefined): ScenarioWorld {
    const reader = this.#reader;
    const fields = field === undefined
      ? undefined
      : reader.mapping(field, ["families", "nodes", "namespaces", "pods", "hosts", "dnat"]);
    const families = this.#families(fields?.get("families"));
    const nodes = this.#nodes(fields?.get("nodes"));
    const namespaces = this.#namespaces(fields?.get("namespaces"));
    const pods = this.#pods(fields?.get("pods"), nodes, namespaces);
    const hosts = this.#hosts(fields?.get("hosts"), nodes, pods, families);
    const dnat = this.#dnat(fields?.get("dnat"), nodes, pods);
    return { families, nodes, namespaces, pods, hosts, dnat };
  }

  #families(field: Field | undefined): readonly Family[] {
    if (field === undefined) return [4, 6];
    const reader = this.#reader;
    const families = reader.sequence(field).flatMap((item): Family[] => {
      const family = reader.integer(item, "4 or 6");
      if (family === 4 || family === 6) return [family];
      if (family !== undefined) reader.refuse(item, String(family), "4 or 6");
      return [];
    });
    if (families.length === 0 && reader.problems.length === 0) reader.refuse(field, "no family", "4, 6 or both");
    return [...new Set(families)].sort();
  }

  #nodes(field: Field | undefined): readonly ScenarioNode[] {
    const reader = this.#reader;
    if (field === undefined) return [{ name: DEFAULT_NODE, serves: [] }];
    const items = reader.sequence(field);
    const nodes: ScenarioNode[] = [];
    for (const item of items) {
      const fields = reader.mapping(item, ["name", "serves"]);
      const name = fields && this.#name(fields, item, "name");
      if (fields === undefined || name === undefined) continue;
      if (nodes.some((node) => node.name === name)) {
        reader.refuse(fields.get("name")!, `"${name}" again`, "a name used once");
      }
      nodes.push({ name, serves: this.#serves(fields.get("serves")) });
    }
    if (items.length === 0) reader.refuse(field, "no nodes", "at least one, or no such field for one node");
    if (nodes.length > MAX_NODES) reader.refuse(field, `${nodes.length} nodes`, `at most ${MAX_NODES}`);
    return nodes.length > 0 ? nodes : [{ name: DEFAULT_NODE, serves: [] }];
  }

  #namespaces(field: Field | undefined): ReadonlyMap<string, Labels> {
    const reader = this.#reader;
    const namespaces = new Map<string, Labels>([["default", {}]]);
    if (field === undefined) return namespaces;
    for (const [name, value] of reader.entries(field) ?? []) {
      if (!NAME.test(name)) reader.refuse(value, `the namespace name "${name}"`, "lower-case letters, digits and -");
      const fields = reader.isEmpty(value) ? undefined : reader.mapping(value, ["labels"]);
      namespaces.set(name, this.#labels(fields?.get("labels")));
    }
    return namespaces;
  }

  #pods(
    field: Field | undefined,
    nodes: readonly ScenarioNode[],
    namespaces: ReadonlyMap<string, Labels>,
  ): readonly ScenarioPod[] {
    const reader = this.#reader;
    if (field === undefined) return [];
    const pods: ScenarioPod[] = [];
    const known = ["name", "namespace", "node", "labels", "serviceAccount", "serves"];
    for (const item of reader.sequence(field)) {
      const fields = reader.mapping(item, known);
      const name = fields && this.#name(fields, item, "name");
      if (fields === undefined || name === undefined) continue;
      const namespace = this.#optionalName(fields, "namespace") ?? "default";
      if (!namespaces.has(namespace)) {
        reader.refuse(
          fields.get("namespace")!,
          `the namespace "${namespace}"`,
          `one of ${[...namespaces.keys()].join(", ")}`,
        );
      }
      const id = `${namespace}/${name}`;
      if (pods.some((pod) => pod.id === id)) {
        reader.refuse(fields.get("name")!, `the pod ${id} again`, "a name used once");
      }
      const serviceAccount = this.#optionalName(fields, "serviceAccount");
      pods.push({
        id,
        namespace,
        name,
        node: this.#nodeName(fields.get("node"), nodes),
        labels: this.#labels(fields.get("labels")),
        ...(serviceAccount === undefined ? {} : { serviceAccount }),
        serves: this.#serves(fields.get("serves")),
      });
    }
    if (pods.length > MAX_PODS) reader.refuse(field, `${pods.length} pods`, `at most ${MAX_PODS}`);
    return pods;
  }

  #hosts(
    field: Field | undefined,
    nodes: readonly ScenarioNode[],
    pods: readonly ScenarioPod[],
    families: readonly Family[],
  ): readonly ScenarioHost[] {
    const reader = this.#reader;
    if (field === undefined) return [];
    const hosts: ScenarioHost[] = [];
    for (const [index, item] of reader.sequence(field).entries()) {
      const fields = reader.mapping(item, ["name", "address", "link", "node", "serves"]);
      const name = fields && this.#name(fields, item, "name");
      if (fields === undefined || name === undefined) continue;
      if (hosts.some((host) => host.name === name)) {
        reader.refuse(fields.get("name")!, `"${name}" again`, "a name used once");
      }
      if (pods.some((pod) => pod.id === `default/${name}`)) {
        reader.refuse(
          fields.get("name")!,
          `"${name}", which is also a pod of the namespace default`,
          "a name that no such pod has",
        );
      }
      const address = this.#hostAddress(fields, item, nodes, families);
      const twin = hosts.find((host) => host.address === address);
      if (twin !== undefined) {
        reader.refuse(fields.get("address")!, `the address of ${twin.name}`, "an address used once");
      }
      const node = this.#nodeName(fields.get("node"), nodes);
      const link = this.#link(fields.get("link")) ?? `h${index}`;
      if (address !== undefined) hosts.push({ name, address, link, node, serves: this.#serves(fields.get("serves")) });
    }
    if (hosts.length > MAX_HOSTS) reader.refuse(field, `${hosts.length} hosts`, `at most ${MAX_HOSTS}`);
    return hosts;
  }

  #hostAddress(
    fields: ReadonlyMap<string, Field>,
    item: Field,
    nodes: readonly ScenarioNode[],
    families: readonly Family[],
  ): Address | undefined {
    const reader = this.#reader;
    const text = this.#required(fields, item, "address", "an IPv4 or IPv6 address");
    if (text === undefined) return undefined;
    const field = fields.get("address")!;
    let address: Address;
    try {
      address = parseAddress(text);
    } catch {
      reader.refuse(field, JSON.stringify(text), "an IPv4 or IPv6 address");
      return undefined;
    }
    const family = addressFamily(address);
    if (!families.includes(family)) {
      reader.refuse(
        field,
        text,
        `an address of world.families, ${families.map((f) => `IPv${f}`).join(" or ")}`,
      );
    }
    const pool = POOLS.find(({ cidr }) => cidrContains(cidr, address));
    if (pool !== undefined) {
      reader.refuse(field, `${text}, which lies in the pods' pool ${pool.text}`, "an address outside it");
    }
    const taken = nodes.findIndex((_, index) => NODE_ADDRESSES[family].node(index) === address);
    if (taken >= 0 || cidrContains(NODE_ADDRESSES[family].links, address)) {
      reader.refuse(
        field,
        `${text}, which the lab gives to ${taken >= 0 ? nodes[taken]!.name : "the nodes' links"}`,
        "another address",
      );
    }
    return address;
  }

  #link(field: Field | undefined): string | undefined {
    if (field === undefined) return undefined;
    const link = this.#reader.text(field, "an interface name");
    if (link === undefined) return undefined;
    if (!LINK.test(link) || link === "lo" || link.startsWith("mx")) {
      this.#reader.refuse(
        field,
        JSON.stringify(link),
        "an interface name of at most 15 characters, not lo and not mx…",
      );
      return undefined;
    }
    return link;
  }

  #dnat(field: Field | undefined, nodes: readonly ScenarioNode[], pods: readonly ScenarioPod[]): readonly Dnat[] {
    const reader = this.#reader;
    if (field === undefined) return [];
    const entries: Dnat[] = [];
    for (const item of reader.sequence(field)) {
      const fields = reader.mapping(item, ["node", "port", "to", "toPort"]);
      if (fields === undefined) continue;
      const node = this.#nodeName(fields.get("node"), nodes);
      const service = this.#service(this.#field(fields, item, "port", "tcp/6379"));
      const toField = this.#field(fields, item, "to", "a pod");
      const to = toField && reader.text(toField, "a pod");
      const pod = pods.find((pod) => pod.id === to || pod.id === `default/${to}`);
      if (to !== undefined && pod === undefined) reader.refuse(toField!, `"${to}"`, "a pod of world.pods");
      const portField = this.#field(fields, item, "toPort", "a port");
      const toPort = portField && reader.integer(portField, "a port from 1 to 65535");
      if (toPort !== undefined && (toPort < 1 || toPort > 65535)) {
        reader.refuse(portField!, String(toPort), "a port from 1 to 65535");
      }
      if (service === undefined || pod === undefined || toPort === undefined) continue;
      const { protocol, port } = service;
      if (protocol === "sctp") reader.refuse(fields.get("port")!, "sctp", "tcp or udp");
      if (service.name !== undefined) {
        reader.refuse(fields.get("port")!, `the name ${service.name}`, "tcp/PORT or udp/PORT alone");
      }
      if (!pod.serves.some((served) => served.protocol === protocol && served.port === toPort)) {
        reader.refuse(portField!, `${protocol}/${toPort}, which ${pod.id} does not serve`, listServices(pod.serves));
      }
      if (entries.some((entry) => entry.node === node && entry.protocol === protocol && entry.port === port)) {
        reader.refuse(fields.get("port")!, `${protocol}/${port} of ${node} again`, "one entry for each port of a node");
      }
      entries.push({ node, protocol, port, to: pod.id, toPort });
    }
    return entries;
  }

  #step(field: Field, index: number, world: ScenarioWorld): readonly Step[] {
    const reader = this.#reader;
    const fields = reader.mapping(field, ["name", "apply", "delete", "expect"]);
    if (fields === undefined) return [];
    const name = fields.has("name") ? reader.text(fields.get("name")!, "one line of text") ?? "" : `step ${index + 1}`;
    if (fields.has("apply") && fields.has("delete")) {
      reader.refuse(fields.get("delete")!, "apply and delete in one step", "one of them; make two steps");
    }
    const verb = fields.has("apply") ? "apply" : "delete";
    const manifest = this.#manifest(fields.get(verb), world);
    const expectField = fields.get("expect");
    return [{
      name,
      line: field.line,
      ...(manifest === undefined ? {} : { action: { verb, manifest } }),
      expect: expectField === undefined ? [] : this.#expectations(expectField, world),
    }];
  }

  #manifest(field: Field | undefined, world: ScenarioWorld): Manifest | undefined {
    if (field === undefined) return undefined;
    const reader = this.#reader;
    const text = reader.text(field, "manifests as a block of text, `|`");
    if (text === undefined) return undefined;
    for (const [index, line] of text.split("\n").entries()) {
      for (const [whole, inner] of line.matchAll(PLACEHOLDER)) {
        const at = reader.lineWithin(field, index);
        const reference = readPlaceholder(inner!);
        if (reference === undefined) {
          reader.refuse(field, whole, "${ip:NAME}, ${ip4:NAME} or ${ip6:NAME}", at);
        } else if (!placeholderKnown(reference.name, reference.family, world)) {
          reader.refuse(field, whole, "the name of a pod, a host or node:NAME with such an address", at);
        }
      }
    }
    // Syntax alone: fields and kinds are the daemon's to judge.
    const filled = text.replace(PLACEHOLDER, "192.0.2.1");
    for (const document of parseAllDocuments(filled, { prettyErrors: false })) {
      for (const error of document.errors) {
        const line = filled.slice(0, error.pos[0]).split("\n").length - 1;
        reader.problems.push(`${reader.file}:${reader.lineWithin(field, line)}: ${field.path}: ${error.message}`);
      }
    }
    return { text, line: reader.lineWithin(field, 0) };
  }

  #expectations(field: Field, world: ScenarioWorld): readonly Expectation[] {
    const reader = this.#reader;
    const text = reader.text(field, "lines SOURCE -> TARGET PROTOCOL[/PORT] allow|deny");
    if (text === undefined) return [];
    return text.split("\n").flatMap((raw, index) => {
      const written = raw.replace(/(^|\s)#.*$/, "").trim();
      if (written === "") return [];
      try {
        return [parseExpectation(written, world, reader.lineWithin(field, index))];
      } catch (error) {
        if (!(error instanceof PartySyntaxError)) throw error;
        reader.refuse(field, error.found, error.wanted, reader.lineWithin(field, index));
        return [];
      }
    });
  }

  #serves(field: Field | undefined): readonly Service[] {
    if (field === undefined) return [];
    const services: Service[] = [];
    for (const item of this.#reader.sequence(field)) {
      const service = this.#service(item);
      if (service === undefined) continue;
      if (services.some((other) => other.protocol === service.protocol && other.port === service.port)) {
        this.#reader.refuse(item, `${service.protocol}/${service.port} again`, "each port once");
      }
      services.push(service);
    }
    return services;
  }

  #service(field: Field | undefined): Service | undefined {
    const text = field && this.#reader.text(field, "tcp/PORT, udp/PORT or sctp/PORT");
    if (field === undefined || text === undefined) return undefined;
    const service = parseService(text);
    if (service === undefined) {
      this.#reader.refuse(field, JSON.stringify(text), "tcp/PORT, udp/PORT or sctp/PORT, with =NAME to name it");
    }
    return service;
  }

  #labels(field: Field | undefined): Labels {
    if (field === undefined || this.#reader.isEmpty(field)) return {};
    const labels: Record<string, string> = {};
    for (const [key, value] of this.#reader.entries(field) ?? []) {
      const text = this.#reader.text(value, "text (quote numbers and booleans)");
      if (text !== undefined) labels[key] = text;
    }
    return labels;
  }

  /** The first node where absent or `first`. */
  #nodeName(field: Field | undefined, nodes: readonly ScenarioNode[]): string {
    const first = nodes[0]!.name;
    const name = field && this.#reader.text(field, "a node's name");
    if (name === undefined || nodes.some((node) => node.name === name)) return name ?? first;
    if (name !== "first") {
      this.#reader.refuse(
        field!,
        `the node "${name}"`,
        `one of ${nodes.map((node) => node.name).join(", ")}`,
      );
    }
    return first;
  }

  #field(fields: ReadonlyMap<string, Field>, parent: Field, key: string, wanted: string): Field | undefined {
    const field = fields.get(key);
    if (field === undefined) this.#reader.refuse(parent, `no field "${key}"`, wanted);
    return field;
  }

  #required(fields: ReadonlyMap<string, Field>, parent: Field, key: string, wanted: string): string | undefined {
    const field = this.#field(fields, parent, key, wanted);
    return field && this.#reader.text(field, wanted);
  }

  #name(fields: ReadonlyMap<string, Field>, parent: Field, key: string): string | undefined {
    const name = this.#required(fields, parent, key, "a name");
    if (name === undefined || NAME.test(name)) return name;
    this.#reader.refuse(fields.get(key)!, JSON.stringify(name), "a name of lower-case letters, digits, - and .");
    return undefined;
  }

  #optionalName(fields: ReadonlyMap<string, Field>, key: string): string | undefined {
    return fields.has(key) ? this.#name(fields, fields.get(key)!, key) : undefined;
  }
}

function placeholderKnown(name: string, family: Family | undefined, world: ScenarioWorld): boolean {
  const host = world.hosts.find((host) => host.name === name);
  if (host !== undefined) return family === undefined || addressFamily(host.address) === family;
  if (family !== undefined && !world.families.includes(family)) return false;
  return name.startsWith("node:")
    ? world.nodes.some((node) => `node:${node.name}` === name)
    : world.pods.some((pod) => pod.id === name || pod.id === `default/${name}`);
}

const listServices = (services: readonly Service[]): string =>
  services.length === 0
    ? "a port that it serves; it serves none"
    : `one of ${services.map(({ protocol, port }) => `${protocol}/${port}`).join(", ")}`;
