/** Cancelling all unfinished jobs of the caller, after a confirmation. */

import { call } from "./api.js";
import { byId, setNotice, setText } from "./dom.js";
import { isActive } from "./jobs.js";
import { key } from "./key.js";

const AT_ONCE = 4; // calls
const PAGE = 100;

export class CancelAll {
  constructor(jobs) {
    this.jobs = jobs;
    this.dialog = byId("cancel-all-dialog");
    byId("cancel-all").addEventListener("click", () => this.#question());
    this.dialog.addEventListener("close", () => { if (this.dialog.returnValue === "cancel") this.#cancel(); });
  }

  /** Show the button while there is something to cancel. */
  offer() {
    const button = byId("cancel-all");
    const hidden = !this.jobs.all.some(({ job }) => isActive(job));
    if (hidden && document.activeElement === button) byId("gallery-title").focus();
    button.hidden = hidden;
  }

  #question() {
    setText(byId("cancel-all-text"), key() === null
      ? "Everybody's jobs that are queued or running end without pictures: this service has no keys, so all jobs are yours."
      : "Your jobs that are queued or running end without pictures. Those of other callers continue.");
    this.dialog.returnValue = "";
    this.dialog.showModal();
  }

  async #cancel() {
    setNotice(byId("gallery-note"), "Cancelling…");
    try {
      let cancelled = 0;
      for (const status of ["queued", "in_progress"]) cancelled += await this.#cancelListed(status);
      setNotice(byId("gallery-note"), cancelled === 1 ? "1 job was cancelled." : `${cancelled} jobs were cancelled.`);
    } catch (problem) {
      setNotice(byId("gallery-note"), problem.message);
    }
  }

  /** Cancel the jobs of one status, page by page; returns their number. */
  async #cancelListed(status) {
    let cancelled = 0;
    for (let after = ""; after !== null;) {
      const page = await call("GET", `/v1/jobs?mine=true&status=${status}&limit=${PAGE}${after}`);
      for (let at = 0; at < page.data.length; at += AT_ONCE) {
        const results = await Promise.all(page.data.slice(at, at + AT_ONCE).map(({ id }) => this.#cancelOne(id)));
        cancelled += results.filter(Boolean).length;
      }
      after = page.has_more ? `&after=${encodeURIComponent(page.next)}` : null;
    }
    return cancelled;
  }

  async #cancelOne(id) {
    try {
      await this.jobs.cancel(id);
      return true;
    } catch (problem) {
      if (problem.status === 404 || problem.status === 409) return false; // it has ended just now, or is gone
      throw problem;
    }
  }
}
