/** Run inside a network namespace of its own: a pod wired by us, then Debian's plugin behind us. Writes one JSON line for each. */
import { renderResult } from "../../../../src/cni/result.ts";
import { SUPPORTED_VERSIONS } from "../../../../src/cni/version.ts";
import { createKernelDoor } from "../../../../src/kernel/door.ts";
import { createNamespace, namespacePath } from "../../../../src/kernel/netns.ts";
import { addressFamily, formatAddress, formatCidr, parseAddress } from "../../../../src/model/address.ts";
import type { Host } from "../../../../src/sdk/plugin.ts";
import { VethWiring } from "../wiring.ts";

const PLUGINS = "/usr/lib/cni";
const run = (command: readonly string[], input: unknown, env: Record<string, string> = {}) => {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], {
    stdin: new TextEncoder().encode(JSON.stringify(input)),
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", ...env },
  });
  return { exitCode, out: stdout.toString(), err: stderr.toString() };
};
const quiet = () => {};
const host = {
  log: { debug: quiet, info: quiet, warn: quiet, error: quiet },
  clock: { nowMs: () => performance.now(), wallMs: () => 0, sleep: (ms: number) => Bun.sleep(ms) },
  kernel: createKernelDoor(),
} as unknown as Host;

await using wiring = new VethWiring({}, host);
const extras = [
  {
    type: "portmap",
    runtimeConfig: { portMappings: [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }] },
    evidence: "iptables-save -t nat | grep 'dport 8080'",
  },
  {
    type: "bandwidth",
    ingressRate: 1_000_000,
    ingressBurst: 2_000_000,
    egressRate: 1_000_000,
    egressBurst: 2_000_000,
    evidence: "tc qdisc show | grep tbf",
  },
];
let number = 0;
// Debian's plugins of this release speak up to 1.0.0.
for (const version of SUPPORTED_VERSIONS.filter((version) => version !== "1.1.0")) {
  for (const { evidence, ...extra } of extras) {
    number++;
    using namespace = createNamespace("pod");
    const attachment = {
      id: `${number}`,
      netns: namespacePath(namespace),
      interfaceName: "eth0",
      hostInterface: `mx${String(number).padStart(11, "0")}`,
      addresses: [`10.0.0.${number}`, `fd00::${number}`].map(parseAddress),
    };
    const observed = await wiring.apply(attachment, "fail");
    const result = renderResult(
      version,
      {
        ...observed,
        addresses: observed.addresses.map((cidr) => {
          const family = cidr.length === 5 ? 4 : 6;
          const gateway = observed.gateways.find((gateway) => addressFamily(gateway) === family)!;
          return { address: formatCidr(cidr), gateway: formatAddress(gateway) };
        }),
        routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
        timing: { leaseMs: 0, wiringMs: 0, policyMs: 0, totalMs: 0 },
      },
      attachment.netns,
      {},
    );
    const config = { cniVersion: version, name: "manx", prevResult: result, ...extra };
    const env = { CNI_CONTAINERID: `c${number}`, CNI_NETNS: attachment.netns, CNI_IFNAME: "eth0", CNI_PATH: PLUGINS };
    const plugin = [`${PLUGINS}/${extra.type}`];
    const added = run(plugin, config, { ...env, CNI_COMMAND: "ADD" });
    const found = run(["sh", "-c", evidence], "").out;
    const deleted = run(plugin, config, { ...env, CNI_COMMAND: "DEL" });
    const { differences } = (await wiring.observe(attachment))!;
    console.log(JSON.stringify({
      version,
      type: extra.type,
      added: added.exitCode === 0 ? JSON.parse(added.out).cniVersion : added.out + added.err,
      effect: found !== "",
      deleted: deleted.exitCode,
      differences,
    }));
    await wiring.remove(attachment.hostInterface);
  }
}
