/** Brings the kernel's ip sets to those that are wanted. Names say what a set is for, so that a restart finds its own. */
import { isErrno } from "../../src/kernel/errors.ts";
import {
  addMembers,
  createSet,
  deleteMembers,
  destroySet,
  getSetIndex,
  IpsetErrno,
  listSets,
  MemberMessages,
  parseIndex,
  parseSetPart,
  type SetName,
  type SetPart,
  swapSets,
} from "../../src/kernel/netlink/schema/ipset.ts";
import { KernelError } from "../../src/kernel/errors.ts";
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { type IpSet, OURS } from "./ruleset.ts";

type Header = NonNullable<SetPart["header"]>;

/** From so many changes on, or half of a set, the members are all put in another set, and the two change places at once. */
const SWAP_FROM = 4_096;
const SCRATCH = `${OURS}scratch`;

export class IpSets {
  /** What the kernel has of ours as far as we know; undefined: it must be read. */
  private there: Map<string, IpSet | undefined> | undefined;
  private readonly indexes = new Map<string, number>();
  /** How many members each set had when we last looked, right after writing. */
  private counts = new Map<string, number>();

  constructor(private readonly socket: NetlinkSocket) {}

  /** What is there may have been changed by somebody else. */
  forget(): void {
    this.there = undefined;
    this.indexes.clear();
  }

  /** Makes and fills what is wanted; nothing that rules may still name is taken away. How many messages that took. @throws {KernelError} */
  bring(wanted: ReadonlyMap<string, IpSet>): number {
    const known = this.there;
    const messages = known === undefined ? this.bringFromKernel(wanted) : this.bringFromKnown(wanted, known);
    if (messages > 0 || known === undefined) this.look();
    return messages;
  }

  /** Whether `bring` would have something to do, by what we know. */
  needs(wanted: ReadonlyMap<string, IpSet>): boolean {
    if (this.there === undefined) return true;
    for (const [name, set] of wanted) if (this.there.get(name) !== set) return true;
    return this.there.size !== wanted.size;
  }

  /** Takes away what is ours and not wanted. Sets that rules of somebody else name stay, and are told of. */
  clean(wanted: ReadonlyMap<string, IpSet>): { readonly messages: number; readonly problems: readonly string[] } {
    const names = [...this.there?.keys() ?? []].filter((name) => !wanted.has(name));
    const problems: string[] = [];
    let messages = 0;
    this.socket.attempt("destroy ip sets", names.map(destroySet)).forEach((error, i) => {
      const name = names[i]!;
      if (error === undefined || isErrno(error, "ENOENT")) {
        messages++;
        this.there!.delete(name);
        this.indexes.delete(name);
        this.counts.delete(name);
      } else if (error instanceof KernelError && error.errno === IpsetErrno.Busy) {
        problems.push(
          `destroy ip set ${name}: found it in use by somebody else's rules, wanted it free: tried again later`,
        );
      } else problems.push(error.message);
    });
    return { messages, problems };
  }

  /** The kernel's number of a set that is there. @throws {KernelError} */
  indexOf(name: string): number {
    let index = this.indexes.get(name);
    if (index === undefined) {
      const [answer] = this.socket.request(`look up ip set ${name}`, [getSetIndex(name)]);
      this.indexes.set(name, index = parseIndex(answer!));
    }
    return index;
  }

  /** Why somebody else must have changed a set of ours; undefined: nobody has, as far as numbers of members tell. */
  drifted(): string | undefined {
    if (this.there === undefined) return undefined;
    const headers = this.headers();
    for (const [name, count] of this.counts) {
      const found = headers.get(name);
      if (found === undefined) return `ip set ${name} is gone`;
      if (found.count !== count) return `ip set ${name} was changed by somebody else`;
    }
    return undefined;
  }

  // ------------------------------------------------------------------------------------------------------------- reading

  private headers(): Map<string, Header> {
    const headers = new Map<string, Header>();
    for (const message of this.socket.dump("list ip sets", listSets({ headers: true }))) {
      const { name, header } = parseSetPart(message);
      if (header !== undefined && name.startsWith(OURS)) headers.set(name, header);
    }
    return headers;
  }

  private members(name: string): Set<string> {
    const members = new Set<string>();
    for (const message of this.socket.dump(`list ip set ${name}`, listSets({ name }))) {
      for (const member of parseSetPart(message).members) members.add(member);
    }
    return members;
  }

  private look(): void {
    this.counts = new Map([...this.headers()].map(([name, { count }]) => [name, count]));
  }

  // ------------------------------------------------------------------------------------------------------------- writing

  private bringFromKernel(wanted: ReadonlyMap<string, IpSet>): number {
    const headers = this.headers();
    this.there = new Map([...headers.keys()].map((name) => [name, undefined]));
    let messages = 0;
    for (const [name, set] of wanted) {
      const header = headers.get(name);
      if (header === undefined) messages += this.make(name, set);
      else if (header.kind !== set.kind || header.family !== set.family) {
        throw new KernelError(`bring ip set ${name}`, IpsetErrno.TypeMismatch, {
          kernelText: "somebody else has made it of another type; destroy it",
        });
      } else {
        const found = this.members(name);
        const changed: string[] = [];
        set.content.forEach((member) => {
          if (!found.delete(member)) changed.push(member);
        });
        messages += this.change(name, set, [...changed, ...found]);
      }
      this.there.set(name, set);
    }
    return messages;
  }

  private bringFromKnown(wanted: ReadonlyMap<string, IpSet>, known: Map<string, IpSet | undefined>): number {
    let messages = 0;
    for (const [name, set] of wanted) {
      const before = known.get(name);
      if (before === set) continue;
      if (before === undefined && !known.has(name)) messages += this.make(name, set);
      else if (before === undefined) messages += this.replace(name, set);
      else {
        const changed = set.content.changesSince(before.content) ?? difference(before, set);
        messages += this.change(name, set, [...changed]);
      }
      known.set(name, set);
    }
    return messages;
  }

  private request(operation: string, messages: readonly NetlinkMessage[]): number {
    this.socket.request(operation, messages);
    return messages.length;
  }

  private make(name: string, { kind, family, content }: IpSet, as = name): number {
    const set: SetName = { name: as, kind, family };
    const members = new MemberMessages(set, "add");
    const packed = content.packed?.();
    if (packed === undefined) content.forEach((member) => members.put(member));
    else members.putPacked(packed);
    const messages = members.finish();
    return this.request(`make ip set ${name} of ${members.count} members`, [
      createSet(set, members.count),
      ...messages,
    ]);
  }

  private change(name: string, set: IpSet, changed: readonly string[]): number {
    if (changed.length === 0) return 0;
    if (changed.length >= SWAP_FROM) return this.replace(name, set);
    const { kind, family, content } = set;
    const which: SetName = { name, kind, family };
    return this.request(`change ${changed.length} members of ip set ${name}`, [
      ...addMembers(which, changed.filter((member) => content.has(member))),
      ...deleteMembers(which, changed.filter((member) => !content.has(member))),
    ]);
  }

  /** All members at once. */
  private replace(name: string, set: IpSet): number {
    this.socket.attempt("destroy scratch ip set", [destroySet(SCRATCH)]);
    return this.make(name, set, SCRATCH) +
      this.request(`replace members of ip set ${name}`, [swapSets(name, SCRATCH), destroySet(SCRATCH)]);
  }
}

function difference(before: IpSet, after: IpSet): readonly string[] {
  const changed: string[] = [];
  after.content.forEach((member) => {
    if (!before.content.has(member)) changed.push(member);
  });
  before.content.forEach((member) => {
    if (!after.content.has(member)) changed.push(member);
  });
  return changed;
}
