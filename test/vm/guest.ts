/** For tests that need the lab's kernel: `npm run test:vm` runs them; elsewhere they are skipped. */
import { test } from "bun:test";

export const guestTest: typeof test = process.env.MANX_VM === undefined ? test.skip as typeof test : test;
