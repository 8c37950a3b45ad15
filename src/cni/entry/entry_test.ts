/** The entry of the executable before a small program, on a real kernel, with a daemon that answers as each test wants. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import type { Socket, UnixSocketListener } from "bun";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { answerCall } from "../call.ts";
import { STDIN_LIMIT_BYTES } from "../stdio.ts";
import { buildPrograms, why } from "./testdata/build.ts";

const directory = mkdtempSync(join(tmpdir(), "manx-entry-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
const SHORT_DEADLINE_MS = 1000;
const defaultSocket = join(directory, "default.sock");
const build = (answerDeadlineMs?: number) =>
  why === undefined ? buildPrograms(directory, { answerDeadlineMs, defaultSocket }) : { plain: "", entered: "" };
const { plain, entered } = build();
const { entered: impatient } = build(SHORT_DEADLINE_MS);

const ENV = {
  PATH: "/bin",
  CNI_COMMAND: "ADD",
  CNI_CONTAINERID: "c",
  CNI_NETNS: "/n",
  CNI_IFNAME: "eth0",
  CNI_ARGS: "A=b;C=d=e",
};

interface Ended {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | number | undefined;
  readonly output: string;
  readonly errors: string;
}

async function run(
  program: string,
  { input = "", env = ENV, args = [] }: {
    input?: string | Uint8Array | "inherit";
    env?: Readonly<Record<string, string>>;
    args?: readonly string[];
  },
): Promise<Ended> {
  const child = Bun.spawn([program, ...args], {
    env,
    stdin: typeof input === "string" ? new TextEncoder().encode(input) : input,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [output, errors, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { status: child.exitCode ?? status, signal: child.signalCode ?? undefined, output, errors };
}

/** Listens on a socket of its own and lets `answer` see each request once it is whole. */
class Daemon implements Disposable {
  static #count = 0;
  readonly requests: string[] = [];
  readonly #listener: UnixSocketListener<{ text: string }>;

  constructor(
    answer: (connection: Socket<{ text: string }>, request: string) => void,
    readonly path = join(directory, `${Daemon.#count++}.sock`),
  ) {
    this.#listener = Bun.listen({
      unix: this.path,
      socket: {
        open: (connection) => void (connection.data = { text: "" }),
        data: (connection, data) => {
          connection.data.text += data.toString("latin1");
          const { text } = connection.data;
          const head = text.indexOf("\r\n\r\n");
          const length = Number(/content-length: (\d+)/i.exec(text)?.[1]);
          if (head < 0 || text.length < head + 4 + length) return;
          this.requests.push(text);
          answer(connection, text);
        },
      },
    });
  }

  [Symbol.dispose](): void {
    this.#listener.stop(true);
  }
}

const http = (body: string, status = "200 OK") =>
  `HTTP/1.1 ${status}\r\nContent-Type: text/plain\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
const answering = (text: string) => new Daemon((connection) => void connection.write(text));
const configOf = (path: string) => JSON.stringify({ cniVersion: "1.0.0", name: "n", type: "manx", socket: path });
const leftTo = (ended: Ended) => ended.output.includes("argument ");

describe.skipIf(why !== undefined)(`the entry${why === undefined ? "" : ` (skipped: ${why})`}`, () => {
  describe("starts the program as the kernel does", () => {
    const same = async (options: Parameters<typeof run>[1]) => {
      const [expected, found] = [await run(plain, options), await run(entered, options)];
      expect(found.output.replaceAll(entered, plain)).toBe(expected.output);
      expect({ ...found, output: "" }).toEqual({ ...expected, output: "" });
      expect(expected).toMatchObject({ status: 7, signal: undefined });
      return found.output;
    };

    test("arguments, environment, auxiliary vector, headers, constructors, standard input", async () => {
      const output = await same({ input: "hello", env: { A: "1", B: "two" }, args: ["x", "", "y z"] });
      expect(output).toContain("argument y z\nvariable A=1\nvariable B=two\n");
      expect(output).toContain("thread's own 42, constructed 1");
      expect(output).toContain("standard input begins hello\nstandard input 5 bytes\nexit handler\n");
    });

    test("whatever the numbers of arguments and variables", async () => {
      for (let count = 0; count < 6; count++) {
        const args = Array.from({ length: count }, (_, i) => `argument${i}`);
        for (let variables = 0; variables < 3; variables++) {
          await same({ args, env: Object.fromEntries(args.slice(0, variables).map((name) => [name, name])) });
        }
      }
    });

    test("with an environment of 100,000 bytes", async () => {
      await same({ env: Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`V${i}`, "v".repeat(100)])) });
    });

    test("where CNI_COMMAND is none that the daemon is asked", async () => {
      for (const command of ["VERSION", "", "AD", "ADDS", "add"]) {
        await same({ input: configOf("/nowhere"), env: { ...ENV, CNI_COMMAND: command } });
      }
    });

    test("where nobody listens", async () => {
      await same({ input: configOf(join(directory, "nobody.sock")) });
    });
  });

  test("hands environment and standard input to the daemon, and its answer to standard output", async () => {
    for (const status of [0, 1]) {
      using daemon = answering(http(`${status}{"some":"result"}\n`));
      const input = configOf(daemon.path);
      const env = { ...ENV, CNI_PATH: "/opt/ä", OTHER: "secret" };
      expect(await run(entered, { input, env })).toEqual({
        status,
        signal: undefined,
        output: '{"some":"result"}\n',
        errors: "",
      });
      expect(daemon.requests).toHaveLength(1);
      const [head, body] = daemon.requests[0]!.split("\r\n\r\n") as [string, string];
      expect(head).toStartWith("POST /v1/cni/call HTTP/1.1\r\nHost: manx\r\n");
      expect(head).not.toContain("secret");
      const asked: unknown[] = [];
      await answerCall(Buffer.from(body, "latin1"), (path, request) => {
        asked.push(path, request);
        return Promise.reject(new Error("seen"));
      });
      expect(asked).toEqual([
        "/v1/cni/add",
        expect.objectContaining({ containerId: "c", netns: "/n", ifName: "eth0", args: { A: "b", C: "d=e" } }),
      ]);
      expect(body).not.toContain("secret");
    }
  });

  test("asks for each verb of the daemon's", async () => {
    using daemon = answering(http("0"));
    for (const command of ["ADD", "DEL", "CHECK", "GC", "STATUS"]) {
      const ended = await run(entered, { input: configOf(daemon.path), env: { ...ENV, CNI_COMMAND: command } });
      expect(ended).toMatchObject({ status: 0, output: "" });
    }
    expect(daemon.requests).toHaveLength(5);
  });

  test("takes an answer that comes byte by byte", async () => {
    const text = http("0the answer");
    using daemon = new Daemon(async (connection) => {
      for (const byte of text) {
        connection.write(byte);
        connection.flush();
        await Bun.sleep(1);
      }
    });
    expect(await run(entered, { input: configOf(daemon.path) })).toMatchObject({ status: 0, output: "the answer" });
  });

  test("takes large requests and large answers", async () => {
    const result = "x".repeat(3_000_000);
    using daemon = new Daemon((connection) => {
      let rest = Buffer.from(http(`0${result}`));
      const more = () => {
        rest = rest.subarray(connection.write(rest));
        if (rest.length > 0) setTimeout(more, 1);
      };
      more();
    });
    const input = JSON.stringify({ socket: daemon.path, filler: "y".repeat(5_000_000) });
    const ended = await run(entered, { input });
    expect([ended.status, ended.output.length]).toEqual([0, result.length]);
    expect(daemon.requests[0]!.endsWith(input)).toBe(true);
  });

  test("finds the socket however the configuration is written", async () => {
    using daemon = answering(http("0found"));
    const { path } = daemon;
    for (
      const input of [
        `{"socket":"${path}"}`,
        `{\n  "type": "socket",\n  "socket"\t:\r\n "${path}"\n}`,
        `{"name":"socket","socket":"${path}"}`,
        `{"a":{"socket":"/nowhere","b":[{"socket":null}]},"c":["socket"],"d":{},"socket":"${path}"}`,
        `{"a\\"b":"\\\\","c":"{\\"socket\\":\\"/nowhere\\"","socket":"${path}"}`,
        `{"filler":"${"x".repeat(70_000)}","socket":"${path}"}`,
      ]
    ) expect(await run(entered, { input })).toMatchObject({ status: 0, output: "found" });
  });

  test("asks the default socket where the configuration names none of its own", async () => {
    using _ = new Daemon((connection) => void connection.write(http("0default")), defaultSocket);
    for (const input of ["{}", "", '{"runtimeConfig":{"socket":"/nowhere"}}', ']]}{"socket":"/nowhere"}']) {
      expect(await run(entered, { input })).toMatchObject({ status: 0, output: "default" });
    }
  });

  describe("leaves to the program, with standard input whole,", () => {
    const cases: Readonly<Record<string, string>> = {
      "a socket that is no text": '{"socket":5}',
      "a socket that is not the configuration's own": `{"runtimeConfig":{"socket":"/nowhere"}}`,
      "brackets that do not match": `]]}{"socket":"/nowhere"}`,
      "an escape at the end": '{"socket":"/tmp/x\\',
      "a socket with an escape": '{"socket":"/tmp\\/x"}',
      "a socket without an end": '{"socket":"/tmp/x',
      "a socket with too long a name": `{"socket":"/${"x".repeat(200)}"}`,
      "a socket with no name": '{"socket":""}',
      "input that is no JSON": "hello",
      "no input": "",
    };
    for (const [title, input] of Object.entries(cases)) {
      test(title, async () => {
        const ended = await run(entered, { input });
        expect(ended).toMatchObject({ status: 7, signal: undefined, errors: "" });
        expect(ended.output).toContain(`standard input ${input.length} bytes\n`);
        expect(ended.output).not.toContain("MANX_CNI_UNANSWERED");
      });
    }

    for (const size of [STDIN_LIMIT_BYTES, STDIN_LIMIT_BYTES + 1, STDIN_LIMIT_BYTES + 1_000_000]) {
      test(`input of ${size} bytes, as far as it may be read`, async () => {
        const ended = await run(entered, { input: new Uint8Array(size).fill(0x20) });
        expect(ended.output).toContain(`standard input ${Math.min(size, STDIN_LIMIT_BYTES + 1)} bytes\n`);
      });
    }

    test("a standard input that cannot be read", async () => {
      const script = `exec '${entered}' <&-`;
      const shell = Bun.spawnSync(["/bin/sh", "-c", script], { env: ENV });
      expect([shell.exitCode, shell.stdout.toString()]).toEqual([
        7,
        expect.stringContaining("standard input -1 bytes"),
      ]);
    });

    const answers: Readonly<Record<string, string>> = {
      "an answer with another status": http("0{}", "404 Not Found"),
      "a call for another daemon": http("{}", "421 Misdirected Request"),
      "an answer without a length": "HTTP/1.1 200 OK\r\n\r\n0",
      "an answer of no length": http(""),
      "an answer that is longer than may be": "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n0",
      "an answer with neither success nor failure": http("2{}"),
      "what is not HTTP": "SSH-2.0-OpenSSH_9.6\r\n\r\n",
    };
    for (const [title, text] of Object.entries(answers)) {
      test(title, async () => {
        using daemon = answering(text);
        const input = configOf(daemon.path);
        const ended = await run(entered, { input });
        expect(ended).toMatchObject({ status: 7, signal: undefined, errors: "" });
        expect(ended.output).toContain(`standard input ${input.length} bytes\n`);
        expect(ended.output).not.toContain("MANX_CNI_UNANSWERED");
        expect(daemon.requests).toHaveLength(1);
      });
    }
  });

  describe("tells the program that the daemon was asked already", () => {
    const expectUnanswered = async (program: string, daemon: Daemon, error: number) => {
      const input = configOf(daemon.path);
      const ended = await run(program, { input, args: ["x"] });
      expect(ended).toMatchObject({ status: 7, signal: undefined, errors: "" });
      expect(ended.output).toContain(`variable MANX_CNI_UNANSWERED=${error}\nentry `);
      expect(ended.output).toContain(`variable CNI_ARGS=A=b;C=d=e\n`);
      expect(ended.output).toContain(`standard input ${input.length} bytes\n`);
    };

    test("and closed the connection", async () => {
      const texts = ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0and then nothing"];
      for (const text of texts) {
        using daemon = new Daemon((connection) => {
          connection.write(text);
          connection.end();
        });
        await expectUnanswered(entered, daemon, 104);
      }
    });

    test("and did not answer in time", async () => {
      using daemon = new Daemon(() => {});
      await expectUnanswered(impatient, daemon, 110);
    });
  });

  test("is never killed by what a daemon answers", async () => {
    let seed = 7;
    const random = (below: number) => (seed = (seed * 1103515245 + 12345) % 2147483648) % below;
    const pieces = [
      "HTTP/1.1 200 OK",
      "\r\n",
      "\r\n\r\n",
      "Content-Length: ",
      "content-length:",
      "5",
      "0",
      "12",
      "\0",
      "x",
      " ",
    ];
    for (let round = 0; round < 200; round++) {
      const text = Array.from({ length: random(12) }, () => pieces[random(pieces.length)]).join("");
      using daemon = new Daemon((connection) => {
        connection.write(text);
        connection.end();
      });
      const ended = await run(entered, { input: configOf(daemon.path) });
      if (ended.signal !== undefined || ![0, 1, 7].includes(ended.status!)) {
        throw new Error(JSON.stringify({ text, ended }));
      }
      if (!leftTo(ended)) expect(text).toContain("HTTP/1.1 200 ");
    }
  });
});
