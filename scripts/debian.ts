/** Debian packages that the tests and benchmarks check us by, installed where missing and where we may. */

const installed = (name: string): boolean => {
  const query = Bun.spawnSync({ cmd: ["dpkg-query", "-W", "-f=${Status}", name], stderr: "ignore" });
  return query.success && query.stdout.toString().includes("install ok installed");
};

/** Installs what is missing. Returns what is still missing afterwards: not root, not Debian, or no such package. */
export function ensureDebianPackages(names: readonly string[]): readonly string[] {
  if (Bun.which("dpkg-query") === null) return names;
  const missing = names.filter((name) => !installed(name));
  if (missing.length === 0 || process.getuid?.() !== 0) return missing;
  console.error(`installing Debian packages: ${missing.join(" ")} …`);
  const apt = (...args: string[]) =>
    Bun.spawnSync({
      cmd: ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", ...args],
      env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
      stdout: "ignore",
      stderr: "inherit",
    }).success;
  if (!apt("install", "--no-install-recommends", ...missing)) {
    apt("update");
    apt("install", "--no-install-recommends", ...missing);
  }
  return missing.filter((name) => !installed(name));
}
