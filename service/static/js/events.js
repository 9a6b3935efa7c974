/** Server-sent events over fetch: unlike EventSource it can send headers, and reports why a stream ended. */

import { ROOT } from "./api.js";
import { credentials, refused } from "./key.js";

const FINAL = new Set(["completed", "failed", "cancelled", "expired"]);
const SILENCE_MS = 40_000; // the service sends a comment every 15 s; after this long the connection is dead
const MAX_DELAY_MS = 15_000;

/** Splits a text/event-stream that comes in pieces; calls onEvent({kind, id, data}) for each whole event. */
class EventParser {
  #rest = "";
  #kind = "";
  #data = [];
  #id = null;

  constructor(onEvent, onRetry) {
    this.onEvent = onEvent;
    this.onRetry = onRetry;
  }

  push(text) {
    this.#rest += text;
    const kept = this.#rest.endsWith("\r") ? 1 : 0; // its line feed may be in the next piece
    const lines = this.#rest.slice(0, this.#rest.length - kept).split(/\r\n|\r|\n/);
    this.#rest = lines.pop() + "\r".repeat(kept);
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (line === "") {
      if (this.#data.length > 0) this.onEvent({ kind: this.#kind, id: this.#id, data: this.#data.join("\n") });
      this.#kind = "";
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") this.#kind = value;
    else if (name === "data") this.#data.push(value);
    else if (name === "id") this.#id = value;
    else if (name === "retry" && /^\d+$/.test(value)) this.onRetry(Number(value));
  }
}

/**
 * Follow a job's events until it ends, over as many connections as that takes.
 *
 * `place.lastId` is read and kept up to date, so that a later call resumes where this one stopped.
 * Returns "ended", "gone" (no such job) or "stopped" (by the signal).
 */
export async function followEvents(jobId, place, signal, onEvent, onConnected) {
  let retryMs = 1000;
  let failures = 0;
  while (!signal.aborted) {
    const attempt = new AbortController();
    let ended = false;
    try {
      const headers = { Accept: "text/event-stream", ...credentials() };
      if (place.lastId) headers["Last-Event-ID"] = place.lastId;
      const either = AbortSignal.any([signal, attempt.signal]);
      const response = await fetch(`${ROOT}/v1/jobs/${jobId}/events`, { headers, cache: "no-store", signal: either });
      if (response.status === 204) return "ended";
      if (response.status === 404) return "gone";
      if (response.status === 401) {
        refused(headers);
        return "gone";
      }
      if (!response.ok) throw new Error(`status ${response.status}`);
      onConnected(true);
      const parser = new EventParser((event) => {
        failures = 0;
        if (event.id) place.lastId = event.id;
        ended ||= FINAL.has(event.kind);
        deliver(onEvent, event);
      }, (ms) => { retryMs = ms; });
      await read(response.body, parser, attempt);
    } catch {
      // a lost connection, a service that restarts, or our own signal: the loop's head distinguishes them
    }
    if (ended) return "ended";
    if (signal.aborted) break;
    onConnected(false);
    await delay(Math.min(MAX_DELAY_MS, retryMs * 2 ** failures), signal);
    failures += 1;
  }
  return "stopped";
}

/** An error of the page itself must not look like a lost connection, which would be retried for ever. */
function deliver(onEvent, event) {
  try {
    onEvent(event);
  } catch (error) {
    reportError(error);
  }
}

async function read(body, parser, attempt) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const watchdog = setTimeout(() => attempt.abort(), SILENCE_MS);
    try {
      const { done, value } = await reader.read();
      if (done) return;
      parser.push(value);
    } finally {
      clearTimeout(watchdog);
    }
  }
}

function delay(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}
