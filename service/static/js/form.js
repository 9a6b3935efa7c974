/** The form: its fields follow the chosen model, and it posts what it shows. Only the service validates it. */

import { write } from "./api.js";
import { byId, copy, element, recall, remember, session, setNotice, setText } from "./dom.js";
import { classLabel, counted, curl, extrasOf, samplerTitle, stepsTaken } from "./format.js";

const PAIRS = ["guidance_scale", "steps", "eta"]; // a number and a slider beside it
const NUMBERS = [...PAIRS, "n"];
const SLIDER_MAX = { guidance_scale: 10, steps: 100 }; // values worth trying; the number beside a slider may be larger
const NO_CLASS = "none"; // a radio's value is text; indices are digits
const FILTER_FROM = 24; // classes, from which on a search field helps
const MAX_ITEMS = 64; // jobs that the service takes in one call
const MEMORY = "adm-form";

/** A new seed below 2^53, which every JSON reader keeps exact. */
export function drawSeed() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return String((high >>> 11) * 2 ** 32 + low);
}

export class Form {
  #models = [];
  #extras = {}; // options of a repeated request that have no field
  #locked = false;

  constructor(onSubmit) {
    this.root = byId("form");
    this.onSubmit = onSubmit;
    this.root.addEventListener("submit", (event) => { event.preventDefault(); this.#submit(() => this.request); });
    byId("each-class").addEventListener("click", () => this.#submit(() => this.#ofEachClass));
    this.root.addEventListener("input", (event) => this.#edited(event.target));
    for (const name of PAIRS) {
      byId(`${name}-slider`).addEventListener("input", (event) => { byId(name).value = event.target.value; });
    }
    byId("model").addEventListener("change", () => this.#offer());
    byId("class-filter").addEventListener("input", (event) => this.#filter(event.target.value));
    byId("reroll").addEventListener("click", () => { this.#seed(drawSeed()); this.#changed(); });
    byId("lock").addEventListener("click", () => { this.#lock(!this.#locked); this.#changed(); });
    byId("extras").querySelector("button").addEventListener("click", () => { this.#extras = {}; this.#changed(); });
    const shown = byId("form-source");
    byId("copy-form-curl").addEventListener("click", (event) => copy(event.target, curl(this.request), shown));
    byId("copy-form-json").addEventListener("click", (event) => copy(event.target, write(this.request, 2), shown));
    this.#seed(drawSeed());
    this.#lock(false);
    this.setModels([]);
  }

  get model() {
    return this.#models.find((each) => each.id === byId("model").value);
  }

  /** @returns {Record<string, any>} the values of the fields */
  get request() {
    const { model } = this;
    const chosen = this.root.querySelector("input[name=class_label]:checked")?.value;
    const request = { model: model.id };
    if (chosen !== undefined) request.class_label = chosen === NO_CLASS ? null : classLabel(model, Number(chosen));
    for (const name of NUMBERS) {
      const { value, disabled } = byId(name);
      if (value !== "" && !disabled) request[name] = Number(value); // left empty: the pipeline's default
    }
    request.sampler = this.#sampler;
    const seed = byId("seed").value.trim();
    if (seed !== "") request.seed = seed;
    if (model.defaults.upsample) request.upsample = byId("upsample").checked;
    return { ...request, ...this.#extras };
  }

  /** Offer the service's models; the chosen one stays chosen if it is still there. */
  setModels(models) {
    const first = this.#models.length === 0;
    const known = JSON.stringify(this.#models.map((each) => each.id));
    this.#models = models;
    byId("waiting").hidden = models.length > 0;
    byId("fields").hidden = models.length === 0;
    if (models.length === 0) return;
    if (known !== JSON.stringify(models.map((each) => each.id))) {
      const before = byId("model").value;
      byId("model").replaceChildren(...models.map((each) => element("option", { value: each.id }, each.id)));
      byId("model").value = models.some((each) => each.id === before) ? before : models[0].id;
      if (first) this.#restore();
      else if (byId("model").value !== before) this.#offer();
    }
    this.#showWorkers();
  }

  /** Set one field, as if by the user. */
  set(name, value) {
    byId(name).value = value;
    byId(name).dispatchEvent(new Event("input", { bubbles: true }));
  }

  /** Fill in a resolved request, to be made again with its own seed. */
  fill(request, seed = request.seed) {
    if (!this.#models.some((each) => each.id === request.model)) return;
    byId("model").value = request.model;
    this.#offer();
    this.#choose("class_label", request.class_label ?? NO_CLASS);
    this.#choose("sampler", request.sampler);
    for (const name of NUMBERS) byId(name).value = request[name];
    byId("upsample").checked = Boolean(request.upsample);
    this.#extras = extrasOf(request, this.model);
    this.#seed(seed);
    this.#lock(true);
    this.clearErrors();
    this.#changed();
  }

  /** Show the errors of a problem beside their fields, and all others above the button. */
  showProblem(problem) {
    this.clearErrors();
    const elsewhere = [];
    for (const { pointer, detail } of problem.errors) {
      const name = pointer.split("/")[1] ?? "";
      const field = this.root.querySelector(`[data-field="${CSS.escape(name)}"]`);
      if (field === null || field.hidden) elsewhere.push(pointer ? `${pointer.slice(1)}: ${detail}` : detail);
      else this.#mark(field, name, detail);
    }
    if (problem.errors.length === 0) elsewhere.push(problem.message);
    setNotice(byId("form-error"), elsewhere.join("; "));
    this.root.querySelector("[aria-invalid=true]")?.focus();
  }

  clearErrors() {
    for (const each of this.root.querySelectorAll(".field-error")) each.remove();
    for (const each of this.root.querySelectorAll("[aria-invalid]")) {
      each.removeAttribute("aria-invalid");
      each.removeAttribute("aria-errormessage");
    }
    setNotice(byId("form-error"), "");
  }

  get #sampler() {
    return this.root.querySelector("input[name=sampler]:checked")?.value;
  }

  /** A request for a job of each class, with all other values of the fields. */
  get #ofEachClass() {
    const { class_label: _, ...common } = this.request;
    return { ...common, items: this.model.classes.map(({ index }) => ({ class_label: classLabel(this.model, index) })) };
  }

  async #submit(request) {
    const button = byId("generate");
    if (button.getAttribute("aria-disabled") === "true") return; // still sending; a disabled button would lose the focus
    this.clearErrors();
    const unreadable = NUMBERS.filter((name) => byId(name).validity.badInput);
    if (unreadable.length > 0) {
      const errors = unreadable.map((name) => ({ pointer: `/${name}`, detail: "must be a number" }));
      this.showProblem({ errors, message: "" });
      return;
    }
    button.setAttribute("aria-disabled", "true");
    try {
      await this.onSubmit({ ...request(), previews: true });
      if (!this.#locked) this.#seed(drawSeed());
      this.#changed();
    } catch (problem) {
      this.showProblem(problem);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  }

  #mark(field, name, detail) {
    const id = `${name}-error`;
    const shown = byId(id);
    if (shown !== null) {
      setText(shown, `${shown.textContent}; ${detail}`);
      return;
    }
    field.append(element("p", { id, className: "field-error", role: "alert" }, detail));
    const controls = field.querySelectorAll(`[name="${CSS.escape(name)}"]`);
    for (const each of controls) {
      each.setAttribute("aria-invalid", "true");
      each.setAttribute("aria-errormessage", id);
    }
  }

  /** Offer the chosen model's classes and samplers, and set every field to the model's default. */
  #offer() {
    const { model } = this;
    const { limits, defaults } = model;
    const shown = model.classes.map((each) => radio("class_label", each.index, each.name));
    if (model.no_class_offered) shown.push(radio("class_label", NO_CLASS, "no class"));
    byId("classes").replaceChildren(...shown);
    byId("class-filter").hidden = model.classes.length < FILTER_FROM;
    byId("each-class").hidden = model.classes.length < 2 || model.classes.length > MAX_ITEMS;
    this.#choose("class_label", model.classes[0]?.index ?? NO_CLASS);
    byId("samplers").replaceChildren(...model.samplers.map((each) => radio("sampler", each, samplerTitle(model, each))));
    this.#choose("sampler", defaults.sampler);
    for (const name of ["guidance_scale", "steps", "n"]) {
      const { min, max } = limits[name];
      Object.assign(byId(name), { min, max, value: defaults[name] ?? 1, placeholder: defaults[name] ?? 1 });
      if (SLIDER_MAX[name]) Object.assign(byId(`${name}-slider`), { min, max: Math.min(max, SLIDER_MAX[name]) });
    }
    Object.assign(byId("eta"), { value: defaults.eta, placeholder: defaults.eta });
    byId("upsample").checked = true;
    // the request always contains the scale, and a scale without a schedule would get the constant one
    const { guidance_schedule } = defaults;
    this.#extras = (guidance_schedule ?? "constant") === "constant" ? {} : { guidance_schedule };
    this.#showWorkers();
    this.#changed();
  }

  #showWorkers() {
    const { workers } = this.model;
    byId("served-by").classList.toggle("warning", workers.length === 0);
    setText(byId("served-by"), workers.length > 0 ? `Served by ${workers.join(", ")}`
      : "No worker serves this pipeline; a job waits until one does.");
  }

  #edited(target) {
    if (target.name === "upsample") delete this.#extras.upsample;
    if (target.getAttribute("aria-invalid") === "true") this.clearErrors();
    this.#changed();
  }

  /** Update the parts that depend on the fields' values. */
  #changed() {
    const { model } = this;
    if (model === undefined) return;
    const withoutClass = this.root.querySelector("input[name=class_label]:checked")?.value === NO_CLASS;
    this.#disableGuidance(withoutClass);
    for (const name of PAIRS) byId(`${name}-slider`).value = byId(name).value || byId(name).placeholder;
    byId("eta-field").hidden = this.#sampler !== "ddim";
    byId("eta").disabled = this.#sampler !== "ddim";
    const upsample = this.#extras.upsample ?? model.defaults.upsample;
    byId("upsample-field").hidden = !upsample;
    const [small, large] = [model.stages[0].image_size, model.image_size];
    setText(byId("upsample-label"), !upsample ? "" : byId("upsample").checked
      ? `${small} to ${large} px, ${counted(stepsTaken(upsample.steps, upsample.strength), "step")}` : `off, ${small} px`);
    const extras = Object.entries(this.#extras).map(([key, value]) => `${key} ${JSON.stringify(value)}`);
    byId("extras").hidden = extras.length === 0;
    setText(byId("extras").querySelector("span"), `Also sent: ${extras.join(", ")}`);
    setText(byId("form-source"), curl(this.request));
    this.#keep();
    this.root.dispatchEvent(new Event("settings"));
  }

  #disableGuidance(withoutClass) {
    const field = byId("guidance_scale");
    if (withoutClass && !field.disabled) field.value = "";
    if (!withoutClass && field.disabled) field.value = this.model.defaults.guidance_scale;
    field.placeholder = withoutClass ? "0" : this.model.defaults.guidance_scale;
    field.disabled = withoutClass;
    byId("guidance_scale-slider").disabled = withoutClass;
    setText(byId("guidance-hint"), withoutClass ? "Off without a class: there is nothing to pull towards."
      : "The strength of the classifier's pull towards the class at each step. 0 is off; higher is clearer, with less variety.");
  }

  #choose(name, value) {
    for (const each of this.root.querySelectorAll(`input[name=${name}]`)) each.checked = each.value === String(value);
  }

  #filter(text) {
    const wanted = text.trim().toLowerCase();
    for (const each of byId("classes").children) each.hidden = !each.textContent.toLowerCase().includes(wanted);
  }

  #seed(seed) {
    byId("seed").value = seed;
  }

  #lock(locked) {
    this.#locked = locked;
    byId("lock").setAttribute("aria-pressed", String(locked));
    setText(byId("seed-hint"), locked ? "Kept: same request, same picture." : "A new one is drawn after each Generate.");
  }

  #keep() {
    const { request } = this;
    const chosen = this.root.querySelector("input[name=class_label]:checked")?.value;
    remember(session, MEMORY, {
      model: request.model, class_label: chosen === NO_CLASS || chosen === undefined ? null : Number(chosen),
      sampler: request.sampler, upsample: byId("upsample").checked, locked: this.#locked, seed: byId("seed").value,
      ...Object.fromEntries(NUMBERS.map((name) => [name, byId(name).value])),
    });
  }

  /** Fill in the values that this tab's form had before a reload. */
  #restore() {
    const kept = recall(session, MEMORY);
    if (kept === null || !this.#models.some((each) => each.id === kept.model)) {
      this.#offer();
      return;
    }
    this.fill({ ...kept, upsample: kept.upsample ? this.#models.find((each) => each.id === kept.model).defaults.upsample : false });
    this.#lock(kept.locked);
    this.#changed();
  }
}

function radio(name, value, label) {
  return element("label", {}, element("input", { type: "radio", name, value: String(value) }), element("span", {}, label));
}
