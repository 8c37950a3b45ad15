/** Tells systemd how far the daemon is: sd_notify(3), one datagram to $NOTIFY_SOCKET. */
import { AF, close, sendto, SOCK, socket } from "../kernel/libc.ts";

/** `state`: for example `READY=1`. Without a service manager nothing happens; a lost notice is no error. */
export function notifyService(state: string, path: string | undefined = process.env.NOTIFY_SOCKET): boolean {
  if (path === undefined || !/^[/@]/.test(path)) return false;
  const fd = socket(AF.UNIX, SOCK.DGRAM | SOCK.CLOEXEC, 0);
  if (fd < 0) return false;
  try {
    return sendto(fd, bytes(state), 0, unixSockaddr(path)) >= 0;
  } finally {
    close(fd);
  }
}

/** struct sockaddr_un, include/uapi/linux/un.h; a leading `@` stands for the abstract namespace's zero byte. */
function unixSockaddr(path: string): Uint8Array {
  const name = bytes(path);
  if (path.startsWith("@")) name[0] = 0;
  const address = new Uint8Array(new ArrayBuffer(2 + name.length + (path.startsWith("@") ? 0 : 1)));
  new DataView(address.buffer).setUint16(0, AF.UNIX, true);
  address.set(name, 2);
  return address;
}

function bytes(text: string): Uint8Array {
  const encoded = new TextEncoder().encode(text);
  const copy = new Uint8Array(new ArrayBuffer(encoded.length));
  copy.set(encoded);
  return copy;
}
