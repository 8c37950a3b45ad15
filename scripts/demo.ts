/**
 * Redis answers Node.js and refuses PHP: the product on one of its worked examples, with real packets. `npm run demo`.
 * Other scenarios may be named instead: `npm run demo -- deploy/examples/scenarios/06-vpn.yaml`.
 */
import { join, relative } from "node:path";
import { buildBinary } from "./build.ts";

const ROOT = join(import.meta.dir, "..");
const REDIS = join(ROOT, "deploy/examples/scenarios/03-redis.yaml");

const binary = await buildBinary();
const given = process.argv.slice(2);
const args = given.length > 0 ? given : [relative(process.cwd(), REDIS)];
const run = Bun.spawn({ cmd: [binary, "lab", "run", ...args], stdin: "inherit", stdout: "inherit", stderr: "inherit" });
// A terminal's Ctrl-C reaches it by itself; we only wait for it to clean up.
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => signal === "SIGTERM" && run.kill(signal));
process.exit(await run.exited);
