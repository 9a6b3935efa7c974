/** The class for a job that starts from a picture: the picture's likeliest class, or a chosen one. */

import { byId, element, setText } from "./dom.js";
import { classLabel, usesClass } from "./format.js";
import { finished } from "./jobs.js";

const KINDS = ["reconstruct", "variation", "upsample", "interpolate"];
const LIKELIEST = ""; // for a model without a classifier: nothing is chosen yet
const NO_CLASS = "none"; // an option's value is text; indices are digits
const ASKING = "asking";

export class PictureClass {
  #model = undefined;
  #file = null;
  #answers = new Map(); // "pipeline/file" -> {class_label, class_name, probability}, ASKING, or null: it gave none

  /** onChange() is called when the class to send changes. */
  constructor(onChange) {
    this.onChange = onChange;
    this.select = byId("picture-class");
    this.select.addEventListener("change", onChange);
  }

  /** Offer a pipeline's classes for a picture, and ask its classifier; file: null before there is a picture. */
  offer(model, file) {
    const another = file !== this.#file;
    if (another && this.#file !== null) this.select.value = LIKELIEST; // the choice was for the last picture
    if (model !== undefined && model.id !== this.#model?.id) this.#fill(model);
    this.#model = model;
    this.#file = file;
    this.select.closest(".field").hidden = !this.#matters;
    if (this.#matters && this.#asks && file !== null) {
      if (this.#answer === undefined || (another && this.#answer === null)) this.#ask(model, file);
    }
    setText(byId("picture-class-note"), this.#note);
  }

  /** Returns whether the class for a job of this kind is known. */
  settled(kind) {
    return !usesClass(this.#model, kind) || this.#index !== undefined;
  }

  /** The fields to add to the request of a job. */
  options(kind) {
    return usesClass(this.#model, kind) ? { class_label: classLabel(this.#model, this.#index) } : {};
  }

  get #matters() {
    return KINDS.some((kind) => this.#model?.kinds.includes(kind) && usesClass(this.#model, kind));
  }

  get #asks() {
    return this.#model.kinds.includes("score");
  }

  get #answer() {
    return this.#answers.get(`${this.#model?.id}/${this.#file?.id}`);
  }

  /** The class to send: its index, null for no class, undefined while it is unknown. */
  get #index() {
    const { value } = this.select;
    if (value === LIKELIEST) return this.#answer?.class_label;
    return value === NO_CLASS ? null : Number(value);
  }

  get #note() {
    if (!this.#matters || this.#file === null || this.select.value !== LIKELIEST) return "";
    if (!this.#asks) return "Choose one first.";
    const answer = this.#answer;
    if (answer === ASKING) return "Asking the classifier…";
    if (answer === null) return "The classifier gave no answer: choose a class.";
    return `The classifier sees: ${answer.class_name}, ${(100 * answer.probability).toFixed(1)} %.`;
  }

  #fill({ kinds, classes, no_class_offered: noClass }) {
    const option = (value, text) => element("option", { value: String(value) }, text);
    const shown = [option(LIKELIEST, kinds.includes("score") ? "likeliest of the picture" : "not chosen yet")];
    shown.push(...classes.map((each) => option(each.index, each.name)));
    if (noClass) shown.push(option(NO_CLASS, "no class"));
    this.select.replaceChildren(...shown);
    this.select.value = LIKELIEST;
  }

  async #ask(model, file) {
    const key = `${model.id}/${file.id}`;
    this.#answers.set(key, ASKING);
    let answer = null;
    try {
      const { results } = await finished({ kind: "score", model: model.id, images: [file.id] });
      answer = results?.scores[0][0] ?? null;
    } catch {
      // refused, or the service is unreachable: the user can still choose a class
    }
    this.#answers.set(key, answer);
    this.onChange();
  }
}
