import type { Report, Routing } from "../../../src/sdk/dataplane.ts";
import { ConfigError } from "../../../src/sdk/errors.ts";
import { definePlugin } from "../../../src/sdk/plugin.ts";

/** Writes no route. Whoever runs the network, or a node that is alone, has them. */
export default definePlugin({
  api: "1.0",
  kind: "routing",
  name: "none",
  parseConfig(raw): undefined {
    const keys = typeof raw === "object" && raw !== null && !Array.isArray(raw) ? Object.keys(raw) : undefined;
    if (raw === undefined || raw === null || keys?.length === 0) return undefined;
    if (keys !== undefined) throw new ConfigError(keys[0]!, "an unknown key", "no keys: routing none has no settings");
    throw new ConfigError("", Array.isArray(raw) ? "a list" : typeof raw, "nothing: routing none has no settings");
  },
  open: () => Promise.resolve(new NoRouting()),
});

class NoRouting implements Routing {
  #generation = 0;

  /** Nothing of the state is wanted from it, so it is always as wanted. */
  apply(desired: { readonly generation: number }): Promise<Report> {
    this.#generation = desired.generation;
    return this.sweep();
  }
  // deno-lint-ignore require-yield
  async *drift(signal: AbortSignal): AsyncIterable<string> {
    if (signal.aborted) return;
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  }
  sweep(): Promise<Report> {
    return Promise.resolve({ generation: this.#generation, converged: true, messages: 0, problems: [] });
  }
  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}
