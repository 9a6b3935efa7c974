/** The filters of the gallery: model, class and metadata. The service filters its lists; the page filters shown jobs. */

import { byId, element, setText } from "./dom.js";
import { className } from "./format.js";

const PAUSE_MS = 400; // pause in typing after which the list is requested again

export class Filters {
  #timer = null;
  #models = [];

  /** onChange() is called when other jobs are to be shown. */
  constructor(onChange) {
    const root = byId("filters");
    const later = () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#changed(onChange), PAUSE_MS);
    };
    root.addEventListener("input", later);
    root.addEventListener("reset", () => setTimeout(() => this.#changed(onChange))); // the fields are emptied after the event
    root.addEventListener("submit", (event) => { event.preventDefault(); this.#changed(onChange); });
  }

  /** Offer the service's models and the classes of the chosen one, or of all. */
  setModels(models) {
    if (models.map((each) => each.id).join() === this.#models.map((each) => each.id).join()) return;
    this.#models = models;
    const chosen = byId("filter-model").value;
    const options = models.map((each) => element("option", { value: each.id }, each.id));
    byId("filter-model").replaceChildren(element("option", { value: "" }, "all"), ...options);
    byId("filter-model").value = chosen;
    this.#offerClasses();
  }

  /** The query to append to the address of a list. */
  get query() {
    const { model, classLabel, metadata } = this.#wanted;
    const given = Object.entries({ model, class_label: classLabel, metadata }).filter(([, value]) => value !== "");
    return given.map(([name, value]) => `&${name}=${encodeURIComponent(value)}`).join("");
  }

  /** Returns whether a job is shown. */
  admits({ request }) {
    const { model, classLabel, metadata } = this.#wanted;
    if (model !== "" && request.model !== model) return false;
    if (classLabel !== "" && (request.class_label === null || ![String(request.class_label), this.#nameOf(request)].includes(classLabel))) return false;
    return metadata === "" || Object.entries(request.metadata ?? {}).some(([key, value]) => `${key}=${value}` === metadata);
  }

  get #wanted() {
    const metadata = byId("filter-metadata").value;
    return {
      model: byId("filter-model").value,
      classLabel: byId("filter-class").value.trim(),
      metadata: metadata.indexOf("=") > 0 ? metadata : "",
    };
  }

  #nameOf(request) {
    return className(this.#models.find((each) => each.id === request.model), request.class_label);
  }

  #offerClasses() {
    const model = byId("filter-model").value;
    const offered = this.#models.filter((each) => model === "" || each.id === model).flatMap((each) => each.classes);
    const names = [...new Set(offered.map((each) => each.name))];
    byId("filter-classes").replaceChildren(...names.map((value) => element("option", { value })));
  }

  #changed(onChange) {
    clearTimeout(this.#timer);
    this.#offerClasses();
    const metadata = byId("filter-metadata").value;
    setText(byId("filter-note"), metadata !== "" && this.#wanted.metadata === "" ? "Metadata is given as key=value." : "");
    byId("filter-clear").hidden = this.query === "" && metadata === "";
    onChange();
  }
}
