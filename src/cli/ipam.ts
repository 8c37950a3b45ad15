import { type IpamReply, PATHS } from "../api/protocol.ts";
import { call } from "./client.ts";
import { complain, print, table } from "./output.ts";

/** `manx ipam`. @returns the exit status */
export async function runIpam({ output, socket }: { output: "table" | "json"; socket: string }): Promise<number> {
  const reply = await call<IpamReply>(socket, "GET", PATHS.ipam);
  if (output === "json") print(JSON.stringify(reply, null, 2));
  else if (reply.pools.length === 0) complain("No pools found: apply an IPPool, or name pools in the configuration");
  else {
    const rows = reply.pools.map((
      { pool, cidr, capacity, used, blocks },
    ) => [pool, cidr, String(used), String(BigInt(capacity) - BigInt(used)), String(blocks)]);
    print(table(["POOL", "CIDR", "USED", "FREE", "BLOCKS"], rows));
  }
  return 0;
}
