/** Models and workers, read periodically. */

import { call, callIfChanged } from "./api.js";
import { byId, setText } from "./dom.js";
import { counted } from "./format.js";
import { key } from "./key.js";
import { isAsking } from "./signin.js";

const ASK_MS = 5000;
const NONE = "No worker is ready";

/** Calls onModels with the service's models after each read. */
export class Fleet {
  constructor(onModels) {
    this.onModels = onModels;
    this.models = [];
    this.etag = null; // of /v1/models, whose answer is large, with the names of all classes, and seldom changes
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.ask(); });
    setInterval(() => { if (!document.hidden) this.ask(); }, ASK_MS);
  }

  model(id) {
    return this.models.find((each) => each.id === id);
  }

  async ask() {
    if (isAsking()) return;
    try {
      const [models, workers] = await Promise.all([callIfChanged("/v1/models", this.etag), this.#workers()]);
      if (models !== null) Object.assign(this, { models: models.answer.data, etag: models.etag });
      const text = workers === null ? namesText(this.models) : workersText(workers.data);
      this.#show(text === NONE ? "none" : "live", text);
      this.onModels(this.models);
    } catch (problem) {
      this.#show("unavailable", problem.status === 0 ? "The service cannot be reached" : problem.message);
    }
  }

  /** The workers; null for a caller with a key, because only operators may read them. */
  async #workers() {
    return key() === null ? call("GET", "/v1/workers") : null;
  }

  #show(state, text) {
    byId("fleet").dataset.state = state;
    setText(byId("fleet"), text);
  }
}

/** A text about the workers that the models list. */
function namesText(models) {
  const names = [...new Set(models.flatMap((each) => each.workers))];
  if (names.length === 0) return NONE;
  return names.length === 1 ? `Worker ${names[0]}` : `${names.length} workers`;
}

function workersText(workers) {
  if (workers.length === 0) return NONE;
  const rows = workers.reduce((sum, each) => sum + each.rows_in_flight, 0);
  const busy = rows === 0 ? "idle" : `${counted(rows, "image")} in flight`;
  const who = workers.length === 1 ? `Worker ${workers[0].name}` : `${workers.length} workers`;
  return `${who}, ${busy}`;
}
