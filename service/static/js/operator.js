/** The operator's page: workers, occupancy, the queue by pipeline and caller, throughput; read periodically. */

import { call } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { counted, duration } from "./format.js";
import { isAsking, watchKey } from "./signin.js";
import { Throughput } from "./throughput.js";

const ASK_MS = 2000;

const throughput = new Throughput();
let asking = false;

const seconds = (value) => (value === null ? "unknown" : value === 0 ? "none" : duration(value));

/** Show rows of cells, each a text or an element; the first of a row is its heading. */
function fill(body, rows) {
  const shown = rows.map((cells) => element("tr", {}, ...cells.map((each, place) => (place === 0
    ? element("th", { scope: "row" }, each) : element("td", {}, each)))));
  body.replaceChildren(...shown);
}

/** Show one sentence in place of rows. */
function fillEmpty(body, text, columns) {
  body.replaceChildren(element("tr", {}, element("td", { colSpan: columns, className: "none" }, text)));
}

/** The occupancy of a worker's batches; null while it is unknown, 0 while the worker is idle. */
function occupancyOf(worker, measured) {
  return worker.rows_in_flight === 0 ? 0 : measured.find((each) => each.name === worker.name)?.batch_occupancy ?? null;
}

const percent = (share) => (share === null ? "…" : `${Math.round(100 * share)} %`);

function occupancy(worker, share) {
  const bar = element("progress", { max: 1, value: share ?? 0, "aria-label": `Occupancy of ${worker.name}` });
  return element("span", { className: "occupancy" }, bar, percent(share));
}

/** The time of a step of each stage at the largest batch; only for the first of the pipelines that share a stage. */
function stepTimes({ step_ms: stepMs }) {
  const shown = new Map(); // stage and measured time -> text; only a stage that pipelines share has one time twice
  for (const [pipeline, stages] of Object.entries(stepMs)) {
    for (const [stage, shapes] of Object.entries(stages)) {
      const milliseconds = shapes[Math.max(...Object.keys(shapes).map(Number))];
      const measured = `${stage} ${milliseconds}`;
      if (!shown.has(measured)) shown.set(measured, `${pipeline} ${stage} ${Math.round(milliseconds)} ms`);
    }
  }
  return [...shown.values()].join(", ") || "not measured yet";
}

function showWorkers(workers, measured) {
  if (workers.length === 0) return fillEmpty(byId("workers"), "No worker is ready. Queued jobs wait until one is.", 7);
  const now = Date.now() / 1000;
  return fill(byId("workers"), workers.map((each) => [
    each.name, each.device, each.pipelines.join(", "), String(each.rows_in_flight), occupancy(each, occupancyOf(each, measured)), stepTimes(each),
    `${duration(Math.max(0, now - each.last_heartbeat))} ago`,
  ]));
}

function showQueue(load) {
  const { pipelines, callers } = load;
  if (pipelines.length === 0) fillEmpty(byId("pipelines"), "No pipeline was announced yet.", 4);
  else fill(byId("pipelines"), pipelines.map((each) => [each.id, String(each.queued), seconds(each.queued_seconds), String(each.workers)]));
  if (callers.length === 0) fillEmpty(byId("callers"), "Nothing is queued or running.", 4);
  else fill(byId("callers"), callers.map((each) => [
    each.name ?? "without a key", String(each.queued), String(each.in_progress),
    Object.entries(each.queued_by_pipeline).map(([name, jobs]) => `${name} ${jobs}`).join(", "),
  ]));
  setText(byId("left-out"), load.callers_left_out > 0 ? `And ${counted(load.callers_left_out, "caller")} with fewer jobs.` : "");
}

function showFigures(workers, load) {
  const shares = workers.map((each) => occupancyOf(each, load.workers)).filter((each) => each !== null);
  const { rate } = throughput;
  const figures = [
    ["Jobs queued", String(load.pipelines.reduce((sum, each) => sum + each.queued, 0))],
    ["Jobs running", String(load.in_progress)],
    ["Occupancy", workers.length === 0 ? "no worker" : percent(shares.length === 0 ? null : shares.reduce((a, b) => a + b) / shares.length)],
    [throughput.isYoung ? "Images a minute since this page was opened" : "Images a minute", rate === null ? "…" : rate >= 10 ? String(Math.round(rate)) : rate.toFixed(1)],
    ["Jobs ended in the last minute", String(load.ended_in_last_minute)],
  ];
  byId("figures").replaceChildren(...figures.map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value))));
  byId("throughput").querySelector("polyline").setAttribute("points", throughput.points);
  setText(byId("throughput-title"), `Images of completed jobs a minute, over the last minutes since this page was opened; at most ${throughput.highest.toFixed(1)}`);
}

function showState(state, text) {
  byId("fleet").dataset.state = state;
  setText(byId("fleet"), text);
}

async function ask() {
  if (asking || isAsking()) return;
  asking = true;
  try {
    const [{ data: workers }, load] = await Promise.all([call("GET", "/v1/workers"), call("GET", "/v1/queue")]);
    throughput.take(load.workers);
    showWorkers(workers, load.workers);
    showQueue(load);
    showFigures(workers, load);
    showState(workers.length === 0 ? "none" : "live", `Live, ${counted(workers.length, "worker")}`);
  } catch (problem) {
    showState("unavailable", problem.status === 0 ? "The service cannot be reached; these are its last figures" : problem.message);
  } finally {
    asking = false;
  }
}

/** Start the page for callers who may see it. */
async function begin() {
  try {
    const { role } = await call("GET", "/v1/caller");
    if (role !== "operator") return showState("unavailable", "This view is for keys of the role operator; yours is of another role.");
  } catch (problem) {
    return showState("unavailable", problem.status === 401 ? "Sign in with a key of the role operator." : problem.message);
  }
  setInterval(() => { if (!document.hidden) ask(); }, ASK_MS);
  return ask();
}

watchKey();
begin();
