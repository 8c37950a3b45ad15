/** The house rules that a program can check: who imports whom, what pure code may not name, what no file may hold. */
import { expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join, normalize, relative } from "node:path";

const ROOT = join(import.meta.dir, "..");

function* sourceFiles(folder: string): Generator<string> {
  for (const name of readdirSync(join(ROOT, folder)).sort()) {
    const path = join(folder, name);
    if (statSync(join(ROOT, path)).isDirectory()) yield* sourceFiles(path);
    else if (name.endsWith(".ts")) yield path;
  }
}

const ALL = ["src", "plugins", "dataplanes", "deploy", "scripts", "test"].flatMap((folder) => [...sourceFiles(folder)]);
const isTest = (path: string): boolean =>
  path.endsWith("_test.ts") || path.startsWith("test/") || path.includes("/testdata/");
const PRODUCT = ALL.filter((path) => !isTest(path) && !path.startsWith("scripts/") && !path.startsWith("deploy/"));
const textOf = (path: string): string => readFileSync(join(ROOT, path), "utf8");

/** A room: the part of the tree that a file belongs to. */
function room(path: string): string {
  const parts = path.split("/");
  if (path === "src/main.ts" || path === "src/version.ts") return "main";
  if (parts[0] === "src") return parts[1]!;
  if (parts[0] === "plugins") return `plugins/${parts[1]}/${parts[2]}`;
  if (parts[0] === "dataplanes") return `dataplanes/${parts[1]}`;
  return parts[0]!;
}

interface Import {
  readonly from: string;
  /** A path from the root, or the bare specifier of a package. */
  readonly to: string;
  readonly typeOnly: boolean;
  readonly dynamic: boolean;
}

function importsOf(path: string): Import[] {
  const text = textOf(path);
  const found: Import[] = [];
  const add = (specifier: string, typeOnly: boolean, dynamic: boolean) =>
    found.push({
      from: path,
      to: specifier.startsWith(".") ? normalize(join(dirname(path), specifier)) : specifier,
      typeOnly,
      dynamic,
    });
  for (const match of text.matchAll(/^\s*(?:import|export)\s+(type\s+)?(?:[^"';]*?\sfrom\s+)?"([^"]+)"/gm)) {
    add(match[2]!, match[1] !== undefined, false);
  }
  for (const match of text.matchAll(/\bimport\(\s*"([^"]+)"\s*\)/g)) add(match[1]!, false, true);
  return found;
}

/** What each room may import, besides itself. Packages are named; `node:` and `bun:` are judged apart. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  model: [],
  sdk: ["model"],
  calc: ["model", "sdk(types)"],
  kernel: ["model", "sdk(types)"],
  host: ["sdk", "model", "calc", "kernel", "main", "package:yaml"],
  api: ["sdk", "model", "host", "cni", "main", "package:hono"],
  cni: ["sdk", "model", "main"],
  cli: ["sdk", "model", "host", "api", "lab", "kernel", "main", "package:commander", "package:yaml"],
  lab: ["sdk", "model", "host", "api", "kernel", "main", "package:yaml"],
  main: ["cni", "cli", "host", "kernel", "package.json"],
};

/** What of the kernel room plugins and dataplanes may use: schemas, the codec, errors, what several need that is made of these; no sockets, no FFI. */
const PLUGIN_KERNEL =
  /^src\/kernel\/(netlink\/schema\/|netlink\/codec|netlink\/message|netlink\/generic|errors\.ts|rtnetlink\.ts|service_flows\.ts|packet_log\.ts)/;

function refusal(edge: Import): string | undefined {
  const { from, to } = edge;
  const here = room(from);
  const isPackage = !existsSync(join(ROOT, to)) && !to.startsWith("src/") && !to.startsWith("plugins/");
  if (to.startsWith("node:") || to.startsWith("bun:") || to === "bun") {
    return ["model", "calc"].includes(here) || /\/(render|plan)\.ts$/.test(from)
      ? `${here} is pure, and ${to} is not`
      : undefined;
  }
  if (here.startsWith("plugins/") || here.startsWith("dataplanes/")) {
    if (isPackage) return `plugins bring no packages: ${to}`;
    if (room(to) === here || ["sdk", "model"].includes(room(to)) || PLUGIN_KERNEL.test(to)) return undefined;
    if (room(to) === "kernel" && edge.typeOnly) return undefined;
    return "plugins and dataplanes see sdk, model and the kernel's schemas only";
  }
  const allowed = ALLOWED[here];
  if (allowed === undefined) return `no rule for the room ${here}`;
  if (to === "package.json") {
    return allowed.includes("package.json") ? undefined : "the version comes from src/version.ts";
  }
  if (isPackage) {
    const name = to.startsWith("@") ? to.split("/").slice(0, 2).join("/") : to.split("/")[0]!;
    return allowed.includes(`package:${name}`) ? undefined : `${here} may not use the package ${name}`;
  }
  const there = room(to);
  if (there === here || allowed.includes(there)) return undefined;
  if (edge.typeOnly && allowed.includes(`${there}(types)`)) return undefined;
  if (from === "src/host/builtin.ts" && (there.startsWith("plugins/") || there.startsWith("dataplanes/"))) {
    return undefined;
  }
  return `${here} may not import ${there}`;
}

test("every import of product code is an edge that the architecture allows", () => {
  const refused = PRODUCT.flatMap((path) =>
    importsOf(path).flatMap((edge) => {
      const why = refusal(edge);
      return why === undefined ? [] : [`${edge.from} → ${edge.to}: ${why}`];
    })
  );
  expect(refused).toEqual([]);
});

test("the tidy rules refuse the edges they are there for", () => {
  const edge = (from: string, to: string): Import => ({ from, to, typeOnly: false, dynamic: false });
  expect(refusal(edge("src/model/address.ts", "src/sdk/errors.ts"))).toBeDefined();
  expect(refusal(edge("src/calc/mod.ts", "node:fs"))).toBeDefined();
  expect(refusal(edge("plugins/cni/veth/mod.ts", "src/kernel/libc.ts"))).toBeDefined();
  expect(refusal(edge("plugins/cni/veth/mod.ts", "src/host/config.ts"))).toBeDefined();
  expect(refusal(edge("src/cni/mod.ts", "hono"))).toBeDefined();
  expect(refusal(edge("src/host/daemon.ts", "plugins/cni/veth/mod.ts"))).toBeDefined();
  expect(refusal(edge("src/host/builtin.ts", "plugins/cni/veth/mod.ts"))).toBeUndefined();
});

/** The text without comments and string contents, so that words in prose are not code. */
const codeOf = (path: string): string =>
  textOf(path)
    .replace(/\/\*[\s\S]*?\*\//g, "")
    .replace(/"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'/g, '""')
    .replace(/\/\/.*$/gm, "");

test("pure code names no clock, no chance and no process", () => {
  const pure = PRODUCT.filter((path) => /^src\/(model|calc)\//.test(path) || /\/(render|plan)\.ts$/.test(path));
  expect(pure.length).toBeGreaterThan(0);
  const found = pure.flatMap((path) =>
    [...codeOf(path).matchAll(/\b(Date|Math\.random|process|Bun|performance|crypto)\b\s*[.(]/g)].map((match) =>
      `${path}: ${match[0]}`
    )
  );
  expect(found).toEqual([]);
});

test("only the kernel room opens libraries", () => {
  expect(PRODUCT.filter((path) => !path.startsWith("src/kernel/") && /\bdlopen\b|"bun:ffi"/.test(textOf(path))))
    .toEqual([]);
});

test("no child process touches the kernel: only the lab starts processes, its own daemons and CNI calls", () => {
  const starts = /\bBun\.(spawn|spawnSync|\$)|"node:child_process"|"child_process"/;
  expect(PRODUCT.filter((path) => starts.test(textOf(path)) && !path.startsWith("src/lab/"))).toEqual([]);
});

test("file names are snake_case and no file is called after nothing", () => {
  const bad = ALL.filter((path) => {
    const name = path.split("/").pop()!;
    return !/^[a-z0-9_]+(\.d)?\.ts$/.test(name) || /^(utils?|helpers?|manager|common)(_test)?\.ts$/.test(name);
  });
  expect(bad).toEqual([]);
});

test("no source file holds an unfinished mark, a machine's path or a registry's host", () => {
  const marks = new RegExp(["TO" + "DO", "FIX" + "ME", "X" + "XX"].map((mark) => `\\b${mark}\\b`).join("|"));
  const places = new RegExp(["/wo" + "rk/", "/fa" + "rm/", "registry\\." + "npm", "deb\\." + "debian"].join("|"));
  const bad = ALL.filter((path) => path !== "test/tidy_test.ts").filter((path) =>
    marks.test(textOf(path)) || places.test(textOf(path))
  );
  expect(bad).toEqual([]);
});

test("lock files name no host", () => {
  for (const name of ["package-lock.json", "bun.lock"]) {
    if (!existsSync(join(ROOT, name))) continue;
    expect(
      [...readFileSync(join(ROOT, name), "utf8").matchAll(/"resolved":\s*"http[^"]*"|"https?:\/\/[^"]*\.tgz"/g)].map(
        String,
      ),
    ).toEqual([]);
  }
});

test("dependencies are pinned to one version", () => {
  const manifest = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
  const versions = Object.entries<string>({ ...manifest.dependencies, ...manifest.devDependencies });
  expect(versions.filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version))).toEqual([]);
});

test("every plugin and dataplane folder has a README, a mod.ts and a test", () => {
  const folders = [
    ...readdirSync(join(ROOT, "plugins")).flatMap((kind) =>
      readdirSync(join(ROOT, "plugins", kind)).map((name) => `plugins/${kind}/${name}`)
    ),
    ...readdirSync(join(ROOT, "dataplanes")).map((name) => `dataplanes/${name}`),
  ];
  const bare = folders.flatMap((folder) => {
    const names = readdirSync(join(ROOT, folder));
    const lacks = [
      names.includes("README.md") ? "" : "README.md",
      names.includes("mod.ts") ? "" : "mod.ts",
      names.some((name) => name.endsWith("_test.ts")) ? "" : "a test",
    ].filter((lack) => lack !== "");
    return lacks.map((lack) => `${folder} lacks ${lack}`);
  });
  expect(bare).toEqual([]);
});

test("namespace switches hold no await", () => {
  const bad = PRODUCT.flatMap((path) =>
    [...codeOf(path).matchAll(/\binNamespace\(\s*[^,()]+,\s*async\b/g)].map((match) =>
      `${relative(".", path)}: ${match[0]}`
    )
  );
  expect(bad).toEqual([]);
});
