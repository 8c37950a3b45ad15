/**
 * `npm run bench`: Manx beside its peers, in one run on one machine. Prints medians, ratios, and each goal with what was
 * measured. Takes names of sections (the keys of `SECTIONS`); none = all.
 */
import { enterSandbox } from "../test/bench/sandbox.ts";
import type { Goal } from "../test/bench/measure.ts";
import { BINARY, buildBinary } from "./build.ts";
import { ensureDebianPackages } from "./debian.ts";

const SECTIONS: Readonly<Record<string, () => Promise<(binary: string) => Promise<Goal[]>>>> = {
  startup: async () => (await import("../test/bench/startup_bench.ts")).benchStartup,
  cni: async () => (await import("../test/bench/cni_bench.ts")).benchCni,
  sets: async () => (await import("../test/bench/sets_bench.ts")).benchSets,
  iptables: async () => (await import("../test/bench/iptables_bench.ts")).benchIptables,
  calc: async () => (await import("../test/bench/calc_bench.ts")).benchCalc,
  servicesCalc: async () => (await import("../test/bench/services_calc_bench.ts")).benchServicesCalc,
  memory: async () => (await import("../test/bench/memory_bench.ts")).benchMemory,
  services: async () => (await import("../test/bench/services_bench.ts")).benchServices,
  policies: async () => (await import("../test/bench/policies_bench.ts")).benchPolicies,
  "in-force": async () => (await import("../test/bench/in_force_bench.ts")).benchInForce,
};

const asked = process.argv.slice(2);
const unknown = asked.filter((name) => !(name in SECTIONS));
if (unknown.length > 0) {
  console.error(`bench: found ${unknown.join(", ")}, wanted ${Object.keys(SECTIONS).join(", ")}`);
  process.exit(2);
}

await enterSandbox(async () => {
  const missing = ensureDebianPackages(["containernetworking-plugins", "nftables", "iptables", "ipset", "iproute2"]);
  if (missing.length > 0) {
    throw new Error(`these Debian packages are missing and could not be installed: ${missing.join(" ")}`);
  }
  await buildBinary();
});
// The loopback of a new namespace is down, and everything forwards.
Bun.spawnSync({ cmd: ["ip", "link", "set", "lo", "up"] });

const goals: Goal[] = [];
for (const [name, load] of Object.entries(SECTIONS)) {
  if (asked.length > 0 && !asked.includes(name)) continue;
  goals.push(...await (await load())(BINARY));
}

console.log("\nGoals");
for (const goal of goals) {
  console.log(`  ${goal.met ? "✓" : "✗"} ${goal.title}: ${goal.measured} (${goal.wanted})`);
}
process.exit(0);
