/** What the guest's kernel has that this suite is for. */
import { expect } from "bun:test";
import { readFileSync } from "node:fs";
import { guestTest } from "./guest.ts";

guestTest("the tests run on the lab's kernel", () => {
  expect(readFileSync("/proc/sys/kernel/osrelease", "utf8").trim()).toBe(process.env.MANX_VM!);
});
