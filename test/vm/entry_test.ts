/** The executable's entry (src/cni/entry) maps the program as this machine's kernel would; here the guest's kernel starts it. */
import { guestTest, IN_GUEST } from "./guest.ts";

if (IN_GUEST) {
  await import("../../src/cni/entry/entry_test.ts");
  await import("../lab/cni_call_test.ts");
} else {
  guestTest("the entry starts the program and asks the daemon", () => {});
}
