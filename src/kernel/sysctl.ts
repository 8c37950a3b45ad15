/** `/proc/sys/net` of the calling thread's network namespace: wrap calls in `inNamespace` for another's. */
import { KernelError } from "./errors.ts";
import { buffer, check, close, Errno, O, open, readFd, writeFd } from "./libc.ts";

const ROOT = "/proc/sys/net/";
/** The longest value the kernel writes is one page. */
const valueScratch = buffer(4096);
const decoder = new TextDecoder();

function fullPath(operation: string, path: string): string {
  if (
    path === "" || path.split("/").some((part) => part === "" || part === "." || part === "..") || path.includes("\0")
  ) {
    throw new KernelError(operation, Errno.EINVAL, { kernelText: `wanted a path below ${ROOT}` });
  }
  return ROOT + path;
}

function withFile<T>(operation: string, path: string, flags: number, body: (fd: number) => T): T {
  const fd = check(operation, open(fullPath(operation, path), flags | O.CLOEXEC));
  try {
    return body(fd);
  } finally {
    close(fd);
  }
}

/** The value of `/proc/sys/net/PATH` without its final line feed. @throws {KernelError} ENOENT where there is no such setting */
export function getSysctl(path: string): string {
  const operation = `read sysctl net/${path}`;
  return withFile(operation, path, O.RDONLY, (fd) => {
    const count = check(operation, readFd(fd, valueScratch));
    return decoder.decode(valueScratch.subarray(0, count)).trimEnd();
  });
}

/** Writes `/proc/sys/net/PATH` where its value differs: some settings have effects even when set to what they are. @throws {KernelError} */
export function setSysctl(path: string, value: string): void {
  const words = (text: string) => text.trim().split(/\s+/).join(" ");
  if (words(getSysctl(path)) === words(value)) return;
  const operation = `set sysctl net/${path} to ${value}`;
  withFile(operation, path, O.WRONLY, (fd) => {
    const text = new TextEncoder().encode(value + "\n");
    const bytes = buffer(text.length);
    bytes.set(text);
    check(operation, writeFd(fd, bytes));
  });
}
