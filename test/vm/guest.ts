/** For tests that need the lab's kernel: `npm run test:vm` runs them; elsewhere they are skipped. */
import { test } from "bun:test";

export const IN_GUEST = process.env.MANX_VM !== undefined;
export const guestTest: typeof test = IN_GUEST ? test : test.skip as typeof test;
