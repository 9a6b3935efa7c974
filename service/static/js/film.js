/** The filmstrip: the preview of each denoising step, to scrub through and to play. */

import { byId, element, setText } from "./dom.js";
import { showPicture } from "./pictures.js";

const MAX_THUMBS = 120; // more only slow the page down; the slider still reaches every frame
const PLAY_MS = 110;

/** A frame is {key, url, mark, label, caption, starts}; starts: whether it is the first of its stage. */
export class Film {
  #frames = [];
  #position = 0;
  #following = true; // shows the newest as it comes, until the user goes back
  #timer = null;
  #thumbs = new Map(); // key of a frame -> element

  constructor(onFrame) {
    this.onFrame = onFrame;
    this.slider = byId("scrubber");
    this.strip = byId("strip");
    this.slider.addEventListener("input", () => { this.#stop(); this.#go(Number(this.slider.value), true); });
    this.strip.addEventListener("click", (event) => {
      const thumb = event.target.closest("[data-position]");
      if (thumb === null) return;
      this.#stop();
      this.#go(Number(thumb.dataset.position), true);
    });
    byId("latest").addEventListener("click", () => { this.#stop(); this.#go(this.#frames.length - 1, true); });
    byId("play").addEventListener("click", () => (this.#timer === null ? this.#play() : this.#stop()));
  }

  /** Forget all frames: another picture is shown. */
  reset() {
    this.#stop();
    this.#frames = [];
    this.#position = 0;
    this.#following = true;
    this.#thumbs.clear();
    this.strip.replaceChildren();
    byId("film").hidden = true;
  }

  /** Name the slider for screen readers. */
  name(text) {
    this.slider.setAttribute("aria-label", text);
  }

  /** Show the frames so far. */
  update(frames) {
    const same = (each, at) => each.key === this.#frames[at].key && each.url === this.#frames[at].url;
    if (frames.length === this.#frames.length && frames.every(same)) return;
    this.#keepPosition(frames);
    this.#frames = frames;
    byId("film").hidden = frames.length < 2;
    this.slider.max = Math.max(0, frames.length - 1);
    this.#layOutThumbs();
    if (frames.length > 0) this.#go(this.#following ? frames.length - 1 : this.#position, false);
  }

  /** Stay at the shown frame; if it was dropped, at the same share of the film. */
  #keepPosition(frames) {
    const at = frames.findIndex((each) => each.key === this.#frames[this.#position]?.key);
    const along = this.#frames.length > 0 ? this.#position / this.#frames.length : 0;
    this.#position = at >= 0 ? at : Math.floor(along * frames.length);
  }

  #go(position, byHand) {
    this.#position = Math.max(0, Math.min(position, this.#frames.length - 1));
    const frame = this.#frames[this.#position];
    if (frame === undefined) return;
    const newest = this.#position === this.#frames.length - 1;
    if (byHand) this.#following = newest;
    this.slider.value = this.#position;
    this.slider.setAttribute("aria-valuetext", frame.label);
    byId("latest").disabled = newest;
    this.#markThumb(byHand || this.#following);
    this.onFrame(frame);
  }

  #play() {
    let at = this.#position === this.#frames.length - 1 ? 0 : this.#position;
    this.#following = false;
    setText(byId("play"), "Pause");
    byId("play").setAttribute("aria-label", "Pause");
    this.#go(at, true);
    this.#timer = setInterval(() => {
      at += 1;
      this.#go(at, true);
      if (at >= this.#frames.length - 1) this.#stop();
    }, PLAY_MS);
  }

  #stop() {
    clearInterval(this.#timer);
    this.#timer = null;
    setText(byId("play"), "Play");
    byId("play").setAttribute("aria-label", "Play the denoising");
  }

  #layOutThumbs() {
    const count = this.#frames.length;
    const shown = Math.min(count, MAX_THUMBS);
    const thumbs = [];
    for (let i = 0; i < shown; i += 1) {
      const position = shown === 1 ? 0 : Math.round((i * (count - 1)) / (shown - 1));
      thumbs.push(this.#thumb(this.#frames[position], position));
    }
    // only changed thumbs are replaced, because a new strip would lose its scroll position
    thumbs.forEach((thumb, i) => {
      if (this.strip.children[i] !== thumb) this.strip.insertBefore(thumb, this.strip.children[i] ?? null);
    });
    while (this.strip.children.length > thumbs.length) this.strip.lastElementChild.remove();
    const keys = new Set(this.#frames.map((each) => each.key));
    for (const key of this.#thumbs.keys()) if (!keys.has(key)) this.#thumbs.delete(key);
  }

  #thumb(frame, position) {
    let thumb = this.#thumbs.get(frame.key);
    if (thumb === undefined) {
      const image = element("img", { alt: "", draggable: false, decoding: "async" });
      thumb = element("div", { className: "thumb" }, image, element("span", {}, frame.mark));
      this.#thumbs.set(frame.key, thumb);
    }
    const image = thumb.firstElementChild;
    showPicture(image, frame.url);
    thumb.dataset.position = position;
    thumb.classList.toggle("starts", frame.starts && position > 0);
    return thumb;
  }

  #markThumb(reveal) {
    let nearest = null;
    for (const each of this.strip.children) {
      each.classList.remove("current");
      if (Number(each.dataset.position) <= this.#position) nearest = each;
    }
    if (nearest === null) return;
    nearest.classList.add("current");
    if (!reveal) return;
    const middle = nearest.offsetLeft - this.strip.offsetLeft + nearest.offsetWidth / 2;
    this.strip.scrollLeft = middle - this.strip.clientWidth / 2; // scrollIntoView would move the page as well
  }
}
