/**
 * For tests: the daemon, as `bun THIS daemon --config FILE`, with a kernel that the environment spoils. It is killed at the nth write, or finds
 * a part of the kernel missing. Writes are those of dataplanes to the node's own namespace: whatever a trial does elsewhere harms nobody.
 */
import { existsSync, writeFileSync } from "node:fs";
import { serveApi } from "../../src/api/server.ts";
import { loadConfig } from "../../src/host/config.ts";
import { runDaemon } from "../../src/host/daemon.ts";
import { createKernelDoor } from "../../src/kernel/door.ts";
import { errnoOf, KernelError } from "../../src/kernel/errors.ts";
import { PR, prctl } from "../../src/kernel/libc.ts";
import { NETLINK_NETFILTER, SUBSYSTEM_NFTABLES } from "../../src/kernel/netlink/schema/nftables.ts";
import type { KernelDoor, NetlinkMessage, NetlinkSocket, XtablesSocket } from "../../src/sdk/kernel_door.ts";

/** The variable that says so, as JSON. */
export const FAULTS = "MANX_TEST_FAULTS";
export const FAULTY_DAEMON = import.meta.path;

export interface Faults {
  /** Writes are counted from when this file is there; their number is kept in `FILE.count`. */
  readonly armed?: string;
  /** Of the writes, from 1. */
  readonly dieAt?: number;
  /** Before or after the kernel has done it. */
  readonly dieWhen?: "before" | "after";
  readonly lacks?: keyof typeof MISSING;
  /** Until this file is there, as if somebody had loaded the module. */
  readonly until?: string | undefined;
}

/** NFNL_SUBSYS_IPSET of linux/netfilter/nfnetlink.h. */
const SUBSYSTEM_IPSET = 6;

/** What the kernel answers where it lacks a part. */
const MISSING = {
  /** nfnetlink_rcv_msg of net/netfilter/nfnetlink.c: no such subsystem. */
  "ip_set": "EINVAL",
  /** nfnetlink_rcv_batch of the same file. */
  "nf_tables": "EOPNOTSUPP",
  /** nf_getsockopt of net/netfilter/nf_sockopt.c. */
  "ip_tables": "ENOPROTOOPT",
  /** __sock_create of net/socket.c: no such protocol, as without nfnetlink. */
  "nfnetlink": "EPROTONOSUPPORT",
  /** netlink_net_capable of net/netlink/af_netlink.c. */
  "rights": "EPERM",
} as const;

const refusal = (operation: string, part: keyof typeof MISSING) => new KernelError(operation, errnoOf(MISSING[part])!);

/** IPSET_CMD_CREATE to IPSET_CMD_SWAP, IPSET_CMD_ADD and IPSET_CMD_DEL of linux/netfilter/ipset/ip_set.h. */
const isSetWrite = ({ type }: NetlinkMessage) =>
  type >> 8 === SUBSYSTEM_IPSET && [2, 3, 4, 5, 6, 9, 10].includes(type & 0xff);

function spoil(door: KernelDoor, { armed, dieAt, dieWhen, lacks, until }: Faults): KernelDoor {
  const isLacking = (part: Faults["lacks"]) => lacks === part && (until === undefined || !existsSync(until));
  let writes = 0;
  const write = <T>(act: () => T): T => {
    if (armed === undefined || !existsSync(armed)) return act();
    writes++;
    writeFileSync(`${armed}.count`, String(writes));
    if (writes === dieAt && dieWhen === "before") process.kill(process.pid, "SIGKILL");
    const result = act();
    if (writes === dieAt) process.kill(process.pid, "SIGKILL");
    return result;
  };
  const spoiltNetlink = (socket: NetlinkSocket, isNode: boolean): NetlinkSocket => {
    const look = <T>(operation: string, messages: readonly NetlinkMessage[], act: () => T): T => {
      if (isLacking("ip_set") && messages.some(({ type }) => type >> 8 === SUBSYSTEM_IPSET)) {
        throw refusal(operation, "ip_set");
      }
      return isNode && messages.some(isSetWrite) ? write(act) : act();
    };
    return overlaid(socket, {
      request: (operation, messages) => look(operation, messages, () => socket.request(operation, messages)),
      attempt: (operation, messages) => look(operation, messages, () => socket.attempt(operation, messages)),
      dump: (operation, message) => look(operation, [message], () => socket.dump(operation, message)),
      transaction(operation, subsystem, messages, generation) {
        if (isLacking("nf_tables") && subsystem === SUBSYSTEM_NFTABLES) throw refusal(operation, "nf_tables");
        const act = () => socket.transaction(operation, subsystem, messages, generation);
        return isNode ? write(act) : act();
      },
    });
  };
  const spoiltXtables = (socket: XtablesSocket, isNode: boolean): XtablesSocket =>
    overlaid(socket, {
      replace: (...args) => isNode ? write(() => socket.replace(...args)) : socket.replace(...args),
    });
  return overlaid(door, {
    netlink(protocol, options) {
      if (isLacking("rights") && protocol === NETLINK_NETFILTER) throw refusal("open a netlink socket", "rights");
      if (isLacking("nfnetlink") && protocol === NETLINK_NETFILTER) throw refusal("open a netlink socket", "nfnetlink");
      return spoiltNetlink(door.netlink(protocol, options), options?.namespace === undefined);
    },
    xtables(family, namespace) {
      if (isLacking("ip_tables")) throw refusal("read the tables of iptables", "ip_tables");
      return spoiltXtables(door.xtables(family, namespace), namespace === undefined);
    },
  });
}

/** The object with some methods replaced; the others are its own. */
function overlaid<T extends object>(target: T, methods: Partial<T>): T {
  return new Proxy(target, {
    get(of, key) {
      const own = Reflect.get(methods, key);
      if (own !== undefined) return own;
      const value = Reflect.get(of, key, of);
      return typeof value === "function" ? value.bind(of) : value;
    },
  });
}

if (import.meta.main) {
  const stop = new AbortController();
  // As --die-with-parent does.
  prctl(PR.SET_PDEATHSIG, 15);
  process.on("SIGTERM", () => stop.abort());
  const config = loadConfig(process.argv[process.argv.indexOf("--config") + 1]!);
  const faults = JSON.parse(process.env[FAULTS] ?? "{}") as Faults;
  await runDaemon(config, { signal: stop.signal, serve: serveApi, kernel: spoil(createKernelDoor(), faults) });
}
