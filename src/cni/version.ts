import { CniError, CniErrorCode } from "./errors.ts";

/** Oldest first; the last is what answers where the caller named none. */
export const SUPPORTED_VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] as const;
export type CniVersion = (typeof SUPPORTED_VERSIONS)[number];
export const NEWEST_VERSION: CniVersion = "1.1.0";

export const isSupported = (text: string): text is CniVersion =>
  (SUPPORTED_VERSIONS as readonly string[]).includes(text);
/** Whether `text` is `major.minor.patch`, supported or not. */
export const isVersionText = (text: string): boolean =>
  /^(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})$/.test(text);

export const atLeast = (version: CniVersion, other: CniVersion): boolean =>
  SUPPORTED_VERSIONS.indexOf(version) >= SUPPORTED_VERSIONS.indexOf(other);

/**
 * The `cniVersion` of a network configuration.
 * @throws {CniError} 6 where it is no version, 1 where it is one we do not speak. An absent one stands for 0.1.0, as the
 * reference library reads it
 */
export function negotiate(found: unknown): CniVersion {
  const text = found === undefined || found === null || found === "" ? "0.1.0" : found;
  if (typeof text === "string" && isSupported(text)) return text;
  if (typeof text !== "string" || !isVersionText(text)) {
    throw new CniError(
      CniErrorCode.DecodeFailure,
      `cniVersion: found ${JSON.stringify(found)}, wanted a version such as "${NEWEST_VERSION}"`,
    );
  }
  throw new CniError(
    CniErrorCode.IncompatibleVersion,
    `cniVersion: found ${found === text ? `"${text}"` : `none, which stands for "${text}"`}, wanted one of ${
      SUPPORTED_VERSIONS.join(", ")
    }`,
  );
}
