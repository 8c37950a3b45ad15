/**
 * Legacy iptables by socket options: include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h and
 * netfilter/x_tables.h. What entries mean is not known here.
 */
import { ptr } from "bun:ffi";
import { closeSync, openSync, readSync } from "node:fs";
import type { Family } from "../model/address.ts";
import type { NetworkNamespace, XtablesInfo, XtablesSocket } from "../sdk/kernel_door.ts";
import { KernelError } from "./errors.ts";
import {
  AF,
  buffer,
  check,
  close,
  Errno,
  flock,
  getsockopt,
  IPPROTO,
  LOCK,
  O,
  open,
  setsockopt,
  SOCK,
  socket,
  SOL,
} from "./libc.ts";
import { inNamespace } from "./netns.ts";

/** IPT_BASE_CTL and IP6T_BASE_CTL: reading and writing have numbers of their own. */
const SO_SET_REPLACE = 64;
const SO_SET_ADD_COUNTERS = 65;
const SO_GET_INFO = 64;
const SO_GET_ENTRIES = 65;
/** IPT_SO_GET_REVISION_MATCH, IP6T_SO_GET_REVISION_MATCH; a target's is one more. */
const SO_GET_REVISION: Readonly<Record<Family, number>> = { 4: 66, 6: 68 };

const TABLE_NAME_BYTES = 32;
const EXTENSION_NAME_BYTES = 29;
const HOOKS = 5;
/** struct ipt_getinfo, ipt_get_entries, ipt_replace, xt_counters_info (without what follows) and xt_counters. */
const INFO_BYTES = 84;
const GET_ENTRIES_BYTES = 40;
const REPLACE_BYTES = 96;
const COUNTERS_HEADER_BYTES = 40;
const COUNTER_BYTES = 16;

/** @throws {KernelError} */
export function openXtables(family: Family, namespace?: NetworkNamespace): XtablesSocket {
  const openHere = () => {
    const type = SOCK.RAW | SOCK.CLOEXEC;
    const fd = check(
      `open socket for ip${family === 6 ? "6" : ""}tables`,
      socket(family === 4 ? AF.INET : AF.INET6, type, IPPROTO.RAW),
    );
    return new Socket(family, fd, openNames(family));
  };
  return namespace === undefined ? openHere() : inNamespace(namespace, openHere);
}

/** The list of the namespace that it is opened in, for as long as it is open. Undefined: the kernel has no legacy iptables. */
function openNames(family: Family): number | undefined {
  try {
    return openSync(`/proc/thread-self/net/${family === 4 ? "ip" : "ip6"}_tables_names`, "r");
  } catch {
    return undefined;
  }
}

class Socket implements XtablesSocket {
  private readonly level: number;
  private readonly tool: string;
  private disposed = false;

  constructor(
    private readonly family: Family,
    private readonly fd: number,
    private readonly namesFd: number | undefined,
  ) {
    this.level = family === 4 ? SOL.IP : SOL.IPV6;
    this.tool = family === 4 ? "iptables" : "ip6tables";
  }

  tables(): readonly string[] {
    if (this.namesFd === undefined) return [];
    const page = buffer(4096);
    const count = readSync(this.namesFd, page, 0, page.length, 0);
    return new TextDecoder().decode(page.subarray(0, count)).split("\n").filter((name) => name !== "");
  }

  info(table: string): XtablesInfo {
    const bytes = buffer(INFO_BYTES);
    putName(bytes, 0, table, TABLE_NAME_BYTES);
    check(`read ${this.tool} table ${table}`, getsockopt(this.fd, this.level, SO_GET_INFO, bytes));
    const view = new DataView(bytes.buffer);
    const five = (at: number) => Array.from({ length: HOOKS }, (_, i) => view.getUint32(at + 4 * i, true));
    return {
      table,
      validHooks: view.getUint32(32, true),
      hookEntry: five(36),
      underflow: five(56),
      entryCount: view.getUint32(76, true),
      sizeBytes: view.getUint32(80, true),
    };
  }

  entries({ table, sizeBytes }: XtablesInfo): Uint8Array<ArrayBuffer> {
    const bytes = buffer(GET_ENTRIES_BYTES + sizeBytes);
    putName(bytes, 0, table, TABLE_NAME_BYTES);
    new DataView(bytes.buffer).setUint32(TABLE_NAME_BYTES, sizeBytes, true);
    check(`read entries of ${this.tool} table ${table}`, getsockopt(this.fd, this.level, SO_GET_ENTRIES, bytes));
    return bytes.subarray(GET_ENTRIES_BYTES);
  }

  replace(
    operation: string,
    info: XtablesInfo,
    entries: Uint8Array<ArrayBuffer>,
    replaced: number,
  ): Uint8Array<ArrayBuffer> {
    const counters = buffer(Math.max(1, replaced) * COUNTER_BYTES);
    const bytes = buffer(REPLACE_BYTES + entries.length);
    const view = new DataView(bytes.buffer);
    putName(bytes, 0, info.table, TABLE_NAME_BYTES);
    view.setUint32(32, info.validHooks, true);
    view.setUint32(36, info.entryCount, true);
    view.setUint32(40, entries.length, true);
    for (let i = 0; i < HOOKS; i++) {
      view.setUint32(44 + 4 * i, info.hookEntry[i]!, true);
      view.setUint32(64 + 4 * i, info.underflow[i]!, true);
    }
    view.setUint32(84, replaced, true);
    view.setBigUint64(88, BigInt(ptr(counters)), true);
    bytes.set(entries, REPLACE_BYTES);
    check(operation, setsockopt(this.fd, this.level, SO_SET_REPLACE, bytes));
    return counters.subarray(0, replaced * COUNTER_BYTES);
  }

  addCounters(table: string, counters: Uint8Array): void {
    const bytes = buffer(COUNTERS_HEADER_BYTES + counters.length);
    putName(bytes, 0, table, TABLE_NAME_BYTES);
    new DataView(bytes.buffer).setUint32(TABLE_NAME_BYTES, counters.length / COUNTER_BYTES, true);
    bytes.set(counters, COUNTERS_HEADER_BYTES);
    check(
      `give back counters of ${this.tool} table ${table}`,
      setsockopt(this.fd, this.level, SO_SET_ADD_COUNTERS, bytes),
    );
  }

  supports(kind: "match" | "target", name: string, revision: number): boolean {
    const bytes = buffer(EXTENSION_NAME_BYTES + 1);
    putName(bytes, 0, name, EXTENSION_NAME_BYTES);
    bytes[EXTENSION_NAME_BYTES] = revision;
    const option = SO_GET_REVISION[this.family] + (kind === "target" ? 1 : 0);
    return getsockopt(this.fd, this.level, option, bytes) >= 0;
  }

  [Symbol.dispose](): void {
    if (this.disposed) return;
    this.disposed = true;
    close(this.fd);
    if (this.namesFd !== undefined) closeSync(this.namesFd);
  }
}

/** @throws {KernelError} ENAMETOOLONG as the kernel would say, but before it is cut */
function putName(bytes: Uint8Array, at: number, name: string, roomBytes: number): void {
  const encoded = new TextEncoder().encode(name);
  if (encoded.length >= roomBytes) throw new KernelError(`name ${name}`, ENAMETOOLONG);
  bytes.set(encoded, at);
}
const ENAMETOOLONG = 36;

/** @throws {KernelError} where the file cannot be opened or locked, for another reason than that somebody holds it */
export function tryLock(path: string): Disposable | undefined {
  const operation = `lock ${path}`;
  const fd = check(operation, open(path, O.RDONLY | O.CREAT | O.CLOEXEC, 0o600));
  const returned = flock(fd, LOCK.EX | LOCK.NB);
  if (returned < 0) {
    close(fd);
    if (returned === -Errno.EAGAIN || returned === -Errno.EINTR) return undefined;
    throw new KernelError(operation, -returned);
  }
  let held = true;
  return {
    [Symbol.dispose]() {
      if (!held) return;
      held = false;
      close(fd);
    },
  };
}
