/** What people see: text on standard output, complaints on standard error. */
import { writeSync } from "node:fs";
import { isatty } from "node:tty";

const STDOUT = 1;
const STDERR = 2;

/** The whole text, even through a full pipe; a reader that has gone away ends the program quietly. */
export function write(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length;) {
    try {
      at += writeSync(fd, bytes, at);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "EAGAIN") Bun.sleepSync(1);
      else if (code === "EPIPE") process.exit(0);
      else throw error;
    }
  }
}

export const print = (text: string): void => write(STDOUT, text.endsWith("\n") || text === "" ? text : `${text}\n`);
export const complain = (text: string): void => write(STDERR, text.endsWith("\n") ? text : `${text}\n`);

/** Whether `fd` takes colours: https://no-color.org. */
export function hasColour(
  fd: number = STDOUT,
  env: Readonly<Record<string, string | undefined>> = process.env,
): boolean {
  return isatty(fd) && !env.NO_COLOR && env.TERM !== "dumb";
}

export interface Paint {
  good(text: string): string;
  bad(text: string): string;
  dim(text: string): string;
  bold(text: string): string;
}

export function createPaint(colour: boolean): Paint {
  const wrap = (on: number) => (text: string) => colour ? `\x1b[${on}m${text}\x1b[0m` : text;
  return { good: wrap(32), bad: wrap(31), dim: wrap(2), bold: wrap(1) };
}

/** Columns three spaces apart, as kubectl has them; the last one is not padded. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const lines = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...lines.map((line) => Bun.stringWidth(line[column] ?? ""))));
  return lines.map((line) =>
    line.map((cell, column) =>
      column === line.length - 1 ? cell : cell + " ".repeat(widths[column]! - Bun.stringWidth(cell) + 3)
    ).join("").trimEnd()
  ).join("\n") + "\n";
}

/** `3d`, `5h12m`, `40s`: as kubectl says ages. */
export function duration(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (minutes < 2) return `${seconds}s`;
  if (minutes < 10) return `${minutes}m${seconds % 60 > 0 ? `${seconds % 60}s` : ""}`;
  if (hours < 3) return `${minutes}m`;
  if (hours < 8) return `${hours}h${minutes % 60 > 0 ? `${minutes % 60}m` : ""}`;
  if (hours < 48) return `${hours}h`;
  return `${days}d`;
}
