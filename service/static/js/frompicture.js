/** Jobs from a user's own picture: upload it, then choose the kind of job. */

import { pathOfFile, upload } from "./api.js";
import { byId, setNotice, setText } from "./dom.js";
import { PictureClass } from "./pictureclass.js";
import { showPicture } from "./pictures.js";

const SLOTS = [0, 1];
const VARIATIONS = 4;
const FRAMES = 12;
const KINDS = ["reconstruct", "variation", "upsample", "score", "interpolate"];

export class FromPicture {
  #files = [null, null]; // the service's answer for each slot
  #turn = [0, 0]; // number of the last upload started in each slot; the answer to an earlier one may come later

  /** form is where the model is chosen; onSubmit(request) queues a job, or throws a Problem. */
  constructor(form, onSubmit) {
    this.form = form;
    this.onSubmit = onSubmit;
    this.root = byId("from-picture");
    for (const slot of SLOTS) {
      const label = byId(`slot-${slot}`);
      label.querySelector("input").addEventListener("change", (event) => {
        if (event.target.files.length > 0) this.#take(slot, event.target.files[0]);
        event.target.value = ""; // so that the same file can be chosen again
      });
      label.addEventListener("dragover", (event) => { event.preventDefault(); label.classList.add("over"); });
      label.addEventListener("dragleave", () => label.classList.remove("over"));
      label.addEventListener("drop", (event) => {
        event.preventDefault();
        label.classList.remove("over");
        const [file] = event.dataTransfer.files;
        if (file !== undefined) this.#take(slot, file);
      });
    }
    this.pictureClass = new PictureClass(() => this.offer());
    byId("strength").addEventListener("input", () => setText(byId("strength-shown"), byId("strength").value));
    this.root.addEventListener("submit", (event) => { event.preventDefault(); this.#submit(event.submitter); });
  }

  /** Show the actions that the chosen model offers. */
  offer() {
    const kinds = this.form.model?.kinds ?? [];
    this.pictureClass.offer(this.form.model, this.#files[0]);
    this.root.hidden = !KINDS.some((each) => kinds.includes(each));
    for (const button of this.#buttons) {
      button.hidden = !kinds.includes(button.value);
      button.disabled = this.#inputs(button.value).includes(null) || !this.pictureClass.settled(button.value);
    }
    byId("strength").closest(".field").hidden = !kinds.includes("variation");
    byId("slot-1").hidden = !kinds.includes("interpolate");
    setText(byId("picture-actions-hint"), this.#files[0] === null ? "Choose a picture first; Morph needs two." : "");
  }

  get #buttons() {
    return [...byId("picture-actions").children];
  }

  /** The files that an action takes. */
  #inputs(kind) {
    return kind === "interpolate" ? this.#files : this.#files.slice(0, 1);
  }

  async #take(slot, file) {
    this.#turn[slot] += 1;
    const turn = this.#turn[slot];
    const label = byId(`slot-${slot}`);
    const text = label.querySelector(".slot-text");
    setNotice(byId("from-picture-error"), "");
    setText(text, `Sending ${file.name}…`);
    label.setAttribute("aria-busy", "true");
    let error = "";
    try {
      const answer = await upload(file);
      if (turn !== this.#turn[slot]) return;
      this.#files[slot] = answer;
      showPicture(label.querySelector("img"), pathOfFile(answer.id));
    } catch (problem) {
      if (turn !== this.#turn[slot]) return;
      error = `${file.name} ${problem.errors?.[0]?.detail ?? `was not taken: ${problem.message}`}`;
    }
    label.removeAttribute("aria-busy");
    const kept = this.#files[slot];
    label.classList.toggle("filled", kept !== null);
    setText(text, kept === null ? "Try another picture" : `${kept.width} × ${kept.height} px`);
    setNotice(byId("from-picture-error"), error);
    this.offer();
  }

  async #submit(button) {
    if (button === null || this.root.getAttribute("aria-busy") === "true") return;
    setNotice(byId("from-picture-error"), "");
    this.root.setAttribute("aria-busy", "true");
    try {
      await this.onSubmit(this.#request(button.value));
    } catch (problem) {
      const errors = problem.errors.map(({ pointer, detail }) => `${pointer.slice(1)}: ${detail}`);
      setNotice(byId("from-picture-error"), errors.join("; ") || problem.message);
    } finally {
      this.root.removeAttribute("aria-busy");
    }
  }

  #request(kind) {
    const images = this.#inputs(kind).map((each) => each.id);
    /** @type {Record<string, any>} */
    const request = { kind, model: this.form.model.id, images, ...this.pictureClass.options(kind) };
    if (kind !== "score") request.previews = true;
    if (kind === "variation") Object.assign(request, { strength: Number(byId("strength").value), n: VARIATIONS });
    if (kind === "interpolate") Object.assign(request, { n: FRAMES, previews: false });
    return request;
  }
}
