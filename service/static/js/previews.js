/** The previews of one job, by image, within a limit of bytes: a long job of many images has hundreds of megabytes. */

const MAX_BYTES = 16 * 2 ** 20;
const STAGES = ["base", "upsample"]; // in the order in which an image passes through them

const order = ({ stage, step }) => STAGES.indexOf(stage) * 10_000 + step;

export class Previews {
  #films = new Map(); // image index -> [{stage, step, steps, url}], in order
  #bytes = 0;

  get bytes() {
    return this.#bytes;
  }

  /** The frames of an image, in the order of its steps. */
  of(index) {
    return this.#films.get(index) ?? [];
  }

  add({ index, stage, step, steps, png }) {
    const film = this.of(index);
    this.#films.set(index, film);
    const frame = { stage, step, steps, url: `data:image/png;base64,${png}` };
    let place = film.length;
    while (place > 0 && order(film[place - 1]) > order(frame)) place -= 1;
    // a retried job takes its steps again, and they look the same
    const known = place > 0 && order(film[place - 1]) === order(frame);
    const [replaced] = film.splice(known ? place - 1 : place, known ? 1 : 0, frame);
    this.#bytes += frame.url.length - (replaced?.url.length ?? 0); // base64: a character is a byte
    while (this.#bytes > MAX_BYTES) this.#thin();
  }

  clear() {
    this.#films.clear();
    this.#bytes = 0;
  }

  /** Drop the frame of the longest film whose neighbours are nearest, so that the others are spread over all steps. */
  #thin() {
    const [index, film] = [...this.#films].reduce((a, b) => (b[1].length >= a[1].length ? b : a));
    let dropped = 0; // if there are at most two frames, the older one
    const gap = (at) => order(film[at + 1]) - order(film[at - 1]);
    for (let at = 1; at < film.length - 1; at += 1) if (dropped === 0 || gap(at) < gap(dropped)) dropped = at;
    const [frame] = film.splice(dropped, 1);
    this.#bytes -= frame.url.length;
    if (film.length === 0) this.#films.delete(index);
  }
}
