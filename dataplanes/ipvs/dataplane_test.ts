/** The dataplane on a kernel without IPVS. With IPVS: test/vm. */
import { expect, test } from "bun:test";
import { errnoOf, KernelError } from "../../src/kernel/errors.ts";
import { NETLINK_GENERIC } from "../../src/kernel/netlink/generic.ts";
import { namespacedKernel } from "../../src/kernel/namespaced_door.ts";
import { createNamespace } from "../../src/kernel/netns.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { services } from "../../src/model/testdata/services.ts";
import { state } from "../../src/model/testdata/small_states.ts";
import type { Dataplane } from "../../src/sdk/dataplane.ts";
import type { KernelDoor, NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { systemClock } from "../../src/host/clock.ts";
import { silentLog } from "../../src/host/log.ts";
import ipvs from "./mod.ts";

/** It knows no generic netlink family. */
function withoutIpvs(namespace: NetworkNamespace): KernelDoor {
  const door = namespacedKernel(namespace);
  return {
    ...door,
    netlink(protocol, options) {
      const socket = door.netlink(protocol, options);
      if (protocol === NETLINK_GENERIC) {
        socket.request = (operation) => {
          throw new KernelError(operation, errnoOf("ENOENT")!);
        };
      }
      return socket;
    },
  };
}

async function opened(): Promise<AsyncDisposable & { namespace: NetworkNamespace; dataplane: Dataplane }> {
  const namespace = createNamespace("a kernel without IPVS");
  runIn(namespace, "ip", "link", "set", "lo", "up");
  const host = {
    node: "test",
    log: silentLog,
    clock: systemClock,
    kernel: withoutIpvs(namespace),
    get datastore(): never {
      throw new Error("the dataplane has no use for a datastore");
    },
    stateDirectory: "/nonexistent",
  };
  const dataplane = await ipvs.open(ipvs.parseConfig(undefined), host, new AbortController().signal);
  return {
    namespace,
    dataplane,
    async [Symbol.asyncDispose]() {
      await dataplane[Symbol.asyncDispose]();
      namespace[Symbol.dispose]();
    },
  };
}

const LACK = "probe IPVS: found no generic netlink family IPVS, wanted a kernel with the module ip_vs";
const wanted = {
  ...state({ generation: 3 }),
  services: services(["tcp 10.96.0.1:80 > 10.0.0.1:8080", "tcp [fd96::1]:80 > [fd00::1]:8080"]),
};

test("a kernel without IPVS is named, again with each try, and what is for services ends at the gate", async () => {
  await using here = await opened();
  for (let tries = 0; tries < 3; tries++) {
    const report = await here.dataplane.apply(wanted);
    expect(report).toMatchObject({ generation: 3, converged: false });
    expect(report.problems).toContain(LACK);
  }
  expect((await here.dataplane.resync()).problems).toContain(LACK);
  const gate = runIn(here.namespace, "nft", "list", "table", "inet", "manx-ipvs");
  expect(gate).toContain("10.96.0.1 . tcp . 80 : goto serve");
  // Whoever was let in for IPVS and is not taken by it meets this.
  expect(gate).toMatch(/chain serve \{\s+meta mark & 0x00400000 != 0x00000000 drop/);
  await expect(here.dataplane.diff!()).rejects.toThrow(LACK);
  expect(await here.dataplane.sweep()).toMatchObject({ converged: true, problems: [] });
  expect(runIn(here.namespace, "nft", "list", "ruleset")).toBe("");
});

test("where no services are wanted, a kernel without IPVS lacks nothing", async () => {
  await using here = await opened();
  expect(await here.dataplane.apply(state({ generation: 1 }))).toMatchObject({ converged: true, problems: [] });
  expect(await here.dataplane.diff!()).toEqual([]);
  expect(await here.dataplane.sweep()).toMatchObject({ converged: true, messages: 0 });
});
