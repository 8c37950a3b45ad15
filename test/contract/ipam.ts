/** What every address management must do. Call `ipamContract` in a test file of the plugin. */
import { describe, expect, test } from "bun:test";
import { addressFamily, cidrContains, formatAddress, parseAddress } from "../../src/model/address.ts";
import { type Resource, type ResourceKey } from "../../src/model/resource.ts";
import type { Datastore } from "../../src/sdk/datastore.ts";
import { ConflictError, ExhaustedError } from "../../src/sdk/errors.ts";
import type { Ipam, LeaseRequest } from "../../src/sdk/ipam.ts";
import { failure } from "./datastore.ts";

/**
 * One fresh store with address management of node `alpha` on it: an IPv4 pool of exactly 30 usable addresses, all of
 * them for this node, and an IPv6 pool of more.
 */
export interface IpamFixture extends AsyncDisposable {
  readonly ipam: Ipam;
  readonly datastore: Datastore;
  /** Closes `ipam` and opens another on the same store, as after a restart. */
  reopen(): Promise<Ipam>;
}

export const NODE = "alpha";
export const POOL_ADDRESSES = 30;

export const leaseFor = (handle: string, more: Partial<LeaseRequest> = {}): LeaseRequest => ({
  handle,
  node: NODE,
  families: [4],
  attributes: {},
  ...more,
});

const endpointKey = (name: string): ResourceKey => ({ kind: "Endpoint.example.test", namespace: "", name });
const endpoint = (name: string, ips: readonly string[]): Resource => ({
  apiVersion: "example.test/v1",
  kind: "Endpoint",
  metadata: { name },
  spec: { ips },
});

export function ipamContract(name: string, open: () => Promise<IpamFixture>): void {
  const text = ({ addresses }: { addresses: readonly Parameters<typeof formatAddress>[0][] }) =>
    addresses.map(formatAddress);

  describe(`ipam contract: ${name}`, () => {
    test("is ready, and every address of the pool is given once, then none", async () => {
      await using fixture = await open();
      await fixture.ipam.ready();
      const given = new Set<string>();
      for (let i = 0; i < POOL_ADDRESSES; i++) given.add(text(await fixture.ipam.acquire(leaseFor(`h${i}`)))[0]!);
      expect(given.size).toBe(POOL_ADDRESSES);
      const [usage] = (await fixture.ipam.usage()).filter(({ cidr }) => cidr.length === 5);
      expect(usage).toMatchObject({ used: POOL_ADDRESSES, capacity: BigInt(POOL_ADDRESSES) });
      for (const address of given) expect(cidrContains(usage!.cidr, parseAddress(address))).toBe(true);
      const error = await failure(fixture.ipam.acquire(leaseFor("one too many")));
      expect(error).toBeInstanceOf(ExhaustedError);
      expect((error as Error).message).toContain(usage!.pool);
      expect(await failure(fixture.ipam.ready())).toBeInstanceOf(ExhaustedError);
      await fixture.ipam.release("h3");
      await fixture.ipam.ready();
      await fixture.ipam.acquire(leaseFor("one too many"));
    });

    test("a handle's second acquire returns the first one's lease, also after a restart", async () => {
      await using fixture = await open();
      const first = await fixture.ipam.acquire(leaseFor("h", { families: [4, 6], attributes: { pod: "p" } }));
      expect(await fixture.ipam.acquire(leaseFor("h", { families: [4, 6] }))).toEqual(first);
      expect(await fixture.ipam.acquire(leaseFor("h"))).toEqual(first);
      const again = await fixture.reopen();
      expect(await again.acquire(leaseFor("h", { families: [4, 6] }))).toEqual(first);
    });

    test("acquires of one handle made at once get one lease", async () => {
      await using fixture = await open();
      const leases = await Promise.all(Array.from({ length: 8 }, () => fixture.ipam.acquire(leaseFor("h"))));
      expect(new Set(leases.map((lease) => text(lease).join())).size).toBe(1);
      expect((await fixture.ipam.usage()).find(({ cidr }) => cidr.length === 5)?.used).toBe(1);
    });

    test("many acquires made at once get an address each", async () => {
      await using fixture = await open();
      const leases = await Promise.all(
        Array.from({ length: POOL_ADDRESSES }, (_, i) => fixture.ipam.acquire(leaseFor(`h${i}`))),
      );
      expect(new Set(leases.flatMap(text)).size).toBe(POOL_ADDRESSES);
    });

    test("both families come in one lease, IPv4 first, whatever order they are asked in", async () => {
      await using fixture = await open();
      const { addresses } = await fixture.ipam.acquire(leaseFor("h", { families: [6, 4] }));
      expect(addresses.map(addressFamily)).toEqual([4, 6]);
      const only = await fixture.ipam.acquire(leaseFor("h6", { families: [6] }));
      expect(only.addresses.map(addressFamily)).toEqual([6]);
    });

    test("release is repeatable, an unknown handle is none, and the address can be given again", async () => {
      await using fixture = await open();
      await fixture.ipam.release("never seen");
      for (let i = 0; i < POOL_ADDRESSES; i++) await fixture.ipam.acquire(leaseFor(`h${i}`));
      const freed = text(await fixture.ipam.acquire(leaseFor("h7")));
      await fixture.ipam.release("h7");
      await fixture.ipam.release("h7");
      expect(text(await fixture.ipam.acquire(leaseFor("new")))).toEqual(freed);
    });

    test("a released address rests: others are given first", async () => {
      await using fixture = await open();
      const [freed] = text(await fixture.ipam.acquire(leaseFor("h")));
      await fixture.ipam.release("h");
      for (let i = 1; i < POOL_ADDRESSES / 2; i++) {
        expect(text(await fixture.ipam.acquire(leaseFor(`n${i}`)))).not.toEqual([freed!]);
      }
    });

    test("a static address is given as asked, and refused while another handle has it", async () => {
      await using fixture = await open();
      const { cidr } = (await fixture.ipam.usage()).find((usage) => usage.cidr.length === 5)!;
      const [base] = text({ addresses: [(await fixture.ipam.acquire(leaseFor("probe"))).addresses[0]!] });
      const wanted = parseAddress(base!.replace(/\d+$/, (last) => String(Number(last) + 9)));
      expect(cidrContains(cidr, wanted)).toBe(true);
      const lease = await fixture.ipam.acquire(leaseFor("static", { addresses: [wanted] }));
      expect(lease.addresses).toEqual([wanted]);
      const error = await failure(fixture.ipam.acquire(leaseFor("thief", { addresses: [wanted] })));
      expect((error as Error).message).toContain(formatAddress(wanted));
      for (let i = 0; i < POOL_ADDRESSES - 2; i++) {
        expect((await fixture.ipam.acquire(leaseFor(`n${i}`))).addresses).not.toEqual([wanted]);
      }
    });

    test("a static address outside every pool is refused", async () => {
      await using fixture = await open();
      const error = await failure(fixture.ipam.acquire(leaseFor("h", { addresses: [parseAddress("203.0.113.9")] })));
      expect((error as Error).message).toContain("203.0.113.9");
    });

    test("what is to be written with a lease is there when it is, and goes with its release", async () => {
      await using fixture = await open();
      const lease = await fixture.ipam.acquire(leaseFor("h", {
        also: (made) => [{ key: endpointKey("e"), value: endpoint("e", text(made)), expect: null }],
      }));
      expect((await fixture.datastore.get(endpointKey("e")))?.value.spec).toEqual({ ips: text(lease) });
      await fixture.ipam.release("h", [{ key: endpointKey("e"), value: null }]);
      expect(await fixture.datastore.get(endpointKey("e"))).toBeUndefined();
      await fixture.ipam.release("h", [{ key: endpointKey("f"), value: endpoint("f", []) }]);
      expect(await fixture.datastore.get(endpointKey("f"))).toBeDefined();
    });

    test("where what is to be written conflicts, there is no lease, and others made at once are not harmed", async () => {
      await using fixture = await open();
      await fixture.datastore.commit([{ key: endpointKey("e3"), value: endpoint("e3", []) }]);
      const outcomes = await Promise.allSettled(
        Array.from({ length: 8 }, (_, i) =>
          fixture.ipam.acquire(leaseFor(`h${i}`, {
            also: (made) => [{ key: endpointKey(`e${i}`), value: endpoint(`e${i}`, text(made)), expect: null }],
          }))),
      );
      expect(outcomes.map(({ status }) => status === "fulfilled")).toEqual(
        Array.from({ length: 8 }, (_, i) => i !== 3),
      );
      expect((outcomes[3] as PromiseRejectedResult).reason).toBeInstanceOf(ConflictError);
      expect((await fixture.ipam.usage()).find(({ cidr }) => cidr.length === 5)?.used).toBe(7);
      expect((await fixture.datastore.get(endpointKey("e3")))?.value.spec).toEqual({ ips: [] });
      for (const [i, outcome] of outcomes.entries()) {
        if (outcome.status === "rejected") continue;
        expect((await fixture.datastore.get(endpointKey(`e${i}`)))?.value.spec).toEqual({ ips: text(outcome.value) });
      }
    });

    test("collect releases what is not alive and nothing else, also after a restart", async () => {
      await using fixture = await open();
      for (const handle of ["a", "b", "c", "d"]) await fixture.ipam.acquire(leaseFor(handle));
      const kept = await fixture.ipam.acquire(leaseFor("b"));
      expect(await fixture.ipam.collect(new Set(["b", "d", "unknown"]))).toEqual({ released: ["a", "c"], leases: 2 });
      expect(await fixture.ipam.collect(new Set(["b", "d"]))).toEqual({ released: [], leases: 2 });
      const again = await fixture.reopen();
      expect(await again.acquire(leaseFor("b"))).toEqual(kept);
      expect(await again.collect(new Set(["b"]))).toEqual({ released: ["d"], leases: 1 });
    });

    test("an acquire whose signal is aborted leaves nothing", async () => {
      await using fixture = await open();
      const reason = new Error("enough");
      expect(await failure(fixture.ipam.acquire(leaseFor("h"), AbortSignal.abort(reason)))).toBe(reason);
      expect((await fixture.ipam.collect(new Set())).released).toEqual([]);
    });
  });
}
