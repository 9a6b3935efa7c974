/** Charts of the chosen model's sweep: quality against diversity by scale, and FID by steps, with the form's settings marked. */

import { call } from "./api.js";
import { chart } from "./chart.js";
import { byId, element, setText } from "./dom.js";
import { counted, number, samplerTitle } from "./format.js";

// even: the transformation under which values are compared and interpolated
const BY_SCALE = { field: "guidance_scale", of: (cell) => cell.guidance_scale, even: (value) => value };
const BY_STEPS = { field: "steps", of: (cell) => cell.steps, even: Math.log };

export class TradeOff {
  #sweeps = new Map(); // id and weights of a model -> its sweep, null while it is requested or unavailable
  #shown = null; // the sweep that the table shows

  /** form has the model and the settings; a pressed point sets them. */
  constructor(form) {
    this.form = form;
    form.root.addEventListener("settings", () => this.#show());
  }

  #show() {
    const { model } = this.form;
    const sweep = model.has_sweep ? this.#sweepOf(model) : null;
    byId("trade-off").hidden = sweep === null;
    if (sweep === null) return;
    if (this.#shown !== sweep) this.#describe(sweep, model);
    this.#draw(sweep, model);
  }

  #sweepOf(model) {
    const key = [model.id, ...model.stages.map((each) => each.model_hash)].join(" ");
    if (!this.#sweeps.has(key)) {
      this.#sweeps.set(key, null);
      this.#load(key, model.id);
    }
    return this.#sweeps.get(key);
  }

  async #load(key, id) {
    try {
      this.#sweeps.set(key, await call("GET", `/v1/models/${encodeURIComponent(id)}/sweep`));
      this.#show();
    } catch {
      this.#sweeps.delete(key); // the next change of a setting repeats the call
    }
  }

  #describe(sweep, model) {
    this.#shown = sweep;
    setText(byId("trade-off-about"), `Measured on ${sweep.made_on} with ${counted(sweep.images, "image")} of each setting, before upsampling, against `
      + `${sweep.reference}. Precision: the share of the images that look like the reference. Recall: the share of the `
      + "reference that the images reach. FID: the distance between both; less is better. Press a point to take its setting.");
    const heads = ["Sampler", "Steps", "Scale", "FID", "Precision", "Recall"].map((each) => element("th", { scope: "col" }, each));
    const rows = sweep.cells.map((cell) => element("tr", {}, ...[
      samplerTitle(model, cell.sampler), String(cell.steps), number(cell.guidance_scale),
      figure(cell.fid, 2), figure(cell.precision, 3), figure(cell.recall, 3),
    ].map((each) => element("td", {}, each))));
    byId("trade-off-table").replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
  }

  #draw(sweep, model) {
    const { request } = this.form;
    const scale = request.guidance_scale ?? (request.class_label === null ? 0 : model.defaults.guidance_scale);
    const steps = request.steps ?? model.defaults.steps;
    const measured = sweep.cells.some((each) => each.sampler === request.sampler);
    const sampler = measured ? request.sampler : sweep.cells[0].sampler;
    const cells = sweep.cells.filter((each) => each.sampler === sampler);
    const scales = curves(cells, BY_STEPS, BY_SCALE, steps);
    const counts = curves(cells, BY_SCALE, BY_STEPS, scale);
    const [byScale, bySteps] = [between(scales.active, BY_SCALE, scale), between(counts.active, BY_STEPS, steps)];
    const focused = document.activeElement?.closest?.("#trade-off-charts .point");
    const [figureAt, markAt] = [focused?.closest("figure")?.dataset.chart, focused?.dataset.mark];
    const name = samplerTitle(model, sampler);
    byId("trade-off-charts").replaceChildren(
      framed("scale", `By guidance scale, at ${counted(scales.active[0].steps, "step")} of ${name}`, chart({
        title: "Precision against recall, by guidance scale", xTitle: "Recall (diversity)", yTitle: "Precision (quality)",
        now: { x: byScale.recall, y: byScale.precision },
        curves: scales.all.map((each) => ({ active: each === scales.active, points: each.map((cell) => this.#scalePoint(cell)) })),
      })),
      framed("steps", `By steps, at scale ${number(counts.active[0].guidance_scale)}`, chart({
        title: "FID by number of steps", xTitle: "Steps", yTitle: "FID (less is better)", logX: true, logY: true,
        now: { x: bySteps.at, y: bySteps.fid },
        curves: counts.all.map((each) => ({ active: each === counts.active, points: each.map((cell) => this.#stepsPoint(cell)) })),
      })));
    if (figureAt !== undefined) {
      byId("trade-off-charts").querySelector(`[data-chart="${figureAt}"] [data-mark="${CSS.escape(markAt)}"]`)?.focus();
    }
    setText(byId("trade-off-note"), summary({ scale, steps, name, measured, asked: samplerTitle(model, request.sampler) }, byScale, bySteps));
  }

  #scalePoint({ guidance_scale: scale, precision, recall }) {
    return {
      x: recall.value, y: precision.value, low: precision.low, high: precision.high, mark: number(scale),
      label: `Scale ${number(scale)}: precision ${precision.value.toFixed(2)}, recall ${recall.value.toFixed(2)}`,
      press: () => this.form.set("guidance_scale", scale),
    };
  }

  #stepsPoint({ steps, fid }) {
    return {
      x: steps, y: fid.value, low: fid.low, high: fid.high, mark: String(steps),
      label: `${counted(steps, "step")}: FID ${fidText(fid.value)}`, press: () => this.form.set("steps", steps),
    };
  }
}

const fidText = (value) => value.toFixed(value < 10 ? 2 : 1);

const figure = ({ value, low, high }, digits) => (low === null || high === null ? value.toFixed(digits)
  : `${value.toFixed(digits)} (${low.toFixed(digits)} to ${high.toFixed(digits)})`);

/** Group cells into a curve for each value of `apart`, each ordered by `along`; the active curve is nearest to `value`. */
function curves(cells, apart, along, value) {
  const values = [...new Set(cells.map(apart.of))].sort((a, b) => a - b);
  const all = values.map((each) => cells.filter((cell) => apart.of(cell) === each).sort((a, b) => along.of(a) - along.of(b)));
  const distance = (curve) => Math.abs(apart.even(apart.of(curve[0])) - apart.even(value));
  return { all, active: all.reduce((best, each) => (distance(each) < distance(best) ? each : best)) };
}

/** Interpolate a curve's figures at a value; beyond the ends of the curve, take those of the nearest end. */
function between(curve, along, value) {
  const at = Math.min(Math.max(value, along.of(curve[0])), along.of(curve.at(-1)));
  const above = curve.find((cell) => along.of(cell) >= at);
  const below = curve.findLast((cell) => along.of(cell) <= at);
  const span = along.even(along.of(above)) - along.even(along.of(below));
  const share = span === 0 ? 0 : (along.even(at) - along.even(along.of(below))) / span;
  const mix = (name) => below[name].value + share * (above[name].value - below[name].value);
  return { at, beyond: at !== value, exact: span === 0 && at === value, fid: mix("fid"), precision: mix("precision"), recall: mix("recall") };
}

function summary({ scale, steps, name, measured, asked }, byScale, bySteps) {
  const about = byScale.exact && bySteps.exact ? "" : "about ";
  const figures = `precision ${about}${byScale.precision.toFixed(2)}, recall ${about}${byScale.recall.toFixed(2)}, FID ${about}${fidText(bySteps.fid)}`;
  const notes = [
    ...(measured ? [] : [`${asked} was not measured; ${name} is shown`]),
    ...(byScale.beyond || bySteps.beyond ? ["the settings lie beyond what was measured; the nearest end is marked"] : []),
  ];
  return `${[`Now, at scale ${number(scale)} and ${counted(steps, "step")}: ${figures}`, ...notes].join(". ")}.`;
}

function framed(name, caption, drawing) {
  return element("figure", { "data-chart": name }, element("figcaption", {}, caption), drawing);
}
