/** Log lines to stderr: text that journald reads (`<6>` priorities), or JSON. */
import { writeSync } from "node:fs";
import type { Log } from "../sdk/plugin.ts";
import { LOG_LEVELS, type LogLevel } from "./config.ts";

export interface LogOptions {
  readonly level: LogLevel;
  readonly format: "text" | "json";
  /** Takes one line, with its newline; default: stderr. */
  readonly write?: (line: string) => void;
  /** Put `<N>` before text lines, sd-daemon(3): true under journald. */
  readonly priorities?: boolean;
}

/** syslog(3) severities. */
const SEVERITY: Readonly<Record<LogLevel, number>> = { debug: 7, info: 6, warn: 4, error: 3 };

export function createLog(options: LogOptions): Log {
  const write = options.write ?? writeStderr;
  const least = LOG_LEVELS.indexOf(options.level);
  const line = (level: LogLevel) => {
    if (LOG_LEVELS.indexOf(level) < least) return () => {};
    return (message: string, fields: Readonly<Record<string, unknown>> = {}) => {
      if (options.format === "json") {
        write(JSON.stringify({ time: new Date().toISOString(), level, message, ...plain(fields) }) + "\n");
        return;
      }
      const tail = Object.entries(plain(fields)).map(([key, value]) =>
        ` ${key}=${typeof value === "string" && /^\S+$/.test(value) ? value : JSON.stringify(value)}`
      );
      const prefix = options.priorities ? `<${SEVERITY[level]}>` : "";
      write(`${prefix}${level === "info" ? "" : `${level}: `}${message.replaceAll("\n", " | ")}${tail.join("")}\n`);
    };
  };
  return { debug: line("debug"), info: line("info"), warn: line("warn"), error: line("error") };
}

/** Swallows everything. */
export const silentLog: Log = { debug() {}, info() {}, warn() {}, error() {} };

function plain(fields: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined).map(([key, value]) => [
      key,
      value instanceof Error ? value.message : typeof value === "bigint" ? String(value) : value,
    ]),
  );
}

/** A log that cannot be written must not stop the daemon. */
function writeStderr(line: string): void {
  try {
    writeSync(2, line);
  } catch {
    // The reader of the pipe is gone.
  }
}
