/** Where things are when nobody says otherwise. */
export const DEFAULT_CONFIG_FILE = "/etc/manx/manx.yaml";
export const DEFAULT_STATE_DIRECTORY = "/var/lib/manx";
export const DEFAULT_SOCKET = "/run/manx/manx.sock";
