import { expect, test } from "bun:test";
import type { ExplainRequest } from "../host/explain/view.ts";
import { silentLog } from "../host/log.ts";
import type { HostView } from "../host/view.ts";
import { NotFoundError } from "../host/resources/resources.ts";
import { createRoutes } from "./routes.ts";

function routes(explainer: Partial<HostView["explainer"]>) {
  const { fetch } = createRoutes({ explainer } as unknown as HostView, silentLog);
  return async (method: string, path: string, body?: unknown) => {
    const response = await fetch(
      new Request(`http://manx${path}`, { method, ...(body === undefined ? {} : { body: JSON.stringify(body) }) }),
    );
    return { status: response.status, body: await response.json() as { error?: { message: string } } };
  };
}

test("a question and a what-if arrive as they were asked", async () => {
  const asked: ExplainRequest[] = [];
  const call = routes({
    explain: (request) => (asked.push(request), Promise.resolve({ node: "n", explanations: [] })),
  });
  const whole = {
    namespace: "prod",
    question: { from: "a", to: "b", protocol: "tcp/80", family: 6 },
    whatIf: { manifests: [{ file: "m.yaml", text: "x" }], without: ["netpol/y"] },
  };
  expect(await call("POST", "/v1/explain", whole)).toEqual({
    status: 200,
    body: { node: "n", explanations: [] } as never,
  });
  await call("POST", "/v1/explain", { question: { from: "a", to: "b", protocol: "icmp" }, more: 1 });
  await call("POST", "/v1/explain", { whatIf: {} });
  expect(asked).toEqual([
    whole as ExplainRequest,
    { question: { from: "a", to: "b", protocol: "icmp" } },
    { whatIf: { manifests: [], without: [] } },
  ]);
});

test("requests that say too little are refused with the field", async () => {
  const call = routes({ explain: () => Promise.reject(new Error("asked")) });
  for (
    const [body, message] of [
      [[], "request: body: found [], wanted an object"],
      [{ question: { from: "a" } }, "request: to: found nothing, wanted text"],
      [
        { question: { from: "a", to: "b", protocol: "tcp/1", family: 5 } },
        "request: question.family: found 5, wanted 4 or 6",
      ],
      [{ question: "a b c" }, 'request: question: found "a b c", wanted an object'],
      [{ namespace: 5 }, "request: namespace: found 5, wanted text"],
      [{ whatIf: { manifests: [{ file: "x" }] } }, "request: text: found nothing, wanted a manifest's text"],
      [{ whatIf: { without: [1] } }, "request: without[0]: found 1, wanted text"],
    ] as const
  ) expect(await call("POST", "/v1/explain", body)).toMatchObject({ status: 400, body: { error: { message } } });
});

test("policies are asked by name, in the default namespace unless another is named", async () => {
  const asked: unknown[] = [];
  const call = routes({
    policies(endpoint, namespace) {
      asked.push([endpoint, namespace]);
      return endpoint === "gone"
        ? Promise.reject(new NotFoundError("gone"))
        : Promise.resolve({ endpoint, node: "n", lists: [] });
    },
  });
  expect((await call("GET", "/v1/policies?endpoint=prod/web")).status).toBe(200);
  expect((await call("GET", "/v1/policies?endpoint=web&namespace=prod")).status).toBe(200);
  expect(await call("GET", "/v1/policies?endpoint=gone")).toMatchObject({
    status: 404,
    body: { error: { message: "gone" } },
  });
  expect((await call("GET", "/v1/policies")).status).toBe(400);
  expect(asked).toEqual([["prod/web", "default"], ["web", "prod"], ["gone", "default"]]);
});
