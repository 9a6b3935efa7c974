/** The X/Y grid: an image for each pair of values, from one seed; a table whose cells open in the viewer, and one sheet. */

import { axisText, fieldNames, fieldTitle, usualValues, valueTitle } from "./axes.js";
import { call, write } from "./api.js";
import { byId, element, recall, remember, session, setNotice, setText } from "./dom.js";
import { counted } from "./format.js";
import { linkPicture, showPicture, thumbnail } from "./pictures.js";

const ASK_MS = 1000;
const CELL_PX = 96;
const SHEET_PX = 1024;
const MEMORY = "adm-grid";
const AXES = ["x", "y"];
const WAY = { x: "From left to right", y: "From top to bottom" };
const FIRST = { x: "guidance_scale", y: "steps" };

export class Grid {
  #grid = null; // the service's last answer
  #cells = []; // {button, picture, label}, row by row
  #timer = null;

  /** form has the request that all cells share; jobs gets the jobs of the cells; actions: show(jobId, index). */
  constructor(form, jobs, modelOf, actions) {
    this.form = form;
    this.jobs = jobs;
    this.modelOf = modelOf;
    this.actions = actions;
    byId("grid-axes").replaceChildren(...AXES.map(axisFields));
    for (const axis of AXES) {
      byId(`grid-${axis}`).value = FIRST[axis];
      byId(`grid-${axis}`).addEventListener("change", () => this.#offer(axis));
      byId(`grid-${axis}-values`).addEventListener("keydown", (event) => {
        if (event.key !== "Enter") return;
        event.preventDefault(); // otherwise the form is submitted, which makes one image
        this.#make();
      });
    }
    byId("make-grid").addEventListener("click", () => this.#make());
    byId("cancel-grid").addEventListener("click", () => this.#send("POST", "/cancel"));
    document.addEventListener("visibilitychange", () => { if (!document.hidden && this.#timer === null) this.#follow(); });
  }

  /** Offer values as soon as there is a model, and show the grid that this tab made last. */
  begin() {
    if (this.form.model === undefined) return;
    for (const axis of AXES) if (byId(`grid-${axis}-values`).value === "") this.#offer(axis);
    const kept = recall(session, MEMORY);
    if (kept !== null && this.#grid === null) this.#restore(kept);
  }

  #offer(axis) {
    const field = byId(`grid-${axis}`).value;
    byId(`grid-${axis}-values`).disabled = field === "";
    byId(`grid-${axis}-values`).value = field === "" ? "" : usualValues(field, this.form.model);
  }

  /** The request as JSON: the form's values, except for the fields of the axes. */
  get #body() {
    const axes = AXES.map((axis) => [axis, byId(`grid-${axis}`).value]).filter(([, field]) => field !== "");
    const fields = axes.map(([, field]) => field);
    const { n: _, ...common } = this.form.request;
    for (const field of fields) delete common[field];
    if (fields.includes("sampler")) delete common.eta; // eta belongs to one sampler
    const written = axes.map(([axis, field]) => `"${axis}": ${axisText(field, byId(`grid-${axis}-values`).value)}`);
    return `${write(common).slice(0, -1)}, ${written.join(", ")}}`;
  }

  async #make() {
    const button = byId("make-grid");
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", "true");
    this.form.clearErrors();
    this.#showErrors([], "");
    try {
      this.#take(await call("POST", "/v1/grids", this.#body));
      byId("grid-area").scrollIntoView({ block: "nearest" });
    } catch (problem) {
      this.#showErrors(problem.errors ?? [], problem.message);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  }

  /** Show errors: those of an axis beside it, those of other fields in the form. */
  #showErrors(errors, message) {
    const others = errors.filter(({ pointer }) => !/^\/[xy](\/|$)/.test(pointer));
    for (const axis of AXES) {
      const own = errors.filter(({ pointer }) => pointer === `/${axis}` || pointer.startsWith(`/${axis}/`));
      setNotice(byId(`grid-${axis}-error`), own.map(({ detail }) => detail).join("; "));
      byId(`grid-${axis}-values`).setAttribute("aria-invalid", String(own.length > 0));
    }
    if (others.length > 0) this.form.showProblem({ errors: others, message });
    setNotice(byId("grid-error"), errors.length === 0 ? message : "");
  }

  #take(grid) {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#grid = grid;
    remember(session, MEMORY, grid.id);
    this.#build();
    this.#update();
    this.#follow();
  }

  async #restore(id) {
    this.#grid = undefined; // so that it is requested only once
    try {
      this.#take(await call("GET", `/v1/grids/${id}`));
    } catch {
      session().removeItem(MEMORY); // it was removed
    }
  }

  /** Poll while cells have not ended. */
  #follow() {
    if (!this.#grid || this.#grid.sheet_url !== null || document.hidden) return;
    this.#timer = setTimeout(() => { this.#timer = null; this.#send("GET", ""); }, ASK_MS);
  }

  async #send(method, rest) {
    const { id } = this.#grid;
    try {
      const grid = await call(method, `/v1/grids/${id}${rest}`);
      if (this.#grid.id !== id) return; // another one was made meanwhile
      this.#grid = grid;
      this.#update();
    } catch (problem) {
      if (problem.status === 404) this.#grid = { ...this.#grid, sheet_url: "" }; // removed: nothing is left to follow
      setText(byId("grid-note"), problem.message);
    }
    if (this.#timer === null) this.#follow();
  }

  get #model() {
    const request = this.#grid.cells.find((each) => each.job?.request)?.job.request;
    return this.modelOf(request?.model);
  }

  /** The table, with a button for each cell. */
  #build() {
    const { x, y, cells } = this.#grid;
    const columns = x.values.length;
    const label = (axis, value, cell) => valueTitle(axis.field, value, this.#model, cell?.job);
    const heads = x.values.map((value, at) => element("th", { scope: "col" }, label(x, value, cells[at])));
    this.#cells = cells.map((cell) => {
      const name = [x, ...(y === null ? [] : [y])].map((axis) => `${fieldTitle(axis.field)} ${label(axis, axis === x ? cell.x : cell.y, cell)}`);
      return this.#cell(name.join(", "));
    });
    const rows = Array.from({ length: cells.length / columns }, (_, row) => element("tr", {},
      ...(y === null ? [] : [element("th", { scope: "row" }, label(y, y.values[row], cells[row * columns]))]),
      ...this.#cells.slice(row * columns, (row + 1) * columns).map(({ button }) => element("td", {}, button))));
    const corner = y === null ? [] : [element("td", {}, fieldTitle(y.field))];
    byId("grid-table").replaceChildren(
      element("caption", {}, fieldTitle(x.field)),
      element("thead", {}, element("tr", {}, ...corner, ...heads)), element("tbody", {}, ...rows));
    byId("grid-area").hidden = false;
  }

  #cell(label) {
    const picture = element("img", { alt: "", width: CELL_PX, height: CELL_PX, hidden: true });
    const state = element("span", { className: "cell-state" });
    const button = element("button", { type: "button", className: "grid-cell" }, picture, state);
    const made = { button, picture, state, label };
    button.addEventListener("click", () => {
      const { job } = this.#grid.cells[this.#cells.indexOf(made)];
      if (job !== null) this.actions.show(job.id, job.images[0]?.index);
    });
    return made;
  }

  /** Show the progress of each cell, and the sheet once all have ended. */
  #update() {
    const { id, cells, completed, ended, sheet_url: sheet } = this.#grid;
    this.jobs.take(cells.map(({ job }) => job).filter((job) => job !== null));
    cells.forEach(({ job }, at) => {
      const { button, picture, state, label } = this.#cells[at];
      const image = job?.images[0];
      const status = stateOf(job);
      if (image !== undefined) showPicture(picture, thumbnail(image, CELL_PX));
      setText(state, image === undefined ? status : "");
      button.setAttribute("aria-label", `${label}: ${status}`);
      button.setAttribute("aria-disabled", String(job === null));
    });
    const lacking = ended - completed;
    setText(byId("grid-note"), sheet === null ? `${ended} of ${counted(cells.length, "cell")}` : lacking === 0
      ? `${counted(cells.length, "image")} from one seed` : `${completed} of ${counted(cells.length, "image")}; ${lacking} not made`);
    byId("cancel-grid").hidden = sheet !== null;
    byId("grid-sheet-area").hidden = !sheet;
    if (!sheet) return;
    showPicture(byId("grid-sheet"), `${sheet}?size=${SHEET_PX}`);
    linkPicture(byId("grid-download"), sheet, `grid-${id}.png`);
  }
}

/** The controls of one axis: its field, and its values. */
function axisFields(axis) {
  const [id, way, error] = [`grid-${axis}`, WAY[axis], `grid-${axis}-error`];
  const options = fieldNames.map((each) => element("option", { value: each }, fieldTitle(each)));
  if (axis === "y") options.unshift(element("option", { value: "" }, "nothing"));
  return element("div", { className: "axis", role: "group", "aria-label": way },
    element("label", { htmlFor: id }, way),
    element("select", { id }, ...options),
    element("input", {
      id: `${id}-values`, type: "text", autocomplete: "off", spellcheck: false,
      "aria-label": `Values ${way.toLowerCase()}, separated by commas`, "aria-describedby": error,
    }),
    element("p", { id: error, className: "axis-error", role: "alert", hidden: true }));
}

function stateOf(job) {
  if (job === null) return "removed";
  if (job.images.length > 0) return "finished";
  return job.status === "in_progress" ? `${Math.floor(job.progress.fraction * 100)} %` : job.status;
}
