/** Policy by nftables and services by IPVS, as one dataplane for the suites: what a configuration with both of them comes to. */
import ipvs from "../../dataplanes/ipvs/mod.ts";
import nftables from "../../dataplanes/nftables/mod.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import type { Dataplane, Report } from "../../src/sdk/dataplane.ts";
import { definePlugin } from "../../src/sdk/plugin.ts";
import { backends, frontend } from "../vm/service_node.ts";
import { world } from "./dataplane.ts";

/** `config`: of ipvs. */
export const nftablesWithIpvs = definePlugin({
  api: "1.0",
  kind: "dataplane",
  name: "nftables + ipvs",
  parseConfig: (raw) => ({ policy: nftables.parseConfig({ services: false }), services: ipvs.parseConfig(raw) }),
  async open(config, host, signal): Promise<Dataplane> {
    await using open = new AsyncDisposableStack();
    const policy = open.use(await nftables.open(config.policy, host, signal));
    const services = open.use(await ipvs.open(config.services, host, signal));
    return new Composition(policy, services, open.move());
  },
});

class Composition implements Dataplane {
  readonly capabilities: Dataplane["capabilities"];

  constructor(
    private readonly policy: Dataplane,
    private readonly services: Dataplane,
    private readonly open: AsyncDisposableStack,
  ) {
    const [a, b] = [policy.capabilities, services.capabilities];
    this.capabilities = { ...b, aspects: a.aspects.union(b.aspects), families: a.families.intersection(b.families) };
  }

  private async both(ask: (one: Dataplane) => Promise<Report>): Promise<Report> {
    const [a, b] = [await ask(this.policy), await ask(this.services)];
    return {
      generation: Math.min(a.generation, b.generation),
      converged: a.converged && b.converged,
      messages: a.messages + b.messages,
      problems: [...a.problems, ...b.problems],
    };
  }

  apply(desired: DesiredState): Promise<Report> {
    return this.both((one) => one.apply(desired));
  }

  resync(): Promise<Report> {
    return this.both((one) => one.resync());
  }

  sweep(): Promise<Report> {
    return this.both((one) => one.sweep());
  }

  async diff(): Promise<readonly string[]> {
    return [...await this.policy.diff!(), ...await this.services.diff!()];
  }

  async *drift(signal: AbortSignal): AsyncIterable<string> {
    const readers = [this.policy, this.services].map((one) => one.drift(signal)[Symbol.asyncIterator]());
    const next = async (index: number) => ({ index, result: await readers[index]!.next() });
    const pending = readers.map((_, index) => next(index));
    for (;;) {
      const { index, result } = await Promise.race(pending);
      if (result.done) return;
      pending[index] = next(index);
      yield result.value;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.open.disposeAsync();
  }
}

/** That of all dataplanes, and a service of each kind for it: with servers and without, both families, node ports, sources, two lists. */
export function worldWithServices(pods: number, more?: Parameters<typeof world>[1]): DesiredState {
  const local = backends(["10.0.0.2:8080"]);
  const frontends = [
    ...Array.from(
      { length: pods },
      (_, i) =>
        frontend(`tcp 10.96.0.${i + 1}:80`, backends([`10.0.${i >> 8}.${i & 255}:8080`, "10.0.0.200:8080 draining"])),
    ),
    frontend("udp 10.96.0.1:53", backends(["10.0.0.1:5353", "10.0.0.2:5353"]), { affinitySeconds: 60 }),
    frontend("tcp [fd00:96::1]:80", backends(["[fd00::1]:8080"])),
    frontend("tcp 10.96.0.200:80", backends([])),
    frontend("tcp [fd00:96::c8]:80", backends([], "drop")),
    frontend("tcp 198.51.100.7:443", local, {
      scope: "external",
      outside: backends(["10.0.0.1:8080"]),
      sources: ["192.0.2.0/25"],
    }),
    frontend("tcp :30080", local, { masqueradeOutside: true }),
  ];
  return {
    ...world(pods, more),
    services: {
      frontends: persistentMap(frontends.map((one) => [one.key, one] as const)),
      healthChecks: persistentMap(),
      nodePortAddresses: [],
      podNets: [],
    },
  };
}
