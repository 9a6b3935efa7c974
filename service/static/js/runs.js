/** The page of training runs: choose some, see their figures by step and their sample grids. */

import { call, ROOT } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { capital, counted } from "./format.js";
import { showPicture } from "./pictures.js";
import { isAsking, watchKey } from "./signin.js";

const ASK_MS = 5000;
const SERIES = 6; // colours of runs.css
const WIDTH = 320, HEIGHT = 160, LEFT = 46, BOTTOM = 18;
const LOG_FROM = 10; // a figure whose values differ by more than this factor is drawn on a logarithmic scale
const SVG = "http://www.w3.org/2000/svg";
const FIRST = ["loss", "loss_q0", "loss_q1", "loss_q2", "loss_q3", "learning_rate", "gradient_norm", "images_per_second"];

const chosen = new Set(); // ids, in the order in which they were chosen
const steps = new Map(); // by a run's id: the preview that is shown, undefined for the newest

function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const short = (value) => (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5) ? String(+value.toPrecision(4)) : value.toExponential(1));

/** A figure's name as the page shows it: q0 to q3 are the quarters of the timesteps, from the least noise. */
const inWords = (name) => name.replace(/_q([0-3])$/, (_, quarter) => `, quarter ${Number(quarter) + 1} of the timesteps`).replaceAll("_", " ");

/** A figure of several runs by step: [{points: [[step, value]], series}]. */
function chart(name, lines) {
  const xs = lines.flatMap(({ points }) => points.map(([step]) => step));
  const ys = lines.flatMap(({ points }) => points.map(([, value]) => value));
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const x = (step) => LEFT + ((step - first) / (last - first || 1)) * (WIDTH - LEFT - 4);
  const scale = low > 0 && high / low > LOG_FROM ? Math.log : (value) => value;
  const [bottom, top] = [scale(low), scale(high)];
  const y = (value) => HEIGHT - BOTTOM - ((scale(value) - bottom) / (top - bottom || 1)) * (HEIGHT - BOTTOM - 12);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${name} by step` },
    svg("line", { x1: LEFT, x2: WIDTH, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
    svg("text", { x: 0, y: 12 }, short(high)),
    svg("text", { x: 0, y: HEIGHT - BOTTOM }, short(low)),
    svg("text", { x: LEFT, y: HEIGHT - 4 }, String(first)),
    svg("text", { x: WIDTH, y: HEIGHT - 4, "text-anchor": "end" }, String(last)),
    ...lines.filter(({ points }) => points.length === 1).map(({ points: [[step, value]], series }) => svg("circle", {
      class: `series-${series}`, cx: x(step), cy: y(value), r: 3,
    })),
    ...lines.map(({ points, series }) => svg("polyline", {
      class: `series-${series}`, points: points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" "),
    })));
  return element("figure", {}, drawing, element("figcaption", { textContent: scale === Math.log ? `${name}, logarithmic` : name }));
}

function names(runs) {
  const all = new Set(runs.flatMap((run) => run.lines.flatMap(Object.keys)));
  all.delete("step");
  const rest = [...all].filter((name) => !FIRST.includes(name)).sort();
  return [...FIRST.filter((name) => all.has(name)), ...rest];
}

function showCurves(runs) {
  const charts = names(runs).map((name) => chart(inWords(name), runs
    .map((run, place) => ({ series: place % SERIES, points: run.lines.filter((line) => name in line).map((line) => [line.step, line[name]]) }))
    .filter(({ points }) => points.length > 0)));
  byId("curves").replaceChildren(...charts);
}

function grid(run) {
  const place = Math.min(steps.get(run.id) ?? run.previews.length - 1, run.previews.length - 1);
  const picture = element("img", { alt: "" });
  const caption = element("figcaption");
  const slider = element("input", { type: "range", min: 0, max: run.previews.length - 1, value: place, "aria-label": `Preview of ${run.id}` });
  const show = () => {
    const name = run.previews[slider.value];
    showPicture(picture, `${ROOT}/v1/runs/${encodeURIComponent(run.id)}/previews/${name}`);
    picture.alt = setLabel(caption, `${run.id}, step ${Number(name.replace(".png", ""))}`);
  };
  slider.addEventListener("input", () => { steps.set(run.id, Number(slider.value)); show(); });
  show();
  return element("figure", {}, picture, slider, caption);
}

function setLabel(target, text) {
  setText(target, text);
  return text;
}

function row(run) {
  const box = element("input", { type: "checkbox", checked: chosen.has(run.id) });
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(run.id);
    else chosen.delete(run.id);
    ask();
  });
  const place = [...chosen].indexOf(run.id);
  const mark = svg("svg", { class: "swatch", viewBox: "0 0 1 1", "aria-hidden": "true" });
  if (place >= 0) mark.append(svg("rect", { width: 1, height: 1, class: `series-${place % SERIES}` }));
  const loss = run.figures.loss === undefined ? "" : `, loss ${short(run.figures.loss)}`;
  const far = element("small", { textContent: `${run.kind}, step ${run.step} of ${run.steps}${loss}` });
  return element("li", {}, element("label", {}, box, mark, run.id, far));
}

async function ask() {
  if (isAsking()) return;
  try {
    const { data } = await call("GET", "/v1/runs");
    const newest = data.find((run) => run.step > 0) ?? data[0];
    if (chosen.size === 0 && newest !== undefined) chosen.add(newest.id);
    for (const id of chosen) if (!data.some((run) => run.id === id)) chosen.delete(id);
    byId("list").replaceChildren(...data.map(row));
    setText(byId("state"), data.length === 0 ? "The folder has no runs yet" : counted(data.length, "run"));
    const runs = await Promise.all([...chosen].map((id) => call("GET", `/v1/runs/${encodeURIComponent(id)}`)));
    document.querySelector("main").hidden = data.length === 0;
    showCurves(runs);
    byId("grids").parentElement.hidden = runs.every((run) => run.previews.length === 0);
    if (!byId("grids").contains(document.activeElement)) {
      byId("grids").replaceChildren(...runs.filter((run) => run.previews.length > 0).map(grid));
    }
  } catch (problem) {
    setText(byId("state"), problem.status === 401 ? "Sign in with a key of the role operator." : capital(problem.message));
  }
}

watchKey();
ask();
setInterval(() => { if (!document.hidden) ask(); }, ASK_MS);
