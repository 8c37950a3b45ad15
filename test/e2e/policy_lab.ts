/**
 * A sandbox with real daemons that many cases share: what a case applies is taken away again before the next one, and what it
 * says of who reaches whom is tried with real packets.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { BINARY, buildBinary } from "../../scripts/build.ts";
import type { ResourceOutcome } from "../../src/api/protocol.ts";
import { inNamespace } from "../../src/kernel/netns.ts";
import type { Expectation, Party, ProbeProtocol } from "../../src/lab/expectation.ts";
import { parseExpectation } from "../../src/lab/expectation.ts";
import { type Probe, Prober, type ProbeResult } from "../../src/lab/prober.ts";
import { Sandbox } from "../../src/lab/sandbox.ts";
import type { ScenarioPod, ScenarioWorld } from "../../src/lab/scenario.ts";
import { parseWorld } from "../../src/lab/scenario_parser.ts";
import { addressFamily, type Family, formatAddress } from "../../src/model/address.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";

/** A resource as manifests have it. */
export interface Manifest {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace?: string; readonly labels?: Record<string, string> };
  readonly [field: string]: unknown;
}

/** Who is to reach whom, in which families. */
export interface Question {
  readonly from: Party;
  readonly to: Party;
  readonly families: readonly Family[];
  readonly protocol: ProbeProtocol;
  /** 0 for icmp and icmpv6. */
  readonly port: number;
  readonly allow: boolean;
}

export class PolicyLab implements AsyncDisposable {
  readonly sandbox: Sandbox;
  /** Of its daemons: their datastore is `datastore.db`. */
  readonly directory: string;
  readonly #applied = new Map<string, Manifest>();
  #prober = new Prober();

  private constructor(sandbox: Sandbox, directory: string) {
    this.sandbox = sandbox;
    this.directory = directory;
  }

  /** `world`: what stands under `world:` in a scenario file, or made by hand. Builds the binary first. */
  static async open(world: ScenarioWorld | string, dataplane = "nftables"): Promise<PolicyLab> {
    await buildBinary();
    const directory = mkdtempSync("/tmp/manx-test-");
    try {
      const options = { directory, self: [BINARY], dataplane };
      const sandbox = await Sandbox.open(typeof world === "string" ? parseWorld("world", world) : world, options);
      return new PolicyLab(sandbox, directory);
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  /** In force on every node on return; gone again with the next `reset`. @throws {ManxError} where it is refused */
  async apply(manifests: readonly Manifest[]): Promise<readonly ResourceOutcome[]> {
    if (manifests.length === 0) return [];
    const { results } = await this.sandbox.change("apply", textOf(manifests), "case.json");
    for (const manifest of manifests) this.#applied.set(keyOf(manifest), manifest);
    return results;
  }

  async delete(manifests: readonly Manifest[]): Promise<void> {
    if (manifests.length === 0) return;
    await this.sandbox.change("delete", textOf(manifests), "case.json");
    for (const manifest of manifests) this.#applied.delete(keyOf(manifest));
  }

  /** Deletes what was applied since the last time, then applies `restored`. */
  async reset(restored: readonly Manifest[] = []): Promise<void> {
    const kept = new Set(restored.map(keyOf));
    await this.delete([...this.#applied.values()].filter((manifest) => !kept.has(keyOf(manifest))));
    await this.apply(restored);
    this.#applied.clear();
  }

  /** What of `questions` is not so, a line each; allowed ones must be answered at the first attempt. */
  async wrong(questions: readonly Question[]): Promise<readonly string[]> {
    return await this.#judge(questions.flatMap((question) => this.sandbox.probes(expectationOf(question))));
  }

  /** The same for lines of a scenario file, `SOURCE -> TARGET PROTOCOL[/PORT] allow|deny`. */
  async wrongLines(lines: readonly string[]): Promise<readonly string[]> {
    const { world } = this.sandbox;
    return await this.#judge(
      lines.flatMap((line, index) => this.sandbox.probes(parseExpectation(line.trim(), world, index + 1))),
    );
  }

  /** Attaches `pods`, known everywhere on return, for as long as `stack` stands. @throws {ManxError} */
  async attach(pods: readonly ScenarioPod[], stack: AsyncDisposableStack): Promise<void> {
    for (const pod of pods) {
      await this.sandbox.attach(pod);
      stack.defer(() => this.#end(pod));
    }
    await this.sandbox.settled();
    // Sockets of pods that are no more.
    this.#prober[Symbol.dispose]();
    this.#prober = new Prober();
  }

  /** What a command says inside a node. @throws {Error} where it fails */
  inNode(node: string, cmd: readonly string[]): string {
    return output(this.sandbox.nodes.get(node)!.namespace, cmd);
  }

  /** Of a pod, as text. */
  addressOf(pod: string, family: Family = 4): string {
    return formatAddress(this.sandbox.podAddresses(pod).find((address) => addressFamily(address) === family)!);
  }

  /** Its namespace goes with it, as a runtime has it. */
  async #end(pod: ScenarioPod): Promise<void> {
    await this.sandbox.detach(pod);
    this.sandbox.pods.get(pod.id)![Symbol.dispose]();
    this.sandbox.pods.delete(pod.id);
  }

  async #judge(probes: readonly Probe[]): Promise<readonly string[]> {
    if (probes.length === 0) throw new Error("nothing is tried");
    return (await this.#prober.run(probes)).filter(({ holds, attempts, probe }) =>
      !holds || (probe.expect === "allow" && attempts > 1)
    ).map(complaint);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#prober[Symbol.dispose]();
    await this.sandbox[Symbol.asyncDispose]();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** What a command says inside a namespace. @throws {Error} where it fails */
export function output(namespace: NetworkNamespace, cmd: readonly string[]): string {
  const run = inNamespace(namespace, () => Bun.spawnSync({ cmd: [...cmd] }));
  if (!run.success) throw new Error(`${cmd.join(" ")}: ${run.stderr.toString()}`);
  return run.stdout.toString();
}

function expectationOf({ from, to, families, protocol, port, allow }: Question): Expectation {
  const pairs = [{ from, to, families }];
  return { text: "", line: 0, source: "", target: "", protocol, port, allow, pairs };
}

const complaint = ({ probe, observed, attempts, detail }: ProbeResult): string =>
  `${probe.from.name} -> ${probe.target.end.name} ${probe.protocol}/${probe.port} IPv${addressFamily(probe.to)}: ` +
  `${observed} at attempt ${attempts}, wanted ${probe.expect}${detail === "" ? "" : ` (${detail})`}`;

const keyOf = ({ apiVersion, kind, metadata }: Manifest): string =>
  `${apiVersion} ${kind} ${metadata.namespace ?? ""} ${metadata.name}`;

const textOf = (manifests: readonly Manifest[]): string =>
  manifests.map((manifest) => JSON.stringify(manifest)).join("\n---\n");
