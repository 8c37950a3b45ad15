/** The one place a version comes from: package.json, bundled into the executable. */
import manifest from "../package.json" with { type: "json" };

export const VERSION: string = manifest.version;
