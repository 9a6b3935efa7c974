/** Charts as SVG: curves on two axes, points that can be pressed, and a mark for the present settings. */

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 460, HEIGHT = 300, LEFT = 52, RIGHT = 16, TOP = 14, BOTTOM = 44;
const GROWTH = 0.06; // of an axis beyond the outermost values
const TICKS = 5;

export function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Maps an axis's values to places between `start` and `end`; `log`: on a logarithmic scale. */
class Axis {
  constructor(values, start, end, log) {
    const known = values.filter((each) => each !== null && (!log || each > 0));
    const map = log ? Math.log10 : (value) => value;
    const [low, high] = [Math.min(...known), Math.max(...known)].map(map);
    const margin = (high - low) * GROWTH || Math.abs(high) * GROWTH || 1;
    this.map = map;
    this.log = log;
    this.low = low - margin;
    this.high = high + margin;
    this.start = start;
    this.end = end;
  }

  /** The place of a value; on a logarithmic axis a value that is not above 0 is at the lower end. */
  place(value) {
    const mapped = this.log && value <= 0 ? this.low : Math.max(this.map(value), this.low);
    const share = (mapped - this.low) / (this.high - this.low);
    return Math.round((this.start + share * (this.end - this.start)) * 10) / 10;
  }

  get ticks() {
    const values = this.log ? this.#logTicks() : this.#evenTicks();
    return values.filter((value) => this.map(value) >= this.low && this.map(value) <= this.high);
  }

  #evenTicks() {
    const least = (this.high - this.low) / TICKS;
    const power = 10 ** Math.floor(Math.log10(least));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= least * 0.999);
    return Array.from({ length: TICKS + 2 }, (_, at) => (Math.ceil(this.low / step) + at) * step);
  }

  #logTicks() {
    const powers = Array.from({ length: Math.ceil(this.high) - Math.floor(this.low) + 1 }, (_, at) => Math.floor(this.low) + at);
    return powers.flatMap((power) => [1, 2, 5].map((factor) => factor * 10 ** power));
  }
}

const short = (value) => String(Number(value.toPrecision(3)));

/**
 * A chart. curves: [{name, points, active}]. A point is {x, y, low, high, mark, label, press}; low and high are the ends
 * of y's interval, or null. The active curve's points are buttons. now: {x, y} of the present settings, or null.
 */
export function chart({ title, xTitle, yTitle, curves, now, logX = false, logY = false }) {
  const points = curves.flatMap((each) => each.points);
  const x = new Axis(points.map((each) => each.x), LEFT, WIDTH - RIGHT, logX);
  const y = new Axis(points.flatMap((each) => [each.y, each.low ?? null, each.high ?? null]), HEIGHT - BOTTOM, TOP, logY);
  const drawn = [...curves].sort((a, b) => a.active - b.active).map((each) => curveOf(each, x, y));
  const mark = now === null ? [] : [svg("path", { class: "now", d: `M${x.place(now.x)} ${y.place(now.y)}m0-8l8 8-8 8-8-8z` })];
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": title },
    axes(x, y, xTitle, yTitle), ...drawn, ...mark);
}

function axes(x, y, xTitle, yTitle) {
  const bottom = HEIGHT - BOTTOM;
  const middle = (TOP + bottom) / 2;
  return svg("g", { class: "axes", "aria-hidden": "true" },
    ...x.ticks.flatMap((value) => [
      svg("path", { d: `M${x.place(value)} ${TOP}V${bottom}` }),
      svg("text", { x: x.place(value), y: bottom + 16, "text-anchor": "middle" }, short(value)),
    ]),
    ...y.ticks.flatMap((value) => [
      svg("path", { d: `M${LEFT} ${y.place(value)}H${WIDTH - RIGHT}` }),
      svg("text", { x: LEFT - 6, y: y.place(value) + 4, "text-anchor": "end" }, short(value)),
    ]),
    svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle", class: "axis-title" }, xTitle),
    svg("text", { transform: `translate(12 ${middle}) rotate(-90)`, "text-anchor": "middle", class: "axis-title" }, yTitle));
}

function curveOf({ points, active }, x, y) {
  const line = points.map((each) => `${x.place(each.x)},${y.place(each.y)}`).join(" ");
  const made = svg("g", { class: active ? "curve active" : "curve" }, svg("polyline", { points: line }));
  if (active) made.append(...points.map((each) => button(each, x, y)));
  return made;
}

/** A point that can be pressed, by mouse and by keyboard. */
function button({ x: across, y: up, low = null, high = null, mark, label, press }, x, y) {
  const [left, top] = [x.place(across), y.place(up)];
  const made = svg("g", { class: "point", role: "button", tabindex: "0", "aria-label": label, "data-mark": mark });
  if (low !== null && high !== null) made.append(svg("path", { class: "interval", d: `M${left} ${y.place(low)}V${y.place(high)}` }));
  made.append(svg("circle", { cx: left, cy: top, r: 12, class: "target" }), svg("circle", { cx: left, cy: top, r: 4.5 }),
    svg("text", { x: left + 8, y: top - 7 }, mark));
  made.addEventListener("click", press);
  made.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    press();
  });
  return made;
}
