import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { CommandError } from "./client.ts";

export interface ManifestText {
  /** As errors name it. */
  readonly file: string;
  readonly text: string;
}

const EXTENSIONS = /\.(yaml|yml|json)$/;

/** Files, directories (their .yaml, .yml and .json files, sorted, not below) and `-`. @throws {CommandError} */
export function readManifests(paths: readonly string[]): readonly ManifestText[] {
  const refuse = (path: string, found: string, wanted = "a manifest") =>
    new CommandError(`${path}: found ${found}, wanted ${wanted}`);
  if (paths.filter((path) => path === "-").length > 1) throw refuse("-f -", "standard input twice", "it once");
  const read = (path: string | 0, file: string): ManifestText => {
    try {
      return { file, text: readFileSync(path, "utf8") };
    } catch (error) {
      throw refuse(file, (error as NodeJS.ErrnoException).code ?? String(error));
    }
  };
  return paths.flatMap((path) => {
    if (path === "-") return [read(0, "standard input")];
    let isDirectory: boolean;
    try {
      isDirectory = statSync(path).isDirectory();
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      throw refuse(path, code === "ENOENT" ? "no such file" : code ?? String(error));
    }
    if (!isDirectory) return [read(path, path)];
    const names = readdirSync(path).filter((name) => EXTENSIONS.test(name)).sort();
    if (names.length === 0) throw refuse(path, "a directory without .yaml, .yml or .json files");
    return names.map((name) => read(join(path, name), join(path, name)));
  });
}
