/** The CNI personality. Nothing here may load a package or a part of the daemon: its start is most of a pod's ADD. */
export { callDaemon, unansweredExchange } from "./daemon.ts";
export { runCni } from "./run.ts";
export { readStdin } from "./stdio.ts";
