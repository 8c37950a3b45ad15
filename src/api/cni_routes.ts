/** CNI: each verb as a request of its own, and a whole call of the plugin, environment and standard input, as one. */
import type { Context, Hono } from "hono";
import { answerCall } from "../cni/call.ts";
import { errorOfReply } from "../cni/errors.ts";
import type { HostView } from "../host/view.ts";
import type { Log } from "../sdk/plugin.ts";
import { readBody } from "./body.ts";
import { replyWithError } from "./errors.ts";
import { PATHS } from "./protocol.ts";
import { readAddRequest, readAttachmentName, readCheckRequest, readGcRequest } from "./requests.ts";

type Verb = (body: unknown, signal: AbortSignal) => Promise<unknown>;

export function routeCni(app: Hono, view: HostView, log: Log): void {
  const requests: Readonly<Record<string, Verb>> = {
    add: (body) => view.attachments.add(readAddRequest(body)),
    del: (body) => view.attachments.del(readAttachmentName(body)),
    check: (body) => view.attachments.check(readCheckRequest(body)),
    gc: (body) => view.attachments.gc(readGcRequest(body)),
  };
  const status: Verb = (_body, signal) => view.attachments.ready(signal);
  for (const [verb, run] of Object.entries(requests)) {
    app.post(
      `${PATHS.cni}/${verb}`,
      async (context) => context.json(await run(await readBody(context), context.req.raw.signal) ?? {}),
    );
  }
  app.on(["GET", "POST"], `${PATHS.cni}/status`, async (context: Context) => {
    await status(undefined, context.req.raw.signal);
    return context.json({});
  });

  const verbs: typeof requests = { ...requests, status };
  app.post(`${PATHS.cni}/call`, async (context) => {
    const answer = await answerCall(new Uint8Array(await context.req.arrayBuffer()), async (path, body) => {
      try {
        return await verbs[path.slice(PATHS.cni.length + 1)]!(body, context.req.raw.signal);
      } catch (error) {
        throw errorOfReply(replyWithError(error, `call ${path}`, log).body);
      }
    });
    if (answer === undefined) {
      const message =
        "found a call for another daemon, or none, wanted one whose configuration names the socket it came by";
      return context.json({ error: { code: "misdirected", message } }, 421);
    }
    return context.body(`${answer.status}${answer.output}`);
  });
}
