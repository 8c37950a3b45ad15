/** Services from manifests to packets: two nodes with real daemons, pods on both, a host outside. */
import { beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { buildBinary } from "../../scripts/build.ts";
import { type Observation, type Probe, Prober } from "../../src/lab/prober.ts";
import type { Party } from "../../src/lab/expectation.ts";
import { Sandbox } from "../../src/lab/sandbox.ts";
import { parseScenario } from "../../src/lab/scenario_parser.ts";
import { addressFamily, type Family, formatAddress, parseAddress } from "../../src/model/address.ts";

let binary = "";
beforeAll(async () => void (binary = await buildBinary()));

const WORLD = `
scenario: services
world:
  families: [4, 6]
  nodes: [ { name: north }, { name: south } ]
  namespaces: { default: {} }
  pods:
    - { name: server, node: north, labels: { app: server }, serves: [tcp/8080, udp/8080] }
    - { name: other, node: south, labels: { app: server }, serves: [tcp/8080, udp/8080] }
    - { name: client, node: north, labels: { app: client } }
  hosts:
    - { name: outside, address: 192.0.2.9, link: eth0, node: north }
steps:
  - expect: default/client -> default/server tcp/8080 allow
`;

const CLUSTER = { 4: "10.96.0.10", 6: "fd96::10" } as const;
const SERVICE = {
  apiVersion: "v1",
  kind: "Service",
  metadata: { name: "web", namespace: "default" },
  spec: {
    type: "NodePort",
    selector: { app: "server" },
    clusterIP: CLUSTER[4],
    clusterIPs: [CLUSTER[4], CLUSTER[6]],
    ipFamilies: ["IPv4", "IPv6"],
    ports: [
      { name: "web", protocol: "TCP", port: 80, targetPort: 8080, nodePort: 30080 },
      { name: "dns", protocol: "UDP", port: 53, targetPort: 8080, nodePort: 30053 },
    ],
  },
};

test(
  "a service answers pods, other nodes and the outside; its pods' policy holds; without endpoints it is refused",
  async () => {
    const directory = mkdtempSync("/tmp/manx-test-");
    try {
      const { world } = parseScenario("services.yaml", WORLD);
      await using sandbox = await Sandbox.open(world, {
        directory,
        self: [binary],
        dataplane: "nftables",
        services: true,
      });
      using prober = new Prober();
      const apply = async (...manifests: unknown[]) =>
        void await sandbox.change(
          "apply",
          manifests.map((one) => JSON.stringify(one)).join("\n---\n"),
          "services.yaml",
        );
      const slices = (backend: string) =>
        ([4, 6] as const).map((family) => ({
          apiVersion: "discovery.k8s.io/v1",
          kind: "EndpointSlice",
          metadata: { name: `web-${family}`, namespace: "default", labels: { "kubernetes.io/service-name": "web" } },
          addressType: `IPv${family}`,
          ports: [{ name: "web", protocol: "TCP", port: 8080 }, { name: "dns", protocol: "UDP", port: 8080 }],
          endpoints: backend === "" ? [] : [{
            addresses: [formatAddress(addressOf({ kind: "pod", id: `default/${backend}` }, family))],
            conditions: { ready: true, serving: true, terminating: false },
            nodeName: backend === "server" ? "north" : "south",
          }],
        }));
      const addressOf = (party: Party, family: Family) =>
        sandbox.addressesOf(party).find((address) => addressFamily(address) === family)!;
      const pod = (name: string): Party => ({ kind: "pod", id: `default/${name}` });
      const outside: Party = { kind: "host", name: "outside" };

      /** What `from` sees of the service at an address and port, where `backend` is to answer. */
      const seen = async (from: Party, to: string, protocol: "tcp" | "udp", port: number, backend: string) => {
        const destination = parseAddress(to), family = addressFamily(destination);
        const probe: Probe = {
          from: sandbox.end(from),
          source: addressOf(from, family),
          to: destination,
          protocol,
          port,
          target: { end: sandbox.end(pod(backend)), address: addressOf(pod(backend), family), port: 8080 },
          expect: "allow",
        };
        return (await prober.run([probe]))[0]!.observed;
      };
      const all = async (from: Party, backend: string, wanted: Observation) => {
        for (const family of [4, 6] as const) {
          expect(await seen(from, CLUSTER[family], "tcp", 80, backend)).toBe(wanted);
          expect(await seen(from, CLUSTER[family], "udp", 53, backend)).toBe(wanted);
        }
      };
      const north = sandbox.nodeAddresses("north").find((address) => address.length === 4)!;

      await apply(SERVICE, ...slices("server"));
      await all(pod("client"), "server", "answered");
      await all(pod("other"), "server", "answered");
      // To itself, by way of the service.
      await all(pod("server"), "server", "answered");
      expect(await seen(outside, formatAddress(north), "tcp", 30080, "server")).toBe("answered");

      await apply(...slices("other"));
      await all(pod("client"), "other", "answered");
      expect(await seen(outside, formatAddress(north), "udp", 30053, "other")).toBe("answered");

      await apply({
        apiVersion: "networking.k8s.io/v1",
        kind: "NetworkPolicy",
        metadata: { name: "tcp-only", namespace: "default" },
        spec: {
          podSelector: { matchLabels: { app: "server" } },
          policyTypes: ["Ingress"],
          ingress: [{
            from: [{ podSelector: { matchLabels: { app: "client" } } }],
            ports: [{ protocol: "TCP", port: 8080 }],
          }],
        },
      });
      expect(await seen(pod("client"), CLUSTER[4], "tcp", 80, "other")).toBe("answered");
      expect(await seen(pod("client"), CLUSTER[4], "udp", 53, "other")).toBe("silent");
      expect(await seen(pod("server"), CLUSTER[6], "tcp", 80, "other")).toBe("silent");

      await apply(...slices(""));
      expect(await seen(pod("client"), CLUSTER[4], "tcp", 80, "other")).toBe("refused");
      expect(await seen(pod("client"), CLUSTER[6], "tcp", 80, "other")).toBe("refused");
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  },
  60_000,
);
