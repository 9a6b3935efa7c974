/** Models and workers, asked for again and again. */

import { call, callIfChanged } from "./api.js";
import { byId, setText } from "./dom.js";

const ASK_MS = 5000;

/** Calls onModels with the service's models, now and whenever it asked again. */
export class Fleet {
  constructor(onModels) {
    this.onModels = onModels;
    this.models = [];
    this.etag = null; // of the models: all names of classes are in them, and they seldom change
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.ask(); });
    setInterval(() => { if (!document.hidden) this.ask(); }, ASK_MS);
  }

  model(id) {
    return this.models.find((each) => each.id === id);
  }

  async ask() {
    try {
      const [models, workers] = await Promise.all([callIfChanged("/v1/models", this.etag), call("GET", "/v1/workers")]);
      if (models !== null) Object.assign(this, { models: models.answer.data, etag: models.etag });
      this.#show(workers.data.length === 0 ? "none" : "live", workersText(workers.data));
      this.onModels(this.models);
    } catch (problem) {
      this.#show("away", problem.status === 0 ? "The service cannot be reached" : problem.message);
    }
  }

  #show(state, text) {
    byId("fleet").dataset.state = state;
    setText(byId("fleet"), text);
  }
}

function workersText(workers) {
  if (workers.length === 0) return "No worker is running";
  const rows = workers.reduce((sum, each) => sum + each.rows_in_flight, 0);
  const busy = rows === 0 ? "idle" : `${rows} image${rows === 1 ? "" : "s"} in flight`;
  const who = workers.length === 1 ? `Worker ${workers[0].name}` : `${workers.length} workers`;
  return `${who}, ${busy}`;
}
