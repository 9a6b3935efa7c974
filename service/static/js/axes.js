/** The fields that an axis of an X/Y grid can have, and how their values are typed, sent and shown. */

import { className, samplerTitle } from "./format.js";

const SOME_CLASSES = 5;
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?$/i; // as JSON has it
const TEXTS = new Set(["sampler", "time_grid", "thresholding"]);

/** Title of each field, and its suggested values. */
const FIELDS = {
  guidance_scale: ["Guidance scale", () => ["0", "1", "2", "4", "8"]],
  steps: ["Steps", () => ["10", "25", "50"]],
  sampler: ["Sampler", (model) => model.samplers],
  class_label: ["Class", (model) => model.classes.slice(0, SOME_CLASSES).map((each) => each.name)],
  eta: ["Eta", () => ["0", "0.5", "1"]],
  seed: ["Seed", () => ["1", "2", "3", "4"]],
  time_grid: ["Time grid", (model) => model.time_grids],
  thresholding: ["Thresholding", (model) => model.thresholdings],
};

export const fieldNames = Object.keys(FIELDS);

/** The title of a field. */
export const fieldTitle = (field) => FIELDS[field]?.[0] ?? field;

/** The suggested values of a field, as text to type. */
export const usualValues = (field, model) => FIELDS[field][1](model).join(", ");

/** A field and typed values as JSON. Seeds have up to 63 bits, so their digits are sent as typed. */
export function axisText(field, typed) {
  const values = typed.split(",").map((each) => each.trim()).filter((each) => each !== "");
  return `{"field": ${JSON.stringify(field)}, "values": [${values.map((each) => valueText(field, each)).join(", ")}]}`;
}

function valueText(field, value) {
  if (field === "class_label" && value === "none") return "null";
  return !TEXTS.has(field) && NUMBER.test(value) ? value : JSON.stringify(value);
}

/** A value as a label. A cell's job has its seed with all digits. */
export function valueTitle(field, value, model, job) {
  if (field === "class_label") return className(model, typeof value === "string" ? indexOf(model, value) : value);
  if (field === "sampler") return samplerTitle(model, value);
  return field === "seed" && job?.request ? job.request.seed : String(value);
}

const indexOf = (model, name) => model?.classes.find((each) => each.name === name)?.index ?? name;
