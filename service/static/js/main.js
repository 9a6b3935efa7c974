/** Puts the page together. */

import { showCaller } from "./caller.js";
import { CancelAll } from "./cancelall.js";
import { byId, setNotice } from "./dom.js";
import { Filters } from "./filters.js";
import { FirstVisit } from "./firstvisit.js";
import { Fleet } from "./fleet.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { FromPicture } from "./frompicture.js";
import { Grid } from "./grid.js";
import { Jobs } from "./jobs.js";
import { Restore } from "./restore.js";
import { Selection } from "./selection.js";
import { watchKey } from "./signin.js";
import { Viewer } from "./viewer.js";
import { TradeOff } from "./tradeoff.js";

watchKey();
const jobs = new Jobs();
const form = new Form(submit);
const fromPicture = new FromPicture(form, submit);
const fleet = new Fleet((models) => {
  form.setModels(models);
  filters.setModels(models);
  fromPicture.offer();
  grid.begin();
  draw();
});
const modelOf = (id) => fleet.model(id);
const grid = new Grid(form, jobs, modelOf, { show });
new TradeOff(form);
const viewer = new Viewer(jobs, modelOf, { again, cancel, showing: (id, index) => gallery.mark(id, index) });
const filters = new Filters(() => list(() => jobs.filter(filters.query)));
const selection = new Selection(() => gallery.markSelected());
const gallery = new Gallery(jobs, modelOf, filters, selection, { show, again });
const cancelAll = new CancelAll(jobs);
const firstVisit = new FirstVisit();

new Restore(form, again);

let due = false;
let loaded = false;

/** Draw before the next frame, once, however many events came. */
function draw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    viewer.render();
    gallery.render();
    cancelAll.offer();
    firstVisit.offer(loaded && jobs.get(viewer.id) === undefined);
  });
}

async function submit(request) {
  const id = await jobs.submit(request);
  viewer.show(id);
  reveal();
}

function show(id, index) {
  viewer.show(id, index);
  reveal();
}

/** Scroll to the viewer if it is out of sight, as on a phone. */
function reveal() {
  const { top } = byId("picture-area").getBoundingClientRect();
  if (top >= 0 && top < window.innerHeight / 2) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("picture-area").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}

function again(request) {
  form.fill(request);
  byId("generate").focus();
}

async function cancel(id) {
  setNotice(byId("cancel-note"), "");
  try {
    await jobs.cancel(id);
  } catch (problem) {
    if (problem.status !== 409) setNotice(byId("cancel-note"), problem.message); // 409: it has just ended, and its events show that
  }
}

/** Run a call that loads jobs into the gallery. */
async function list(call) {
  setNotice(byId("list-note"), "");
  try {
    await call();
    draw();
  } catch (problem) {
    setNotice(byId("list-note"), problem.message);
  }
}

byId("model").addEventListener("change", () => fromPicture.offer());
jobs.addEventListener("change", draw);
byId("more").addEventListener("click", () => list(() => jobs.load()));
showCaller();
await Promise.all([fleet.ask(), list(() => jobs.load())]);
loaded = true;
draw();
const first = jobs.all.find(({ job }) => job.images.length > 0 || job.status === "in_progress");
if (viewer.id === null && first !== undefined) viewer.show(first.job.id);
