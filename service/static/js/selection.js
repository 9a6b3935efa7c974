/** Images of the gallery that are selected, to be saved together. */

import { byId, setNotice, setText } from "./dom.js";
import { saveZip } from "./zip.js";

export class Selection {
  #chosen = new Set(); // "job/index"
  #offered = []; // the shown images that can be selected

  /** onChange() is called when the gallery's boxes must be updated. */
  constructor(onChange) {
    this.onChange = onChange;
    byId("select-all").addEventListener("click", () => this.#toggleAll());
    byId("zip").addEventListener("click", () => this.#save());
  }

  has(images) {
    return images.every((each) => this.#chosen.has(each));
  }

  set(images, selected) {
    for (const each of images) {
      if (selected) this.#chosen.add(each);
      else this.#chosen.delete(each);
    }
    this.#show();
  }

  /** Note the images that the gallery shows now; others are deselected. */
  offer(images) {
    this.#offered = images;
    const shown = new Set(images);
    for (const each of this.#chosen) if (!shown.has(each)) this.#chosen.delete(each);
    this.#show();
  }

  get #all() {
    return this.#offered.length > 0 && this.#chosen.size === this.#offered.length;
  }

  #toggleAll() {
    this.set(this.#offered, !this.#all);
    this.onChange();
  }

  async #save() {
    const button = byId("zip");
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", "true");
    setNotice(byId("gallery-note"), "");
    try {
      await saveZip([...this.#chosen]);
    } catch (problem) {
      setNotice(byId("gallery-note"), problem.message);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  }

  #show() {
    byId("select-all").hidden = this.#offered.length === 0;
    setText(byId("select-all"), this.#all ? "Select none" : "Select all");
    byId("zip").hidden = this.#chosen.size === 0;
    setText(byId("zip"), `Download ${this.#chosen.size} as zip`);
  }
}
