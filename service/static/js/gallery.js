/** The gallery: finished images and jobs in progress that the filters admit, newest first. */

import { byId, element, setText } from "./dom.js";
import { fileName, numImages, title } from "./format.js";
import { isActive } from "./jobs.js";
import { linkPicture, showPicture, thumbnail } from "./pictures.js";

const TILE_PX = 128;

export class Gallery {
  #tiles = new Map(); // key -> element
  #shown = { id: null, index: 0 };

  /** actions: show(jobId, index), again(request). */
  constructor(jobs, modelOf, filters, selection, actions) {
    this.jobs = jobs;
    this.modelOf = modelOf;
    this.filters = filters;
    this.selection = selection;
    this.actions = actions;
    this.list = byId("tiles");
  }

  /** Mark the image that the viewer shows. */
  mark(id, index) {
    this.#shown = { id, index };
    for (const [key, tile] of this.#tiles) {
      const current = key === `${id}/${index}` || key === `${id}/active`;
      tile.querySelector(".tile-picture").setAttribute("aria-current", String(current));
    }
  }

  render() {
    const wanted = [];
    const selectable = [];
    for (const entry of this.jobs.all.filter(({ job }) => this.filters.admits(job))) {
      if (isActive(entry.job)) wanted.push([`${entry.job.id}/active`, () => this.#active(entry), entry]);
      for (const image of shown(entry.job)) {
        wanted.push([`${entry.job.id}/${image.index}`, () => this.#finished(entry.job, image)]);
        selectable.push(...selected(entry.job, image));
      }
    }
    const keys = new Set(wanted.map(([key]) => key));
    for (const key of [...this.#tiles.keys()]) if (!keys.has(key)) this.#drop(key);
    wanted.forEach(([key, make, entry], at) => {
      if (!this.#tiles.has(key)) this.#tiles.set(key, make());
      const tile = this.#tiles.get(key);
      if (this.list.children[at] !== tile) this.list.insertBefore(tile, this.list.children[at] ?? null);
      if (entry !== undefined) this.#follow(tile, entry);
    });
    byId("filters").hidden = this.filters.query === "" && this.jobs.all.length === 0;
    this.selection.offer(selectable);
    this.markSelected();
    setText(byId("gallery-empty"), this.filters.query === "" ? "Finished pictures gather here." : this.jobs.hasOlder
      ? "None of the newest jobs matches. Older ones may." : "No job matches.");
    byId("gallery-empty").hidden = wanted.length > 0;
    byId("more").hidden = !this.jobs.hasOlder;
    this.mark(this.#shown.id, this.#shown.index);
  }

  /** Let the boxes show the selection. */
  markSelected() {
    for (const box of this.list.querySelectorAll(".pick input")) box.checked = this.selection.has(box.name.split(" "));
  }

  #drop(key) {
    this.#tiles.get(key).remove();
    this.#tiles.delete(key);
  }

  #finished(job, image) {
    const { seed } = job.request;
    const made = job.request.kind !== "generate";
    const several = numImages(job.request) > 1 && job.request.kind !== "interpolate";
    const name = made ? title(undefined, job.request) : image.class_name ?? "no class";
    const picture = element("img", { alt: "", width: 128, height: 128, loading: "lazy" });
    showPicture(picture, thumbnail(image, TILE_PX));
    const show = element("button", {
      type: "button", className: "tile-picture", "aria-label": `Show ${name}, seed ${seed}, image ${image.index}`,
    }, picture);
    show.addEventListener("click", () => this.actions.show(job.id, image.index));
    const save = element("a", { "aria-label": `Download ${name}, seed ${seed}` }, "Save");
    linkPicture(save, image.url, fileName(job.request, image));
    const again = element("button", {
      type: "button", className: "link", "aria-label": `Again with seed ${seed}`,
    }, "Again");
    again.addEventListener("click", () => this.actions.again(job.request));
    return element("li", {}, show, this.#box(selected(job, image), `Select ${name}, seed ${seed}, image ${image.index}`),
      element("span", { className: "tile-name" }, several ? `${name} · ${image.index}` : name),
      element("span", { className: "tile-seed", title: `Seed ${seed}` }, job.request.kind === "reconstruct" ? "" : seed),
      element("span", { className: "tile-actions" }, save, ...(made ? [] : [again])));
  }

  /** A box that selects images. */
  #box(images, label) {
    const box = element("input", { type: "checkbox", name: images.join(" "), "aria-label": label });
    box.addEventListener("change", () => this.selection.set(images, box.checked));
    return element("label", { className: "pick" }, box);
  }

  #active({ job }) {
    const show = element("button", { type: "button", className: "tile-picture" },
      element("img", { alt: "", width: 128, height: 128, hidden: true }));
    show.addEventListener("click", () => this.actions.show(job.id, 0));
    return element("li", { className: "active" }, show,
      element("span", { className: "tile-name" }), element("span", { className: "tile-seed" }));
  }

  #follow(tile, { job, previews }) {
    const name = title(this.modelOf(job.request.model), job.request);
    const share = Math.floor((job.progress.fraction) * 100);
    const state = job.status === "queued" ? "queued" : job.status === "cancelling" ? "cancelling" : `${share} %`;
    setText(tile.querySelector(".tile-name"), name);
    setText(tile.querySelector(".tile-seed"), state);
    tile.querySelector("button").setAttribute("aria-label", `Show ${name}, ${state}`);
    const newest = previews.of(0).at(-1);
    const picture = tile.querySelector("img");
    if (newest !== undefined) showPicture(picture, newest.url);
  }
}

/** The images that get a tile: of a morph only the first, because its frames belong together. */
function shown({ request, images }) {
  return request.kind === "interpolate" ? images.slice(0, 1) : images;
}

/** The images that a tile stands for, as "job/index". */
function selected({ id, request, images }, image) {
  return (request.kind === "interpolate" ? images : [image]).map(({ index }) => `${id}/${index}`);
}
