import { type ExplainReply, type ExplainRequest, PATHS } from "../api/protocol.ts";
import { call, CommandError } from "./client.ts";
import { renderExplainReply } from "./explain_text.ts";
import { readManifests } from "./manifests.ts";
import { createPaint, hasColour, print } from "./output.ts";

export interface ExplainOptions {
  readonly from?: string;
  readonly to?: string;
  readonly protocol?: string;
  readonly namespace: string;
  readonly ipv4?: boolean;
  readonly ipv6?: boolean;
  readonly whatIf?: boolean;
  readonly file?: readonly string[];
  readonly without?: readonly string[];
  readonly expect?: "allow" | "deny";
  readonly output: "text" | "json";
  readonly socket: string;
}

/** The verdict is not the one that `--expect` names. */
const UNEXPECTED_STATUS = 2;

/** `manx explain`. @returns the exit status: 0 whatever the verdict, unless `--expect` names another */
export async function runExplain(options: ExplainOptions): Promise<number> {
  const reply = await call<ExplainReply>(options.socket, "POST", PATHS.explain, requestOf(options));
  print(
    options.output === "json" ? JSON.stringify(reply, null, 2) : renderExplainReply(reply, createPaint(hasColour())),
  );
  const { expect } = options;
  return expect === undefined || reply.explanations.every(({ verdict }) => verdict === expect) ? 0 : UNEXPECTED_STATUS;
}

function requestOf(options: ExplainOptions): ExplainRequest {
  const { from, to, protocol, ipv4, ipv6, namespace, file = [], without = [] } = options;
  const usage = (message: string) => new CommandError(`explain: ${message}`, [], 64);
  const given = [from, to, protocol].filter((one) => one !== undefined).length;
  const changes = file.length + without.length;
  if (given !== 3 && !(given === 0 && changes > 0)) {
    throw usage(`found ${given} of FROM TO PROTOCOL, wanted all three${changes > 0 ? ", or none" : ""}`);
  }
  if (ipv4 && ipv6) throw usage("found both -4 and -6, wanted one of them");
  if (options.whatIf && changes === 0) {
    throw usage("found --what-if alone, wanted -f FILE or --without KIND/NAME with it");
  }
  if (!options.whatIf && changes > 0) {
    throw usage(
      `found ${file.length > 0 ? "-f" : "--without"} without --what-if, wanted both: nothing is applied here`,
    );
  }
  if (options.expect !== undefined && given === 0) throw usage("found --expect without FROM TO PROTOCOL, wanted them");
  return {
    namespace,
    ...given === 0 ? {} : {
      question: { from: from!, to: to!, protocol: protocol!, ...ipv4 ? { family: 4 } : ipv6 ? { family: 6 } : {} },
    },
    ...options.whatIf ? { whatIf: { manifests: readManifests(file), without } } : {},
  };
}
