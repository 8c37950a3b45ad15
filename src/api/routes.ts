/** The API: what each path does, over a `HostView`. */
import { type Context, Hono } from "hono";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import type { HostView, ManifestRequest, WaitKey } from "../host/view.ts";
import { RefusedError } from "../sdk/errors.ts";
import { API_VERSION, type Log } from "../sdk/plugin.ts";
import { VERSION } from "../version.ts";
import { routeCni } from "./cni_routes.ts";
import { replyWithError } from "./errors.ts";
import { lineStream } from "./line_stream.ts";
import { readBody } from "./body.ts";
import { PATHS } from "./protocol.ts";
import type { KindList, PluginsReply, VersionReply, WaitReply } from "./protocol.ts";
import {
  readDataplaneSwitchRequest,
  readExplainRequest,
  readLogQuery,
  readManifestRequest,
  readWaitRequest,
} from "./requests.ts";

export function createRoutes(view: HostView, log: Log): { fetch(request: Request): Response | Promise<Response> } {
  const app = new Hono();
  const signalOf = (context: Context) => context.req.raw.signal;

  routeCni(app, view, log);

  app.post(PATHS.apply, async (context) => {
    const request: ManifestRequest = readManifestRequest(await readBody(context));
    return context.json(await view.resources.apply(request, signalOf(context)));
  });
  app.post(PATHS.delete, async (context) => {
    const request: ManifestRequest = readManifestRequest(await readBody(context));
    return context.json(await view.resources.delete(request, signalOf(context)));
  });
  app.post(PATHS.wait, async (context) => {
    const { keys, deadlineMs }: { keys: readonly WaitKey[]; deadlineMs: number } = readWaitRequest(
      await readBody(context),
    );
    return context.json({ waitedMs: await view.wait(keys, deadlineMs, signalOf(context)) } satisfies WaitReply);
  });
  app.get(
    `${PATHS.resources}/:plural`,
    async (context) =>
      context.json(
        await view.resources.list(context.req.param("plural"), context.req.query("namespace"), signalOf(context)),
      ),
  );
  app.get(`${PATHS.resources}/:plural/:name`, async (context) => {
    const { plural, name } = context.req.param();
    return context.json(
      await view.resources.get(plural, context.req.query("namespace") ?? "default", name, signalOf(context)),
    );
  });
  app.delete(`${PATHS.resources}/:plural/:name`, async (context) => {
    const { plural, name } = context.req.param();
    const wait = Number(context.req.query("wait") ?? 0);
    if (!Number.isInteger(wait) || wait < 0) {
      throw new RefusedError([`query: wait: found ${context.req.query("wait")}, wanted milliseconds`]);
    }
    return context.json(
      await view.resources.remove(plural, context.req.query("namespace") ?? "default", name, wait, signalOf(context)),
    );
  });
  app.get(PATHS.kinds, (context) => context.json({ kinds: view.resources.kinds } satisfies KindList));
  app.get(PATHS.status, (context) => context.json(view.status()));
  app.get(PATHS.logs, (context) => lineStream(view.logs(readLogQuery(context.req.query()), signalOf(context))));
  app.get(
    PATHS.plugins,
    (context) => context.json({ api: API_VERSION, plugins: view.plugins() } satisfies PluginsReply),
  );
  app.get(PATHS.version, (context) => context.json({ version: VERSION, api: API_VERSION } satisfies VersionReply));
  app.post(PATHS.explain, async (context) => {
    const request = readExplainRequest(await readBody(context));
    return context.json(await view.explainer.explain(request, signalOf(context)));
  });
  app.get(PATHS.policies, async (context) => {
    const { endpoint, namespace = "default" } = context.req.query();
    if (!endpoint) throw new RefusedError(["query: endpoint: found nothing, wanted the name of an endpoint"]);
    return context.json(await view.explainer.policies(endpoint, namespace, signalOf(context)));
  });
  app.get(PATHS.ipam, async (context) => context.json(await view.ipam(signalOf(context))));
  app.get(PATHS.dataplaneDiff, async (context) => context.json(await view.dataplanes.diff(signalOf(context))));
  app.post(PATHS.dataplaneSwitch, async (context) => {
    const request = readDataplaneSwitchRequest(await readBody(context));
    return context.json(await view.dataplanes.switch(request, signalOf(context)));
  });

  app.notFound((context) => {
    const message = `found no ${context.req.method} ${context.req.path}, wanted one of ${
      Object.values(PATHS).join(", ")
    }`;
    return context.json({ error: { code: "not-found", message } }, 404);
  });
  app.onError((error, context) => {
    const { status, body } = replyWithError(error, `${context.req.method} ${context.req.path}`, log);
    return context.json(body, status as ContentfulStatusCode);
  });
  return app;
}
