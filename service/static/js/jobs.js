/** The jobs that the page knows: their state from the service, and the previews received since the page was opened. */

import { call, parse, write } from "./api.js";
import { followEvents } from "./events.js";
import { Previews } from "./previews.js";

const MAX_STREAMS = 4; // browsers open six connections to a host over HTTP/1.1, and images and calls need some
const QUEUE_POLL_MS = 2000; // no event reports a job's place in the queue
const QUEUE_PAGE = 100; // jobs of one answer; the service gives no more
const MAX_PREVIEW_BYTES = 64 * 2 ** 20; // of all jobs together; the oldest lose theirs first
const SILENT_SECONDS = 10; // without an event of a running job, after which the page mentions it
const SLOW_STEPS = 3; // the page waits at least as long as this many of the job's slowest steps take
const ACTIVE = new Set(["queued", "in_progress", "cancelling"]);

export const isActive = (job) => ACTIVE.has(job.status);

/** Run a job that the page does not show; resolves when it has ended. Throws: Problem. */
export async function finished(request) {
  let job = await call("POST", "/v1/jobs", write(request));
  while (isActive(job)) job = await call("GET", `/v1/jobs/${job.id}?wait=30`);
  return job;
}

/** One job, its previews by image, and the last id read from its stream. */
class Entry {
  constructor(job) {
    this.job = job;
    this.previews = new Previews();
    this.place = { lastId: null };
    this.connected = true;
    this.begin();
  }

  /** Note that an attempt starts, or that the page starts to follow it. */
  begin() {
    this.pace = null; // {at, fraction} of the first progress seen of this attempt
    this.heardAt = performance.now();
    this.longestGapMs = 0; // between two reports of progress
  }

  /** Note the job's progress. */
  advance({ stage, step, steps, fraction }) {
    const now = performance.now();
    if (this.pace !== null) this.longestGapMs = Math.max(this.longestGapMs, now - this.heardAt);
    this.heardAt = now;
    this.pace ??= { at: now, fraction };
    this.job.progress = { stage, step, steps, fraction };
  }

  /** Seconds since the last event of the running job; 0 while the silence is usual. */
  get silentSeconds() {
    const silentMs = performance.now() - this.heardAt;
    const unusual = silentMs >= Math.max(SILENT_SECONDS * 1000, SLOW_STEPS * this.longestGapMs);
    return unusual ? silentMs / 1000 : 0;
  }

  /** Seconds from the last progress until the job ends, at the pace so far; null while the pace is unknown. */
  get secondsLeft() {
    const fraction = this.job.progress.fraction;
    if (this.pace === null || fraction <= this.pace.fraction) return null;
    const perFraction = (this.heardAt - this.pace.at) / (fraction - this.pace.fraction);
    return ((1 - fraction) * perFraction) / 1000;
  }
}

/** Fires "change" with detail {id, kind}: kind is an event's name, "connection", or "job" for anything else. */
export class Jobs extends EventTarget {
  #entries = new Map(); // by id, newest first
  #streams = new Map(); // id -> AbortController
  #waiting = []; // ids that have no stream yet
  #next = null;
  #query = ""; // of the list's filter
  #queue = null; // {after, below}: the next place to read in the list of queued jobs; null: from its newest
  #asking = false;

  constructor() {
    super();
    setInterval(() => this.#askQueued(), QUEUE_POLL_MS);
  }

  get(id) {
    return this.#entries.get(id);
  }

  /** All jobs, newest first. */
  get all() {
    return [...this.#entries.values()].sort((a, b) => b.job.created_at - a.job.created_at);
  }

  get hasOlder() {
    return this.#next !== null;
  }

  /** Post a request and follow its job, or jobs; returns the id of the first. Throws: Problem. */
  async submit(request) {
    const made = await call("POST", "/v1/jobs", write(request));
    const jobs = made.object === "list" ? made.data : [made];
    for (const job of jobs) {
      this.#put(job);
      this.#follow(job.id, job === jobs[0]);
    }
    return jobs[0].id;
  }

  /** Add the jobs of another call's answer, and follow those that have not ended. */
  take(jobs) {
    for (const job of jobs.filter((each) => each.request !== null)) {
      const known = this.#entries.has(job.id);
      this.#put(job);
      if (!known && isActive(job)) this.#follow(job.id, false);
    }
  }

  /** Restart the list with a filter, in the form of a query string. Throws: Problem. */
  async filter(query) {
    this.#query = query;
    this.#next = null;
    await this.load();
  }

  /** Load a page of the caller's jobs: the newest, or those behind what was loaded before. Throws: Problem. */
  async load() {
    const query = this.#query;
    const after = this.#next === null ? "" : `&after=${encodeURIComponent(this.#next)}`;
    const page = await call("GET", `/v1/jobs?mine=true&limit=40${query}${after}`);
    if (query !== this.#query) return; // another filter was chosen meanwhile
    this.#next = page.has_more ? page.next : null;
    for (const job of page.data) {
      if (job.request === null || this.#entries.has(job.id)) continue;
      this.#put(job);
      if (isActive(job)) this.#follow(job.id, false);
    }
    this.#changed(null, "job");
  }

  /** Ask for a job to be cancelled. Throws: Problem. */
  async cancel(id) {
    const job = await call("POST", `/v1/jobs/${id}/cancel`);
    if (this.#entries.has(id)) this.#put(job);
  }

  /** Note the job that the user looks at: it gets a stream at once, if needed in place of another. */
  look(id) {
    if (!this.#waiting.includes(id)) return;
    this.#waiting = [id, ...this.#waiting.filter((each) => each !== id)];
    if (this.#streams.size >= MAX_STREAMS) this.#streams.values().next().value.abort();
    this.#pump();
  }

  #put(job) {
    const entry = this.#entries.get(job.id);
    if (entry === undefined) this.#entries.set(job.id, new Entry(job));
    else if (isActive(entry.job) || !isActive(job)) entry.job = job; // an answer older than the last event is ignored
    this.#changed(job.id, "job");
  }

  #follow(id, first) {
    if (first) this.#waiting.unshift(id);
    else this.#waiting.push(id);
    if (first && this.#streams.size >= MAX_STREAMS) this.#streams.values().next().value.abort();
    this.#pump();
  }

  #pump() {
    while (this.#streams.size < MAX_STREAMS && this.#waiting.length > 0) this.#stream(this.#waiting.shift());
  }

  async #stream(id) {
    const entry = this.#entries.get(id);
    const controller = new AbortController();
    this.#streams.set(id, controller);
    const end = await followEvents(
      id, entry.place, controller.signal, (event) => this.#apply(entry, event), (connected) => {
        if (connected) entry.begin(); // the time without a connection is neither silence nor pace
        if (entry.connected === connected) return;
        entry.connected = connected;
        this.#changed(id, "connection");
      },
    );
    this.#streams.delete(id);
    if (end === "stopped") this.#waiting.push(id);
    else if (end === "gone") this.#forget(id);
    else if (isActive(entry.job)) await this.#ask(id);
    this.#pump();
  }

  #apply(entry, { kind, data }) {
    const { job } = entry;
    const event = parse(data);
    if (event.deleted) return this.#forget(job.id);
    if (event.object === "job") entry.job = event; // comes with the last event
    else if (kind === "queued") {
      Object.assign(job, { status: "queued", progress: { stage: "base", step: 0, steps: job.request.steps, fraction: 0 } });
    }
    else if (kind === "started") {
      Object.assign(job, { status: "in_progress", attempt: event.attempt, queue: null, started_at: Date.now() / 1000 });
      entry.begin();
    } else if (kind === "progress") entry.advance(event);
    else if (kind === "preview") this.#keepPreview(entry, event);
    else if (kind === "image") {
      job.images = [...job.images.filter((each) => each.index !== event.index), event].sort((a, b) => a.index - b.index);
    }
    return this.#changed(job.id, kind);
  }

  #keepPreview(entry, event) {
    entry.previews.add(event);
    const bytes = () => [...this.#entries.values()].reduce((sum, each) => sum + each.previews.bytes, 0);
    if (bytes() <= MAX_PREVIEW_BYTES) return;
    for (const old of this.all.reverse()) {
      if (bytes() <= MAX_PREVIEW_BYTES) return;
      if (old !== entry) old.previews.clear();
    }
  }

  #forget(id) {
    this.#entries.delete(id);
    this.#changed(id, "job");
  }

  async #ask(id) {
    const asked = this.#entries.get(id)?.job.status;
    try {
      const job = await call("GET", `/v1/jobs/${id}`);
      // an event may be newer than the answer
      if (this.#entries.get(id)?.job.status === asked) this.#put(job);
    } catch (problem) {
      if (problem.status === 404) this.#forget(id);
      // other errors are temporary: the stream continues, or the next poll repeats the call
    }
  }

  /** Read the places of all waiting jobs, one call at a time; in a long queue a call continues where the last one ended. */
  async #askQueued() {
    const waiting = [...this.#entries.values()].map(({ job }) => job).filter((job) => job.status === "queued");
    if (document.hidden || this.#asking || waiting.length === 0) return;
    this.#asking = true;
    try {
      const { after, below } = this.#queue ?? { after: "", below: Infinity };
      const page = await call("GET", `/v1/jobs?mine=true&status=queued&limit=${QUEUE_PAGE}${after}`);
      const end = page.has_more ? page.data.at(-1).created_at : -Infinity;
      const found = new Map(page.data.map((job) => [job.id, job]));
      for (const { id, created_at: at } of waiting) {
        if (found.has(id)) this.#putQueued(found.get(id));
        else if (at < below && at > end) this.#ask(id); // it does not wait any more
      }
      const older = page.has_more && waiting.some((job) => job.created_at < end);
      this.#queue = older ? { after: `&after=${encodeURIComponent(page.next)}`, below: end } : null;
    } catch {
      this.#queue = null; // temporary: the next poll repeats the call
    } finally {
      this.#asking = false;
    }
  }

  #putQueued(job) {
    if (this.#entries.get(job.id)?.job.status === "queued") this.#put(job); // otherwise an event is newer than the answer
  }

  #changed(id, kind) {
    this.dispatchEvent(new CustomEvent("change", { detail: { id, kind } }));
  }
}
