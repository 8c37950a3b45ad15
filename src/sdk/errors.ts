/** Errors that cross the plugin contract. A bug asserts; these are for what can go wrong in operation. */

/** The base: `code` is stable and for programs, `message` says what was attempted, what was found and what is wanted. */
export class ManxError extends Error {
  override readonly name: string = "ManxError";
  constructor(readonly code: string, message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/** A configuration value cannot be used. `path` is its key path, `ipam.config.pools[1].cidr` for example. */
export class ConfigError extends ManxError {
  override readonly name = "ConfigError";
  constructor(readonly path: string, found: string, wanted: string, options?: ErrorOptions) {
    super("config", `${path === "" ? "config" : path}: found ${found}, wanted ${wanted}`, options);
  }
}

/** A compare-and-swap lost: somebody else wrote one of the keys first. Read again and retry. */
export class ConflictError extends ManxError {
  override readonly name = "ConflictError";
  constructor(readonly keys: readonly string[], options?: ErrorOptions) {
    super("conflict", `commit refused: ${keys.join(", ")} changed since read`, options);
  }
}

/** No address is left where one was asked for. */
export class ExhaustedError extends ManxError {
  override readonly name = "ExhaustedError";
  constructor(message: string, options?: ErrorOptions) {
    super("exhausted", message, options);
  }
}

/** A manifest or request that breaks the rules; nothing was stored. */
export class RefusedError extends ManxError {
  override readonly name = "RefusedError";
  constructor(readonly reasons: readonly string[], options?: ErrorOptions) {
    super("refused", reasons.join("\n"), options);
  }
}

/** The store holds something that cannot be what we wrote; nothing was changed. */
export class CorruptError extends ManxError {
  override readonly name = "CorruptError";
  constructor(message: string, options?: ErrorOptions) {
    super("corrupt", message, options);
  }
}

/** The other side is away or not ready: try again later. */
export class UnavailableError extends ManxError {
  override readonly name = "UnavailableError";
  constructor(message: string, options?: ErrorOptions) {
    super("unavailable", message, options);
  }
}

/** Text for people from anything thrown: messages along the chain of causes, never a stack. */
export function explainError(error: unknown): string {
  const parts: string[] = [];
  for (let at = error, depth = 0; at !== undefined && at !== null && depth < 8; depth++) {
    const message = at instanceof Error ? at.message : String(at);
    if (message !== "" && !parts.some((part) => part.includes(message))) parts.push(message);
    at = at instanceof Error ? at.cause : undefined;
  }
  return parts.join(": ");
}
