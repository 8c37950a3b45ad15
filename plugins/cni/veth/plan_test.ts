import { describe, expect, test } from "bun:test";
import { formatAddress, formatCidr, parseAddress, parseCidr } from "../../../src/model/address.ts";
import { ConfigError, RefusedError } from "../../../src/sdk/errors.ts";
import type { Attachment } from "../../../src/sdk/wiring.ts";
import veth from "./mod.ts";
import { isHostInterface, macOf, planAttachment } from "./plan.ts";

const attachment = (more: Partial<Attachment> = {}): Attachment => ({
  id: "id",
  netns: "/run/netns/a",
  interfaceName: "eth0",
  hostInterface: "mx0123456789a",
  addresses: ["10.0.0.5", "fd00::5"].map(parseAddress),
  ...more,
});
const routesOf = (more: Partial<Attachment>) =>
  planAttachment(attachment(more), 1500).routes.map(({ destination, gateway, onLink }) =>
    [formatCidr(destination), gateway === undefined ? "link" : formatAddress(gateway), onLink ? "onlink" : ""].join(" ")
      .trim()
  );

describe("planAttachment", () => {
  test("default routes for the families that the pod has", () => {
    expect(routesOf({})).toEqual(["169.254.1.1/32 link", "0.0.0.0/0 169.254.1.1", "::/0 fe80::1"]);
    expect(routesOf({ addresses: [parseAddress("10.0.0.5")] })).toEqual([
      "169.254.1.1/32 link",
      "0.0.0.0/0 169.254.1.1",
    ]);
    expect(routesOf({ addresses: [parseAddress("fd00::5")] })).toEqual(["::/0 fe80::1"]);
  });
  test("routes asked for stand in their place, each once; none at all is an answer too", () => {
    const routes = ["10.0.0.0/8", "fd00::/8", "10.0.0.0/8"].map((text) => ({ destination: parseCidr(text) }));
    expect(routesOf({ routes })).toEqual(["169.254.1.1/32 link", "10.0.0.0/8 169.254.1.1", "fd00::/8 fe80::1"]);
    expect(routesOf({ routes: [] })).toEqual(["169.254.1.1/32 link"]);
    const via = [{ destination: parseCidr("10.0.0.0/8"), via: parseAddress("10.0.0.1") }];
    expect(routesOf({ routes: via })).toEqual(["169.254.1.1/32 link", "10.0.0.0/8 10.0.0.1 onlink"]);
  });
  test("every reason against it is named at once", () => {
    let error: unknown;
    try {
      planAttachment(
        attachment({ hostInterface: "eth0", mtu: 576, addresses: [parseAddress("::1"), parseAddress("::1")] }),
        1500,
      );
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(RefusedError);
    expect((error as RefusedError).reasons).toHaveLength(3);
  });
});

test("a MAC address made from an id is local, individual, and its own", () => {
  const macs = Array.from({ length: 200 }, (_, i) => macOf(`id-${i}`));
  expect(new Set(macs).size).toBe(200);
  for (const mac of macs) expect(mac).toMatch(/^[0-9a-f][26ae](:[0-9a-f]{2}){5}$/);
  expect(macOf("id-1")).toBe(macs[1]!);
});

test("host interfaces are mx and 11 hex digits", () => {
  expect(
    ["mx0123456789a", "mx0123456789", "mx0123456789ab", "mxg123456789a", "eth0", "MX0123456789A"].map(isHostInterface),
  )
    .toEqual([true, false, false, false, false, false]);
});

describe("parseConfig", () => {
  test("nothing, null, nothing in it and an MTU", () => {
    expect([undefined, null, {}, { mtu: 1400 }].map((raw) => veth.parseConfig(raw))).toEqual([{}, {}, {}, {
      mtu: 1400,
    }]);
  });
  test.each([["x", ""], [[], ""], [{ mtU: 1 }, "mtU"], [{ mtu: "1400" }, "mtu"], [{ mtu: 67 }, "mtu"], [
    { mtu: 1.5 },
    "mtu",
  ]])(
    "%j is refused with its key path",
    (raw, path) => {
      try {
        veth.parseConfig(raw);
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError);
        expect((error as ConfigError).path).toBe(path as string);
        return;
      }
      throw new Error("accepted");
    },
  );
});
