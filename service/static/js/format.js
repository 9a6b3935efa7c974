/** Words and texts made from jobs and requests. */

import { write } from "./api.js";
import { key } from "./key.js";

const STAGE_NAMES = { base: "Base", upsample: "Upsampler" };

const USUAL_OPTIONS = { time_grid: "official", thresholding: "clip", guidance_schedule: "constant", first_index: 0 }; // options without a field, and their usual values

/** The title of a sampler. */
export function samplerTitle(model, name) {
  return model?.sampler_notes?.find((each) => each.name === name)?.title ?? name.toUpperCase();
}

export const stageName = (stage) => STAGE_NAMES[stage] ?? stage;

/** A duration as text. */
export function duration(seconds) {
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

/** A duration that is only an estimate. */
export const about = (seconds) => (seconds < 1 ? duration(seconds) : `about ${duration(seconds)}`);

/** A text with a capital letter. */
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A count with its noun, in the plural unless it is 1. */
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export const number = (value) => String(Math.round(value * 1000) / 1000);

/** Name of a request's class, as its model has it. */
export function className(model, classLabel) {
  if (classLabel === null) return "no class";
  return model?.classes.find((each) => each.index === classLabel)?.name ?? `class ${classLabel}`;
}

const KIND_TITLES = {
  upsample: "Upsampled picture", variation: "Variation", reconstruct: "Reconstruction", interpolate: "Morph", score: "Scores",
};

/** A short name for the results of a job. */
export function title(model, request) {
  return KIND_TITLES[request.kind] ?? className(model, request.class_label);
}

/** The number of images that a job makes. */
export function numImages({ kind, n, images }) {
  return { upsample: images?.length, reconstruct: images?.length, variation: n * images?.length, score: 0 }[kind] ?? n;
}

/** The class to send: its name, unless another class has the same name. */
export function classLabel(model, index) {
  if (index === null) return null;
  const { name } = model?.classes.find((each) => each.index === index) ?? {};
  return name !== undefined && model.classes.filter((each) => each.name === name).length === 1 ? name : index;
}

/** Returns whether a kind of job uses a class-conditional network. */
export function usesClass(model, kind) {
  if (kind === "score") return false;
  return model?.stages.some((each) => each.class_conditional && (kind !== "upsample" || each.name === "upsample")) ?? false;
}

/** The number of steps that run at a strength, the last ones of the sampler; the engine computes the same number. */
export function stepsTaken(steps, strength) {
  return Math.max(1, Math.ceil(Number((strength * steps).toFixed(9)))); // 0.28 * 25 is 7.000000000000001
}

/** Options of a resolved request that the form has no field for, except those with their usual values. */
export function extrasOf(request, model) {
  const extras = {};
  const usual = model?.defaults.upsample;
  const { upsample, guidance_interval: interval } = request;
  const asUsual = usual && Object.keys(upsample).every((key) => upsample[key] === (usual[key] ?? USUAL_OPTIONS[key]));
  if (upsample && !asUsual) extras.upsample = upsample;
  if (interval && (interval[0] !== 0 || interval[1] !== 1000)) extras.guidance_interval = interval;
  if (request.eps_scale !== (model?.defaults.eps_scale ?? 1)) extras.eps_scale = request.eps_scale;
  if (request.class_weights) extras.class_weights = request.class_weights;
  for (const [key, usually] of Object.entries(USUAL_OPTIONS)) {
    if (request[key] !== undefined && request[key] !== usually) extras[key] = request[key];
  }
  return extras;
}

/** A body that makes a job's images again, from its resolved request. */
export function repeatable(request, model) {
  const { model: name, guidance_scale, steps, sampler, eta, n, seed, upsample } = request;
  const { kind, images, seeds, strength } = request;
  const start = kind === "generate" ? { model: name } : { kind, model: name, ...(seeds ? { seeds } : { images }) };
  if (kind === "score") return start;
  if (kind === "upsample") {
    const label = usesClass(model, kind) ? { class_label: classLabel(model, request.class_label) } : {};
    const first = request.first_index > 0 ? { first_index: request.first_index } : {};
    return { ...start, ...label, ...first, seed, upsample };
  }
  /** @type {Record<string, any>} */
  const body = { ...start, class_label: classLabel(model, request.class_label), guidance_scale, steps };
  if (kind === "reconstruct") return body;
  if (kind === "variation") body.strength = strength;
  body.sampler = sampler;
  if (sampler === "ddim") body.eta = eta;
  return { ...body, n, seed, upsample: Boolean(upsample), ...extrasOf(request, model) };
}

/** A request as a command for a POSIX shell. */
export function curl(request) {
  const body = write(request).replaceAll("'", "'\\''");
  return [
    `curl -X POST ${location.origin}/v1/jobs`,
    "  -H 'Content-Type: application/json' -H 'Prefer: wait=60'",
    ...(key() === null ? [] : ['  -H "Authorization: Bearer $ADM_API_KEY"']), // not the key itself, because copied text may be seen by others
    `  -d '${body}'`,
  ].join(" \\\n");
}

/** Name of a downloaded image: its class or kind, its seed and its index. */
export function fileName(request, image) {
  const what = (image.class_name ?? (request.kind === "generate" ? "no-class" : request.kind)).replace(/[^\w-]+/g, "-");
  return `${what}-seed${request.seed}-${image.index}.png`;
}

/** The place of a queued job. */
export function queueText(queue) {
  if (queue === null) return "Queued";
  if (queue.position === 0) return "Next in the queue";
  const yours = key() === null ? "" : `, ${queue.yours} of them yours`;
  return `${queue.position} before it in the queue${yours}`;
}

export function queueHint(queue) {
  if (queue === null) return "";
  if (queue.workers === 0) return "No worker serves this pipeline; the job waits until one does.";
  if (queue.eta_seconds === null) return "";
  const done = `Done in ${about(queue.eta_seconds)}`;
  return queue.eta_error_seconds >= 1 ? `${done}, give or take ${duration(queue.eta_error_seconds)}` : done;
}
