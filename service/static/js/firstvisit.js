/** The first visit: a recorded run of the demo plays in the place of pictures, from noise to the picture. */

import { byId, setText } from "./dom.js";

const STRIP = "static/first-visit.png"; // made by `python -m bench.first_visit`
const EDGE_PX = 64; // of a frame of the strip
const FRAME_MS = 260; // the recorded run takes under four seconds, so it needs no control for stopping it

export class FirstVisit {
  #strip = null;
  #timer = null;

  constructor() {
    drawNoise(byId("noise"));
    byId("example-again").addEventListener("click", () => this.#play());
  }

  /** Show the recorded run while the page has nothing else to show. */
  offer(empty) {
    byId("invitation").hidden = !empty;
    byId("example").hidden = !empty;
    if (!empty) this.#stop();
    else if (this.#strip === null) this.#load();
  }

  #load() {
    this.#strip = new Image();
    this.#strip.addEventListener("load", () => this.#playWhenSeen());
    this.#strip.src = STRIP;
  }

  /** Play when the example comes into view; on a phone it is below the form. */
  #playWhenSeen() {
    const observer = new IntersectionObserver(([{ isIntersecting }]) => {
      if (!isIntersecting) return;
      observer.disconnect();
      this.#play();
    }, { threshold: 0.5 });
    observer.observe(byId("example"));
    this.#draw(0, this.#frames);
  }

  get #frames() {
    return this.#strip.naturalWidth / EDGE_PX;
  }

  #play() {
    this.#stop();
    const frames = this.#frames;
    if (byId("example").hidden || frames === 0) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    let at = calm ? frames - 1 : 0;
    const next = () => {
      this.#draw(at, frames);
      at += 1;
      if (at === frames) this.#stop();
    };
    this.#timer = setInterval(next, FRAME_MS);
    next();
  }

  #draw(at, frames) {
    byId("example").getContext("2d").drawImage(this.#strip, at * EDGE_PX, 0, EDGE_PX, EDGE_PX, 0, 0, EDGE_PX, EDGE_PX);
    setText(byId("example-caption"), at === 0 ? "An example, recorded: pure noise" : at === frames - 1
      ? "An example, recorded: a torus" : "An example, recorded: the noise is removed step by step");
  }

  #stop() {
    clearInterval(this.#timer);
    this.#timer = null;
  }
}

/** Noise, as the start of every picture; this is only an imitation. */
function drawNoise(canvas) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 1) pixels.data[at] = at % 4 === 3 ? 255 : Math.random() * 256;
  context.putImageData(pixels, 0, 0);
}
