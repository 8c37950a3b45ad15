import { expect, test } from "bun:test";
import { answerCall } from "./call.ts";
import { CniError } from "./errors.ts";

const SOCKET = "/run/manx/manx.sock";
const CONFIG = { cniVersion: "1.1.0", name: "pods", type: "manx" };
const ENV = ["CNI_COMMAND=DEL", "CNI_CONTAINERID=c0ffee", "CNI_IFNAME=eth0", "CNI_NETNS=", "CNI_PATH=/opt/cni/bin"];
const bodyOf = (variables: readonly string[], input: unknown = CONFIG) =>
  new TextEncoder().encode(
    `${variables.map((text) => `${text}\0`).join("")}\0${typeof input === "string" ? input : JSON.stringify(input)}`,
  );
const never = () => Promise.reject(new Error("nobody was to be asked"));

test("a call is answered with what the plugin writes, and its exit status", async () => {
  const asked: unknown[] = [];
  const ask = (path: string, body?: unknown) => {
    asked.push([path, body]);
    return Promise.resolve({});
  };
  expect(await answerCall(bodyOf([`MANX_SOCKET=${SOCKET}`, ...ENV]), ask)).toEqual({ status: 0, output: "" });
  expect(asked).toEqual([["/v1/cni/del", {
    network: "pods",
    containerId: "c0ffee",
    ifName: "eth0",
    netns: undefined,
  }]]);
});

test("what the daemon refuses is the call's error, in the caller's version", async () => {
  const ask = () => Promise.reject(new CniError(101, "no address is left"));
  const answer = await answerCall(bodyOf([`MANX_SOCKET=${SOCKET}`, ...ENV]), ask);
  expect(answer?.status).toBe(1);
  expect(JSON.parse(answer!.output)).toEqual({ cniVersion: "1.1.0", code: 101, msg: "no address is left" });
  expect(answer!.output.endsWith("}\n")).toBe(true);
});

test("bad environment and input are answered without asking", async () => {
  for (
    const [body, code] of [
      [bodyOf([`MANX_SOCKET=${SOCKET}`, "CNI_COMMAND=DEL"]), 4],
      [bodyOf([`MANX_SOCKET=${SOCKET}`, ...ENV], "{"), 6],
      [bodyOf([`MANX_SOCKET=${SOCKET}`, ...ENV], { ...CONFIG, cniVersion: "9.0.0" }), 1],
      [bodyOf([`MANX_SOCKET=${SOCKET}`, ...ENV], { ...CONFIG, colour: "red" }), 2],
      [bodyOf([]), 4],
    ] as const
  ) {
    const answer = await answerCall(body, never);
    expect([answer?.status, JSON.parse(answer!.output).code]).toEqual([1, code]);
  }
});

test("a call whose configuration names another socket is nobody's here", async () => {
  for (const socket of ["/run/other.sock", undefined]) {
    const body = bodyOf([...(socket === undefined ? [] : [`MANX_SOCKET=${socket}`]), ...ENV]);
    expect(await answerCall(body, never)).toBeUndefined();
  }
  const named = bodyOf([`MANX_SOCKET=${SOCKET}`, ...ENV], { ...CONFIG, socket: "/run/other.sock" });
  expect(await answerCall(named, never)).toBeUndefined();
});

test("what is no call is none", async () => {
  const encoder = new TextEncoder();
  for (const text of ["", "CNI_COMMAND=DEL", "CNI_COMMAND=DEL\0", "CNI_COMMAND\0\0{}", "{}"]) {
    expect(await answerCall(encoder.encode(text), never)).toBeUndefined();
  }
});

test("a variable given twice counts as getenv would have it, and no name is special", async () => {
  const seen: unknown[] = [];
  const ask = (_path: string, body?: unknown) => {
    seen.push(body);
    return Promise.resolve({});
  };
  const variables = [`MANX_SOCKET=${SOCKET}`, ...ENV, "CNI_CONTAINERID=second", "__proto__=x", "CNI_EMPTY="];
  expect(await answerCall(bodyOf(variables), ask)).toEqual({ status: 0, output: "" });
  expect(seen).toEqual([expect.objectContaining({ containerId: "c0ffee" })]);
});
