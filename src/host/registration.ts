/** The node as the datastore has it. */
import { type Address, formatAddress } from "../model/address.ts";
import type { Datastore } from "../sdk/datastore.ts";
import { explainError } from "../sdk/errors.ts";
import type { Log } from "../sdk/plugin.ts";
import { systemClock } from "./clock.ts";
import type { Config } from "./config.ts";
import { registerNode } from "./node.ts";
import { aborted, persist } from "./persist.ts";

/** The Node resource and the addresses it should have. */
export interface Registration {
  readonly addresses: readonly Address[];
  /** The links changed: the addresses may have. */
  look(): void;
  /** Writes the Node, and again whenever the addresses change. Never rejects. */
  keep(signal: AbortSignal): Promise<void>;
}

export function createRegistration(
  { config, datastore, log }: { readonly config: Config; readonly datastore: Datastore; readonly log: Log },
  initial: readonly Address[],
  find: () => readonly Address[],
): Registration {
  let addresses = initial;
  let wake = () => {};
  return {
    get addresses() {
      return addresses;
    },
    look() {
      try {
        const found = find();
        if (found.join() === addresses.join()) return;
        addresses = found;
        wake();
      } catch (error) {
        log.warn("node addresses cannot be read", { error: explainError(error) });
      }
    },
    async keep(signal) {
      while (!signal.aborted) {
        const changed = new Promise<void>((resolve) => wake = resolve);
        await persist("register the node", log, signal, async () => {
          const outcome = await registerNode(datastore, config.node, addresses, systemClock, signal);
          if (outcome !== "unchanged") {
            log.info(`node ${outcome}`, { node: config.node, addresses: addresses.map(formatAddress).join(" ") });
          }
        });
        await Promise.race([changed, aborted(signal)]);
      }
    },
  };
}
