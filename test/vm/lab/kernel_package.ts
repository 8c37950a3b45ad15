/** The guest's kernel: a Debian package, downloaded and unpacked into a cache outside the repository, never installed. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { ensureDebianPackages } from "../../../scripts/debian.ts";

/** Debian 12's newer kernel for virtual machines: small, and with everything that this suite is for. */
const META_PACKAGE = "linux-image-6.12-cloud-amd64";
/** `zstd` and `xz`: how kernel and modules are packed; `kmod`: depmod here, modprobe in the guest; `setpriv`, `unshare`. */
const MACHINE_PACKAGES = ["qemu-system-x86", "kmod", "zstd", "xz-utils", "util-linux"];
/** The magic of a zstd frame (RFC 8878 section 3.1.1): a bzImage is a small program and one of these. */
const ZSTD_MAGIC = Buffer.from([0x28, 0xb5, 0x2f, 0xfd]);
const ELF_MAGIC = Buffer.from("\x7fELF", "latin1");

/** What stands between this machine and a second kernel: the suite is skipped, saying this. */
export class LabUnavailable extends Error {
  override readonly name = "LabUnavailable";
}

export interface LabKernel {
  readonly release: string;
  /** An ELF image, entered directly (PVH): nothing is unpacked at boot. */
  readonly image: string;
  /** `/lib/modules/RELEASE` of the guest. */
  readonly modules: string;
}

function run(cmd: readonly string[], cwd?: string): string {
  const child = Bun.spawnSync({ cmd: [...cmd], cwd, stdout: "pipe", stderr: "pipe" });
  if (child.success) return child.stdout.toString();
  throw new LabUnavailable(`${cmd[0]} failed: ${child.stderr.toString().trim().split("\n").at(-1) ?? ""}`);
}

const cacheDirectory = (): string =>
  process.env.MANX_VM_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "manx-vm");

/** Installs what is missing, `tools` besides QEMU, and gives the kernel. @throws {LabUnavailable} */
export function prepareKernel(tools: readonly string[]): LabKernel {
  if (process.platform !== "linux" || process.arch !== "x64") {
    throw new LabUnavailable(`the guest is an x86-64 Linux, this is ${process.platform} ${process.arch}`);
  }
  if (process.getuid?.() !== 0) throw new LabUnavailable("it needs root, to bind this machine's root read-only");
  const missing = ensureDebianPackages([...MACHINE_PACKAGES, ...tools]);
  if (missing.length > 0) {
    throw new LabUnavailable(`these Debian packages cannot be installed: ${missing.join(" ")}`);
  }
  const cache = cacheDirectory();
  mkdirSync(cache, { recursive: true });
  const name = packageName();
  const cached = readdirSync(cache).filter((entry) => existsSync(join(cache, entry, "complete"))).sort();
  // Without the archive an older one will do.
  const release = name?.slice("linux-image-".length) ?? cached.at(-1);
  if (release === undefined) throw new LabUnavailable(`${META_PACKAGE} is in no apt list, and none is in ${cache}`);
  if (!cached.includes(release)) unpack(cache, name!, release);
  return { release, image: join(cache, release, "vmlinux"), modules: join(cache, release, "modules") };
}

/** The package of this day's release; undefined where the archive is not known. */
function packageName(): string | undefined {
  const find = () => /^ {2}Depends: (linux-image-[0-9]\S*)$/m.exec(run(["apt-cache", "depends", META_PACKAGE]))?.[1];
  const quietly = () => {
    try {
      return find();
    } catch {
      return undefined;
    }
  };
  const known = quietly();
  if (known !== undefined) return known;
  Bun.spawnSync({ cmd: ["apt-get", "-q", "update"], stdout: "ignore", stderr: "ignore" });
  return quietly();
}

function unpack(cache: string, name: string, release: string): void {
  console.error(`downloading ${name} …`);
  const scratch = mkdtempSync(join(cache, "new-"));
  try {
    run(["apt-get", "download", "-q", name], scratch);
    const archive = readdirSync(scratch).find((entry) => entry.endsWith(".deb"));
    if (archive === undefined) throw new LabUnavailable(`apt-get download ${name} left no package`);
    run(["dpkg", "-x", archive, "tree"], scratch);
    const tree = join(scratch, "tree"), made = join(scratch, "made");
    mkdirSync(join(made, "lib"), { recursive: true });
    writeFileSync(join(made, "vmlinux"), elfOf(join(tree, "boot", `vmlinuz-${release}`)));
    const lib = existsSync(join(tree, "usr/lib/modules")) ? join(tree, "usr/lib") : join(tree, "lib");
    renameSync(join(lib, "modules"), join(made, "lib/modules"));
    // Unpacked once here rather than at each boot there.
    run(["sh", "-c", 'find "$1" -name "*.ko.xz" -print0 | xargs -0 -r -P2 -n64 xz -d', "sh", made]);
    run(["depmod", "-b", made, release]);
    renameSync(join(made, "lib/modules", release), join(made, "modules"));
    writeFileSync(join(made, "complete"), `${name}\n`);
    rmSync(join(cache, release), { recursive: true, force: true });
    renameSync(made, join(cache, release));
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** The kernel within a bzImage; the bzImage itself where it is packed another way, which boots too, later. */
function elfOf(path: string): Uint8Array {
  const packed = readFileSync(path);
  const at = packed.indexOf(ZSTD_MAGIC);
  if (at < 0) return packed;
  // What follows the frame in the file is not part of it, and zstd says so with its exit status.
  const child = Bun.spawnSync({ cmd: ["zstd", "-dcq"], stdin: packed.subarray(at), stdout: "pipe", stderr: "ignore" });
  return child.stdout.subarray(0, 4).equals(ELF_MAGIC) ? child.stdout : packed;
}
