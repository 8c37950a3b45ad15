/**
 * Runs one command on another kernel: QEMU without hardware help, this machine's root read-only under an overlay that is gone at the
 * end. Whatever is installed here is there; what comes back comes through a writable directory, stdout and stderr.
 */
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
} from "node:fs";
import { writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type LabKernel, LabUnavailable } from "./kernel_package.ts";

const HERE = import.meta.dir;
/** It left qemu-system-common for a package of its own after Debian 12. */
const VIRTIOFSD_PATHS = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
const MEMORY_MB = 2048;
const BOOT_MS = 90_000;
const BOOT_ATTEMPTS = 3;
const SOCKETS_MS = 10_000;
const POLL_MS = 50;
/** From the command's status to the guest's end. */
const POWER_OFF_MS = 5_000;

/**
 * `quiet … nowatchdog`: nothing there is slow for a reason that the kernel could know. `nokaslr`, `mitigations=off`: time. A panic ends
 * the machine (`-no-reboot`).
 */
const KERNEL_ARGUMENTS = "console=ttyS0 quiet loglevel=4 root=rootfs rootfstype=virtiofs ro panic=-1 oops=panic " +
  "mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on apparmor=0 selinux=0 audit=0 nowatchdog " +
  "rcupdate.rcu_cpu_stall_suppress=1 rcupdate.rcu_expedited=1 8250.nr_uarts=1 i8042.noaux i8042.nokbd net.ifnames=0";

export interface Command {
  readonly argv: readonly string[];
  readonly cwd: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Loaded before the command starts. */
  readonly modules: readonly string[];
  /** At the same path there, and written through. */
  readonly writable: readonly string[];
  readonly timeoutMs: number;
  /** A descriptor for what it says, on stdout and stderr; absent: each goes to this process's own. */
  readonly output?: number | undefined;
}

/** The command's exit status. @throws {LabUnavailable} where the guest does not come up; {Error} where it ends without a status, or in time */
export async function runInMachine(kernel: LabKernel, command: Command): Promise<number> {
  const scratch = mkdtempSync(join(tmpdir(), "manx-vm-"));
  chmodSync(scratch, 0o700);
  try {
    for (let attempt = 1;; attempt++) {
      await using machine = await Machine.start(kernel, command, join(scratch, String(attempt)));
      if (await machine.boots()) return await machine.follow(command);
      const said = machine.lastWords();
      if (attempt === BOOT_ATTEMPTS) throw new LabUnavailable(`the guest did not boot:\n${said}`);
      console.error(`the guest did not boot, trying again:\n${said}`);
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

class Machine implements AsyncDisposable {
  private readonly children: Bun.Subprocess[] = [];
  private readonly qemu: Bun.Subprocess;

  private constructor(private readonly at: string, children: readonly Bun.Subprocess[], qemu: Bun.Subprocess) {
    this.children.push(...children, qemu);
    this.qemu = qemu;
  }

  static async start(kernel: LabKernel, command: Command, at: string): Promise<Machine> {
    const virtiofsd = VIRTIOFSD_PATHS.find((path) => existsSync(path));
    if (virtiofsd === undefined) throw new LabUnavailable(`virtiofsd is at none of ${VIRTIOFSD_PATHS.join(", ")}`);
    const control = join(at, "control"), root = join(at, "root");
    for (const directory of [at, control, root]) mkdirSync(directory);
    const put = (name: string, words: readonly string[]) =>
      writeFileSync(join(control, name), words.map((word) => `${word}\0`).join(""));
    put("argv", command.argv);
    put("cwd", [command.cwd]);
    put("modules", command.modules);
    put("writable", command.writable);
    const entries = Object.entries(command.env).filter(([, value]) => value !== undefined);
    put("env", entries.map(([name, value]) => `${name}=${value}`));
    for (const name of ["out", "err"]) writeFileSync(join(control, name), "");
    const init = join(at, "init");
    const marks: Readonly<Record<string, string>> = {
      "@CONTROL@": control,
      "@MODULES@": kernel.modules,
      "@RELEASE@": kernel.release,
      "@NAME@": "@NAME@",
    };
    writeFileSync(
      init,
      readFileSync(join(HERE, "guest_init.pl"), "utf8").replace(/@[A-Z]+@/g, (mark) => marks[mark] ?? mark),
    );
    chmodSync(init, 0o755);

    const children: Bun.Subprocess[] = [];
    const start = (name: string, cmd: string[]): Bun.Subprocess => {
      const log = openSync(join(at, `${name}.log`), "w");
      try {
        const child = Bun.spawn({ cmd, stdin: "ignore", stdout: log, stderr: log });
        children.push(child);
        return child;
      } finally {
        closeSync(log);
      }
    };
    const socketOf = (tag: string) => join(at, `${tag}.socket`);
    // Each ends with this process, however that ends.
    const bound = ["setpriv", "--pdeathsig", "KILL"];
    const serve = (tag: string, source: string) =>
      start(tag, [
        ...bound,
        virtiofsd,
        `--socket-path=${socketOf(tag)}`,
        "-o",
        `source=${source}`,
        "-o",
        "cache=auto",
        "-o",
        "sandbox=chroot",
        "-f",
      ]);
    const tags = ["rootfs", "control", ...command.writable.map((_, i) => `writable${i}`)];
    start("rootfs", [
      ...["unshare", "--mount", "--propagation", "private", "--", "sh", join(HERE, "read_only_root.sh")],
      ...[root, virtiofsd, socketOf("rootfs")],
    ]);
    serve("control", control);
    command.writable.forEach((directory, i) => serve(`writable${i}`, directory));
    const deadlineMs = performance.now() + SOCKETS_MS;
    while (!tags.every((tag) => existsSync(socketOf(tag))) && performance.now() < deadlineMs) await Bun.sleep(10);

    const shares = tags.flatMap((tag) => [
      "-chardev",
      `socket,id=${tag},path=${socketOf(tag)}`,
      "-device",
      `vhost-user-fs-pci,chardev=${tag},tag=${tag}${tag === "rootfs" ? ",queue-size=1024" : ""}`,
    ]);
    const qemu = start("qemu", [
      ...bound,
      "qemu-system-x86_64",
      // One processor: with two, this QEMU panics the guest when the kernel patches its own code (netfilter hooks) under traffic.
      // `max`: AVX2, which Bun needs. `la57=off`: shorter page walks.
      ...["-accel", "tcg,tb-size=512", "-cpu", "max,la57=off", "-smp", "1", "-m", String(MEMORY_MB)],
      ...["-machine", "q35,memory-backend=memory,graphics=off,vmport=off"],
      ...["-object", `memory-backend-memfd,id=memory,size=${MEMORY_MB}M,share=on`],
      ...shares,
      ...["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-net", "none", "-no-reboot"],
      ...["-serial", `file:${join(at, "console")}`, "-kernel", kernel.image],
      ...["-append", `${KERNEL_ARGUMENTS} init=${init}`],
    ]);
    return new Machine(at, children.filter((child) => child !== qemu), qemu);
  }

  private has(name: string): boolean {
    return existsSync(join(this.at, "control", name));
  }

  private get isAlive(): boolean {
    return this.qemu.exitCode === null && this.qemu.signalCode === null;
  }

  async boots(): Promise<boolean> {
    const deadlineMs = performance.now() + BOOT_MS;
    while (this.isAlive && performance.now() < deadlineMs) {
      if (this.has("booted") || this.has("status")) return true;
      await Bun.sleep(POLL_MS);
    }
    return this.has("status");
  }

  /** Copies what the command says until it has ended; its status. */
  async follow({ timeoutMs, output }: Pick<Command, "timeoutMs" | "output">): Promise<number> {
    const deadlineMs = performance.now() + timeoutMs;
    using out = new Follower(join(this.at, "control", "out"), output ?? 1);
    using err = new Follower(join(this.at, "control", "err"), output ?? 2);
    let endedMs: number | undefined;
    while (this.isAlive) {
      out.copy();
      err.copy();
      const nowMs = performance.now();
      if (this.has("status")) {
        endedMs ??= nowMs;
        if (nowMs - endedMs > POWER_OFF_MS) break;
      } else if (nowMs > deadlineMs) {
        throw new Error(`the guest's command did not end within ${timeoutMs / 1000} s\n${this.lastWords()}`);
      }
      await Bun.sleep(POLL_MS);
    }
    out.copy();
    err.copy();
    if (!this.has("status")) throw new Error(`the guest ended without a status\n${this.lastWords()}`);
    return Number(readFileSync(join(this.at, "control", "status"), "utf8"));
  }

  /** The end of its console and of what QEMU said. */
  lastWords(): string {
    return ["console", "qemu.log", "rootfs.log"].map((name) => {
      const path = join(this.at, name);
      const text = existsSync(path) ? readFileSync(path, "utf8").trimEnd().split("\n").slice(-30).join("\n") : "";
      return `── ${name}\n${text}`;
    }).join("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.children) child.kill("SIGKILL");
    await Promise.all(this.children.map((child) => child.exited));
  }
}

/** A file that grows, copied to a descriptor as it does. */
class Follower implements Disposable {
  private readonly fd: number;
  private readonly chunk = Buffer.alloc(64 * 1024);

  constructor(path: string, private readonly into: number) {
    this.fd = openSync(path, "r");
  }

  copy(): void {
    for (;;) {
      const count = readSync(this.fd, this.chunk, 0, this.chunk.length, null);
      if (count === 0) return;
      for (let at = 0; at < count;) at += writeSync(this.into, this.chunk, at, count - at);
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
  }
}
