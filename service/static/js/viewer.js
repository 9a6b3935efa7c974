/** The viewer: one image of one job, large, with its film, its progress and its settings. */

import { pathOfFile, write } from "./api.js";
import { byId, copy, element, focusFirst, local, recall, remember, setNotice, setText } from "./dom.js";
import { Film } from "./film.js";
import { about, capital, className, counted, curl, duration, fileName, number, numImages, queueHint, queueText, repeatable, samplerTitle, stageName, stepsTaken, title } from "./format.js";
import { isActive } from "./jobs.js";
import { linkPicture, showPicture, thumbnail } from "./pictures.js";

const MAX_EDGE_PX = 512;
const SIBLING_PX = 64;
const SCALING = "adm-scaling";
const OUTCOMES = {
  cancelled: "This job was cancelled.",
  expired: "This job expired: no worker took it in time.",
};

export class Viewer {
  #id = null;
  #index = 0;
  #announced = "";
  #siblings = [];

  /** actions: again(request), cancel(jobId), showing(jobId, index). */
  constructor(jobs, modelOf, actions) {
    this.jobs = jobs;
    this.modelOf = modelOf;
    this.actions = actions;
    this.film = new Film((frame) => this.#picture(frame));
    byId("cancel").addEventListener("click", () => {
      if (this.#entry.job.status !== "cancelling") actions.cancel(this.#id);
    });
    byId("again").addEventListener("click", () => actions.again(this.#entry.job.request));
    byId("copy-curl").addEventListener("click", (event) => copy(event.target, curl(this.#repeat), byId("source")));
    byId("copy-json").addEventListener("click", (event) => copy(event.target, write(this.#repeat, 2), byId("source")));
    this.#setUpScaling();
    new ResizeObserver(() => this.#size()).observe(document.querySelector(".viewing"));
    this.#size();
  }

  get id() {
    return this.#id;
  }

  show(id, index = this.jobs.get(id)?.job.request.first_index ?? 0) {
    if (id === this.#id && index === this.#index) return;
    this.#id = id;
    this.#index = index;
    this.#announced = "";
    this.#siblings = [];
    byId("picture").hidden = true;
    setText(byId("caption"), "");
    setNotice(byId("cancel-note"), "");
    this.film.reset();
    this.jobs.look(id);
    this.actions.showing(id, index);
    this.render();
  }

  render() {
    const entry = this.#entry;
    if (entry === undefined) return this.#empty();
    const { job } = entry;
    const cancelHadFocus = document.activeElement === byId("cancel");
    const name = title(this.modelOf(job.request.model), job.request);
    setText(byId("viewer-title"), capital(name));
    this.film.name(job.request.kind === "interpolate" ? "Frame of the morph" : "Denoising step");
    this.film.update(job.request.kind === "interpolate" ? morph(job) : this.#frames(entry));
    this.#size();
    this.#progress(entry);
    this.#facts(job);
    this.#scores(job);
    this.#actions(job);
    this.#siblingImages(entry);
    if (cancelHadFocus && !isActive(job)) focusFirst(["outcome", "again", "download"]);
    this.#announce(entry, name);
    return undefined;
  }

  get #entry() {
    return this.jobs.get(this.#id);
  }

  get #image() {
    return this.#entry?.job.images.find((each) => each.index === this.#index);
  }

  get #repeat() {
    const { request } = this.#entry.job;
    return repeatable(request, this.modelOf(request.model));
  }

  #empty() {
    this.film.reset();
    setText(byId("viewer-title"), "How a picture forms");
    setText(byId("caption"), "");
    byId("request-facts").replaceChildren();
    for (const id of ["picture", "progress-area", "outcome", "image-actions", "job-source", "siblings-area", "scores-area"]) byId(id).hidden = true;
  }

  #frames(entry) {
    const frames = this.#source(entry.job.request);
    const steps = entry.previews.of(this.#index).map((each, at, all) => ({
      key: `${each.stage}/${each.step}`,
      url: each.url,
      mark: String(each.step),
      label: `${stageName(each.stage)}, step ${each.step} of ${each.steps}`,
      caption: `${stageName(each.stage)} step ${each.step} of ${each.steps}: the model's guess at the finished picture`,
      starts: (at > 0 && all[at - 1].stage !== each.stage) || (at === 0 && frames.length > 0),
    }));
    frames.push(...steps);
    const image = this.#image;
    if (image !== undefined) {
      const size = `Finished, ${image.width} × ${image.height} px`;
      const caption = steps.length > 0 || entry.job.request.kind !== "generate" ? size : `${size}. Make it again with its seed to watch its steps.`;
      frames.push({ key: "done", url: image.url, mark: "done", label: "Finished", caption, starts: frames.length > 0 });
    }
    return frames;
  }

  /** The picture that a job started from, if there is one, as the film's first frame. */
  #source({ kind, images, n, first_index: first }) {
    if (kind === "generate" || kind === "interpolate") return [];
    const place = this.#index - first;
    const file = images[kind === "variation" ? Math.floor(place / n) : place];
    return [{ key: `file/${file}`, url: pathOfFile(file), mark: "yours", label: "Your picture", caption: "Your picture", starts: false }];
  }

  #picture(frame) {
    const picture = byId("picture");
    showPicture(picture, frame.url);
    picture.alt = `${byId("viewer-title").textContent}: ${frame.label}`;
    setText(byId("caption"), frame.caption);
  }

  /** Scale by a whole factor of device pixels, so that all pixels are shown equally large. */
  #size() {
    const request = this.#entry?.job.request;
    const model = this.modelOf(request?.model);
    const size = (request?.upsample === false ? model?.stages[0].image_size : model?.image_size) ?? 64;
    const room = Math.min(document.querySelector(".viewing").clientWidth, MAX_EDGE_PX);
    const ratio = window.devicePixelRatio;
    const edge = (Math.max(1, Math.floor((room * ratio) / size)) * size) / ratio;
    for (const side of ["width", "height"]) byId("picture-box").style[side] = `${edge}px`;
  }

  #setUpScaling() {
    const kept = recall(local, SCALING);
    for (const each of document.querySelectorAll("input[name=scaling]")) {
      if (kept === each.value) each.checked = true;
      if (each.checked) document.body.dataset.scaling = each.value;
      each.addEventListener("change", () => {
        document.body.dataset.scaling = each.value;
        remember(local, SCALING, each.value);
      });
    }
  }

  #progress(entry) {
    const { job } = entry;
    byId("progress-area").hidden = !isActive(job);
    byId("progress").value = job.progress.fraction;
    byId("cancel").setAttribute("aria-disabled", String(job.status === "cancelling")); // a disabled one would lose the focus
    setText(byId("progress-text"), progressText(job));
    setText(byId("progress-hint"), progressHint(entry));
    const failed = job.status === "failed" && `It failed: ${job.error?.detail ?? "its worker gave no reason"}`;
    setNotice(byId("outcome"), failed || OUTCOMES[job.status] || "");
    byId("outcome").classList.toggle("error", job.status === "failed");
  }

  #facts(job) {
    const { request, usage } = job;
    const error = job.results?.errors?.[this.#index];
    const facts = [];
    if (request.kind === "generate" || request.class_label !== null) {
      facts.push(["Class", className(this.modelOf(request.model), request.class_label)], ["Guidance", number(request.guidance_scale)]);
    }
    if (error !== undefined) {
      const psnr = error.psnr === null ? "no difference" : `${error.psnr.toFixed(1)} dB`;
      facts.push(["Mean error", `${number(error.mean_absolute)} of 255`], ["PSNR", psnr]);
    }
    if (request.kind === "variation") facts.push(["Strength", number(request.strength)]);
    if (request.kind !== "score") facts.push(...this.#sampling(request));
    facts.push(["Model", request.model]);
    for (const [key, value] of Object.entries(request.metadata ?? {})) facts.push([key, value]);
    if (numImages(request) > 1 && request.kind !== "interpolate") facts.push(["Image", `${this.#index - request.first_index + 1} of ${numImages(request)}`]);
    if (job.attempt > 1) facts.push(["Attempt", String(job.attempt)]);
    if (job.status === "completed") facts.push(["Took", duration(job.ended_at - job.started_at)]);
    if (usage.steps > 0) facts.push(["On the device", `${usage.device_seconds.toFixed(1)} s, ${counted(usage.steps, "step")}`]);
    const shown = facts.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]);
    const list = byId("request-facts");
    if (list.textContent !== shown.map((each) => each.textContent).join("")) list.replaceChildren(...shown);
  }

  #sampling(request) {
    const { upsample } = request;
    const base = request.kind === "upsample" ? [] : [stepsTaken(request.steps, request.strength ?? 1)];
    const enlarging = upsample ? [stepsTaken(upsample.steps, upsample.strength)] : [];
    const facts = [
      ["Steps", [...base, ...enlarging].join(" + ")],
      ["Sampler", samplerTitle(this.modelOf(request.model), request.sampler) + (request.sampler === "ddim" ? `, eta ${number(request.eta)}` : "")],
    ];
    if (request.kind !== "reconstruct") facts.push(["Seed", request.seed]); // a reconstruction draws no noise
    return facts;
  }

  /** The classifier's answer as bars, likeliest first. */
  #scores(job) {
    const scores = job.results?.scores?.[this.#index] ?? [];
    byId("scores-area").hidden = scores.length === 0;
    const bars = scores.map(({ class_name: name, probability }) => element("li", {},
      element("span", { className: "bar-name" }, name),
      element("progress", { max: 1, value: probability, "aria-label": name }),
      element("span", { className: "bar-value" }, `${(100 * probability).toFixed(1)} %`)));
    if (byId("scores").textContent !== bars.map((each) => each.textContent).join("")) byId("scores").replaceChildren(...bars);
  }

  #actions(job) {
    const image = this.#image;
    byId("again").hidden = job.request.kind !== "generate";
    byId("image-actions").hidden = isActive(job) && image === undefined;
    byId("download").hidden = image === undefined;
    if (image !== undefined) linkPicture(byId("download"), image.url, fileName(job.request, image));
    byId("job-source").hidden = false;
    if (byId("source").dataset.job !== job.id) {
      byId("source").dataset.job = job.id;
      setText(byId("source"), write(this.#repeat, 2));
    }
  }

  #siblingImages({ job, previews }) {
    const n = Math.max(numImages(job.request), job.request.kind === "score" ? job.request.images.length : 0);
    const alone = n === 1 || job.request.kind === "interpolate"; // a morph's frames are its film
    byId("siblings-area").hidden = alone;
    if (alone) return;
    if (this.#siblings.length === 0) {
      this.#siblings = Array.from({ length: n }, (_, place) => {
        const made = element("button", { type: "button", "aria-label": `Image ${place + 1} of ${n}` }, element("img", { alt: "", hidden: true }));
        made.addEventListener("click", () => this.show(job.id, job.request.first_index + place));
        return made;
      });
      byId("siblings").replaceChildren(...this.#siblings);
    }
    this.#siblings.forEach((button, place) => {
      const index = job.request.first_index + place;
      button.setAttribute("aria-pressed", String(index === this.#index));
      const own = job.request.kind === "score" ? pathOfFile(job.request.images[place]) : undefined;
      const image = job.images.find((each) => each.index === index);
      const url = own ?? (image && thumbnail(image, SIBLING_PX)) ?? previews.of(index).at(-1)?.url;
      const picture = button.firstElementChild;
      if (url !== undefined) showPicture(picture, url);
    });
  }

  /** Announce changes of state to screen readers, not every step. */
  #announce({ job }, name) {
    const seed = job.request.kind === "generate" ? `, seed ${job.request.seed}` : "";
    const quarter = Math.floor((job.progress.fraction) * 4) * 25;
    const text = {
      queued: `${name}: ${queueText(job.queue)}`,
      in_progress: `${name}: ${quarter} percent, ${stageName(job.progress.stage)}`,
      cancelling: `${name}: cancelling`,
      completed: `${name}: finished${seed}`,
      failed: `${name}: failed`,
    }[job.status] ?? `${name}: ${job.status}`;
    if (text === this.#announced) return;
    this.#announced = text;
    setText(byId("announcer"), text);
  }
}

/** The existing frames of a morph. */
function morph(job) {
  const { n } = job.request;
  return job.images.map(({ index, url }) => ({
    key: `frame/${index}`, url, mark: String(index + 1), label: `Frame ${index + 1} of ${n}`, caption: `Frame ${index + 1} of ${n}`, starts: false,
  }));
}

function progressText(job) {
  if (job.status === "cancelling") return "Cancelling…";
  if (job.status === "queued") return queueText(job.queue);
  const { stage, step, steps } = job.progress;
  return `${stageName(stage)} step ${step} of ${steps}`;
}

function progressHint(entry) {
  if (!entry.connected) return "The connection was lost; trying again.";
  if (entry.job.status === "queued") return queueHint(entry.job.queue);
  const { secondsLeft, silentSeconds } = entry;
  if (silentSeconds > 0) {
    return `The worker has been silent for ${duration(silentSeconds)}. If it has ended, another worker takes over when the lease ends.`;
  }
  const left = secondsLeft === null ? "" : capital(`${about(secondsLeft)} left`);
  return entry.job.attempt > 1 ? `Attempt ${entry.job.attempt}. ${left}` : left;
}
