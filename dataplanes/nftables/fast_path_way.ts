/** The way that packets of a flow take through the node, if it is one that needs no second look: a neighbour at a plain link. */
import { findLink } from "../../src/kernel/rtnetlink.ts";
import { isErrno, KernelError } from "../../src/kernel/errors.ts";
import type { Link } from "../../src/kernel/netlink/schema/rt_link.ts";
import { lookUpRoute, parseRoute, RouteTable, RouteType } from "../../src/kernel/netlink/schema/rt_route.ts";
import { getRules, parseRule, RuleAction } from "../../src/kernel/netlink/schema/rt_rule.ts";
import { getPolicyCount, NETLINK_XFRM, parsePolicyCount } from "../../src/kernel/netlink/schema/xfrm.ts";
import { type Address, addressFamily, type Family } from "../../src/model/address.ts";
import type { NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import type { Host } from "../../src/sdk/plugin.ts";

/** NETLINK_ROUTE, include/uapi/linux/netlink.h. */
const NETLINK_ROUTE = 0;
/** ARPHRD_ETHER, include/uapi/linux/if_arp.h. */
const ETHERNET = 1;

/** What one direction of a flow is seen to do. */
export interface Passage {
  readonly source: Address;
  readonly destination: Address;
  readonly inIndex: number;
  readonly outIndex: number;
}

export interface Way {
  readonly input: Link;
  readonly output: Link;
  readonly nextHop: Address;
}

/** Asks the kernel. */
export class Ways implements Disposable {
  readonly #route: NetlinkSocket;
  /** Undefined: the kernel has no IPsec. */
  readonly #ipsec: NetlinkSocket | undefined;

  /** @throws {KernelError} */
  constructor({ kernel }: Pick<Host, "kernel">) {
    this.#route = kernel.netlink(NETLINK_ROUTE);
    try {
      this.#ipsec = kernel.netlink(NETLINK_XFRM);
    } catch (error) {
      if (isErrno(error, "EPROTONOSUPPORT")) return;
      this.#route[Symbol.dispose]();
      throw error;
    }
  }

  /** Undefined: the flow must be routed packet by packet. @throws {KernelError} */
  find({ source, destination, inIndex, outIndex }: Passage): Way | undefined {
    // A redirect is due where it leaves by the link that it came in by.
    if (inIndex === outIndex || this.#hasIpsec() || !this.#routesByDestination(addressFamily(destination))) {
      return undefined;
    }
    const input = findLink(this.#route, { index: inIndex }), output = findLink(this.#route, { index: outIndex });
    if (input === undefined || output === undefined || !isPlain(input) || !isPlain(output)) return undefined;
    // What comes in fits out: senders learn of a narrower link by what only routing tells them.
    if (output.mtu < input.mtu) return undefined;
    const route = this.#routeOf(source, destination, inIndex);
    const isSimple = route !== undefined && route.type === RouteType.Unicast && route.outputIndex === outIndex &&
      route.attributes.encapType === undefined && (route.mtu === undefined || route.mtu >= input.mtu);
    const nextHop = route?.gateway ?? destination;
    // A gateway of the other family is found by the other family's means.
    return isSimple && nextHop.length === destination.length ? { input, output, nextHop } : undefined;
  }

  #routeOf(source: Address, destination: Address, inputIndex: number) {
    try {
      const [answer] = this.#route.request("look up a flow's route", [
        lookUpRoute(destination, { source, inputIndex }),
      ]);
      return answer === undefined ? undefined : parseRoute(answer);
    } catch (error) {
      // No way there, or none from there: the packets' own errors say so.
      if (error instanceof KernelError) return undefined;
      throw error;
    }
  }

  /** Rules that ask for more than the destination (a mark, a port) may send other packets of the flow elsewhere. Of DSCP there is none. */
  #routesByDestination(family: Family): boolean {
    return this.#route.dump("list routing rules", getRules(family)).every((message) => {
      const { priority, action, table, attributes } = parseRule(message);
      const asks = Object.keys(attributes).some((name) => !SAYS_NOTHING.has(name));
      return !asks && action === RuleAction.ToTable && TABLE_BY_PRIORITY.get(priority) === table;
    });
  }

  #hasIpsec(): boolean {
    const [answer] = this.#ipsec?.request("count IPsec policies", [getPolicyCount()]) ?? [];
    return answer !== undefined && parsePolicyCount(answer) > 0;
  }

  [Symbol.dispose](): void {
    this.#route[Symbol.dispose]();
    this.#ipsec?.[Symbol.dispose]();
  }
}

/** Those that every namespace begins with: `ip rule`. */
const TABLE_BY_PRIORITY: ReadonlyMap<number, number> = new Map([
  [0, RouteTable.Local],
  [32766, RouteTable.Main],
  [32767, RouteTable.Default],
]);
/** Attributes of a rule that restrict it to nothing. */
const SAYS_NOTHING: ReadonlySet<string> = new Set([
  "priority",
  "table",
  "protocol",
  "padding",
  "suppressPrefixLength",
]);

/** Up, with Ethernet's kind of neighbours, and no port of a bridge or member of a VRF: those have rules of their own. */
const isPlain = ({ type, up, master }: Link): boolean => type === ETHERNET && up && master === undefined;
