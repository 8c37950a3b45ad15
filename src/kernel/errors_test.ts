import { expect, test } from "bun:test";
import { DecodeError, errnoName, errnoOf, errnoText, isErrno, KernelError } from "./errors.ts";

test("a kernel error says operation, errno, kernel text, attribute and which message it was", () => {
  const error = new KernelError("create link mx0", 22, {
    kernelText: "Unknown device type",
    attribute: "link.info.kind",
    messageIndex: 1,
    messageCount: 3,
  });
  expect(error.message).toBe(
    "create link mx0: EINVAL (Invalid argument): Unknown device type, attribute link.info.kind, message 2 of 3",
  );
  expect(error.errno).toBe(22);
  expect(error.errnoName).toBe("EINVAL");
  expect(isErrno(error, "ENOENT", "EINVAL")).toBe(true);
  expect(isErrno(error, "ENOENT")).toBe(false);
  expect(isErrno(new Error("EINVAL"), "EINVAL")).toBe(false);
});

test("a kernel error without detail is operation and errno", () => {
  expect(new KernelError("open x", 2).message).toBe("open x: ENOENT (No such file or directory)");
});

test("errno names resolve both ways, EAGAIN and EOPNOTSUPP by their Linux names, unknown numbers kept", () => {
  for (
    const [errno, name] of [[1, "EPERM"], [11, "EAGAIN"], [85, "ERESTART"], [95, "EOPNOTSUPP"], [
      105,
      "ENOBUFS",
    ]] as const
  ) {
    expect(errnoName(errno)).toBe(name);
    expect(errnoOf(name)).toBe(errno);
    expect(errnoText(errno)).not.toBe("");
  }
  expect(errnoName(4000)).toBe("E4000");
  expect(errnoOf("ENONSENSE")).toBeUndefined();
});

test("a decode error says where, what was found and what is wanted", () => {
  expect(new DecodeError(20, "1 bytes", "4 bytes of u32", "link.mtu").message).toBe(
    "decode link.mtu at byte 20: found 1 bytes, wanted 4 bytes of u32",
  );
});
