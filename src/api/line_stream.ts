/** Values that come over time, as lines of JSON. */

const encoder = new TextEncoder();

/**
 * An `application/x-ndjson` body of what `values` yields, a line each, after an empty one. A reader that does not read makes
 * `values` wait, and one that leaves makes it end.
 */
export function lineStream(values: AsyncIterator<unknown>): Response {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      // The runtime sends the head of a response with the first of its body: whoever waits is to know that there is an answer.
      controller.enqueue(encoder.encode("\n"));
    },
    async pull(controller) {
      const { value, done } = await values.next();
      if (done) controller.close();
      else controller.enqueue(encoder.encode(`${JSON.stringify(value)}\n`));
    },
    async cancel() {
      await values.return?.();
    },
  }, { highWaterMark: 0 });
  return new Response(body, { headers: { "content-type": "application/x-ndjson" } });
}
