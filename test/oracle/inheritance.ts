/** Labels that endpoints and network sets have beyond their own: from namespace, service account and profiles. */
import { labelsOf, specOf } from "./core_objects.ts";
import type { Group, Resource } from "./holder.ts";
import { readLabels } from "./manifest.ts";
import type { Labels } from "./selector.ts";

/** By this label selectors find a namespace, a service account or a network set by its name. */
const NAME_LABEL = "projectcalico.org/name";

/** What something is made of, as far as labels go. */
export interface Origin {
  readonly own: Labels;
  readonly namespace?: Group;
  readonly serviceAccount?: Group;
  /** Of workloads. */
  readonly orchestrator?: string;
  /** Of network sets. */
  readonly name?: string;
  /** In order. */
  readonly profiles: readonly string[];
}

export interface Inheritance {
  /** A namespace without an object is one all the same. */
  namespace(name: string): Group;
  serviceAccount(namespace: string, name: string): Group;
  labels(origin: Origin): Labels;
}

export function readInheritance(resources: readonly Resource[]): Inheritance {
  const of = (kind: string) => resources.filter(({ identity }) => identity.kind === kind);
  const namespaces = new Map(of("Namespace").map((resource) => [resource.identity.name, labelsOf(resource)]));
  const accounts = new Map(
    of("ServiceAccount").map((resource) => {
      const { namespace, name } = resource.identity;
      return [`${namespace}/${name}`, labelsOf(resource)] as const;
    }),
  );
  const profiles = new Map(
    of("Profile").map((resource) => {
      const { name, where } = resource.identity;
      return [name, readLabels(specOf(resource).labelsToApply, `${where}: spec.labelsToApply`)] as const;
    }),
  );
  return {
    namespace: (name) => ({
      name,
      // The API server puts its name on every namespace.
      labels: overlay(namespaces.get(name), [[NAME_LABEL, name], ["kubernetes.io/metadata.name", name]]),
    }),
    serviceAccount: (namespace, name) => ({
      name,
      labels: overlay(accounts.get(`${namespace}/${name}`), [[NAME_LABEL, name]]),
    }),
    labels: ({ own, namespace, serviceAccount, orchestrator, name, profiles: named }) =>
      overlay(
        // Of two profiles the first one's labels hold, and its own go before all that is inherited.
        ...named.toReversed().map((profile) => writable(profiles.get(profile) ?? new Map())),
        writable(own),
        prefixed("pcsa.", serviceAccount),
        prefixed("pcns.", namespace),
        one("projectcalico.org/namespace", namespace?.name),
        one("projectcalico.org/serviceaccount", serviceAccount?.name),
        one("projectcalico.org/orchestrator", orchestrator),
        one(NAME_LABEL, name),
      ),
  };
}

/**
 * Without the labels that say what something is, where it lives and as whom it runs: they are facts, not its owner's to
 * write, or else whoever may label a pod could give itself the namespace that a policy trusts.
 */
function writable(labels: Labels): Labels {
  const facts = /^(pcns\.|pcsa\.|projectcalico\.org\/(namespace|name|serviceaccount|orchestrator)$)/;
  return new Map([...labels].filter(([label]) => !facts.test(label)));
}

/** Label maps one over the other: of two values the later map's wins. */
function overlay(...maps: readonly (Iterable<readonly [string, string]> | undefined)[]): Labels {
  return new Map(maps.flatMap((map) => map === undefined ? [] : [...map]));
}

function prefixed(prefix: string, group: Group | undefined): Labels {
  return new Map([...group?.labels ?? []].map(([label, value]) => [prefix + label, value]));
}

const one = (label: string, value: string | undefined): Labels => new Map(value === undefined ? [] : [[label, value]]);
