/** For tests: rules with services, and how to tell what is theirs. */
import { serviceMarks } from "../config.ts";
import type { RenderOptions } from "../render.ts";

export const MARKS = serviceMarks(0xffff0000)!;

export const WITH_SERVICES: RenderOptions = {
  logGroup: 86,
  passedMark: 0x10000,
  cutMark: 0x20000,
  families: [4, 6],
  nat: true,
  services: MARKS,
};

/** What only services write, as the product prints it and as the tools do. */
export const OF_SERVICES = /services|service-|manx-[abfmnps][0-9]*-/;
