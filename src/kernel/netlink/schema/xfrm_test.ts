import { expect, test } from "bun:test";
import { namespacedKernel } from "../../namespaced_door.ts";
import { createNamespace } from "../../netns.ts";
import { runIn } from "../../testdata/tool_fixture.ts";
import { getPolicyCount, NETLINK_XFRM, parsePolicyCount } from "./xfrm.ts";

test("policies of a namespace are counted, of all directions and both families", () => {
  using namespace = createNamespace("xfrm");
  using socket = namespacedKernel(namespace).netlink(NETLINK_XFRM);
  const count = () => parsePolicyCount(socket.request("count", [getPolicyCount()])[0]!);
  const ip = (what: string, selector: string) =>
    runIn(namespace, "sh", "-ec", `ip xfrm policy ${what} ${selector} ${what === "add" ? "action block" : ""}`);
  const selectors = ["dst 192.0.2.0/24 dir out", "src 2001:db8::/32 dir in", "dst 192.0.2.0/24 dir fwd"];
  expect(count()).toBe(0);
  for (const [i, selector] of selectors.entries()) {
    ip("add", selector);
    expect(count()).toBe(i + 1);
  }
  for (const selector of selectors) ip("delete", selector);
  expect(count()).toBe(0);
});
