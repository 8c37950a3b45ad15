import { expect, test } from "bun:test";
import { join } from "node:path";
import { dataplaneConfig, isForServices, lackOfKernel } from "./dataplanes.ts";
import { LAB_CANNOT_RUN, runLab } from "./mod.ts";

const SCENARIO = join(import.meta.dir, "../../deploy/examples/scenarios/01-kubernetes-policy.yaml");

test("ipvs is two dataplanes, and services are done even where nobody asks for them; others are what they are called", () => {
  expect(dataplaneConfig("ipvs", "/d")).toEqual([{ use: "nftables", config: { services: false } }, { use: "ipvs" }]);
  expect(dataplaneConfig("iptables", "/d")).toEqual({ use: "iptables", config: { lockFile: "/d/xtables.lock" } });
  expect(dataplaneConfig("/my/plugin.ts", "/d")).toEqual({ use: "/my/plugin.ts" });
  expect(["ipvs", "nftables", "iptables"].map(isForServices)).toEqual([true, false, false]);
  expect(lackOfKernel("nftables")).toBeUndefined();
});

test.skipIf(lackOfKernel("ipvs") === undefined)(
  "a kernel without IPVS is said in one line, before anything is built",
  async () => {
    const said: string[] = [], complaints: string[] = [];
    const status = await runLab({
      files: [SCENARIO],
      dataplane: "ipvs",
      write: (text) => void said.push(text),
      complain: (text) => void complaints.push(text),
    });
    expect([status, said.join(""), complaints.join("")]).toEqual([
      LAB_CANNOT_RUN,
      "",
      "dataplane ipvs: found a kernel without IPVS, wanted one with the module ip_vs\n",
    ]);
  },
);
