/** A PNG of this service, dropped anywhere on the page or chosen, puts its settings back into the form. */

import { requestOf } from "./api.js";
import { byId, setNotice } from "./dom.js";

const isHere = (model) => [...byId("model").options].some((each) => each.value === model);

export class Restore {
  /** onRestore(request) fills the form. */
  constructor(form, onRestore) {
    this.form = form;
    this.onRestore = onRestore;
    const input = byId("restore");
    input.addEventListener("change", () => {
      if (input.files.length > 0) this.#take(input.files[0]);
      input.value = ""; // so that the same file can be chosen again
    });
    document.addEventListener("dragover", (event) => { if (!isForSlot(event)) event.preventDefault(); });
    document.addEventListener("drop", (event) => {
      if (isForSlot(event)) return;
      event.preventDefault(); // a browser would leave the page and show the file
      const [file] = event.dataTransfer.files;
      if (file !== undefined) this.#take(file);
    });
  }

  async #take(file) {
    this.form.clearErrors();
    try {
      const request = await requestOf(file);
      if (request.kind !== "generate") this.#show(`${file.name} was made from other pictures (${request.kind}); only images from noise have settings here.`);
      else if (!isHere(request.model)) this.#show(`${file.name} was made by the model ${request.model}, which this service does not have.`);
      else this.onRestore({ n: 1, ...request });
    } catch (problem) {
      this.#show(`${file.name} ${problem.errors?.[0]?.detail ?? `was not read: ${problem.message}`}`);
    }
  }

  #show(text) {
    setNotice(byId("form-error"), text);
  }
}

function isForSlot(event) {
  return event.target instanceof Element && event.target.closest(".slot") !== null;
}
