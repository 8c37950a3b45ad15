import type { Context } from "hono";
import { RefusedError } from "../sdk/errors.ts";
import { describe } from "./requests.ts";

/** A request's body, JSON. @throws {RefusedError} */
export async function readBody(context: Context): Promise<unknown> {
  const text = await context.req.text();
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new RefusedError([
      `body of ${context.req.path}: found ${text === "" ? "nothing" : describe(text)}, wanted JSON (${
        (error as Error).message
      })`,
    ]);
  }
}
