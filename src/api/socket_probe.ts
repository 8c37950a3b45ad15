import { connect } from "node:net";

const DEADLINE_MS = 1_000;

/** Whether somebody listens on the unix socket at `path`. */
export function isServed(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const done = (found: boolean) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(found);
    };
    // Nobody accepts, but somebody holds it: a daemon that is stopped or very busy.
    const timer = setTimeout(() => done(true), DEADLINE_MS);
    socket.on("connect", () => done(true));
    socket.on("error", () => done(false));
  });
}
