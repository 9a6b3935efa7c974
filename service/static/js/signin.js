/** Signing in with a key, if the service requires one, and signing out. */

import { call } from "./api.js";
import { byId, element, setNotice } from "./dom.js";
import { asking, forget, keep, key } from "./key.js";

const form = build();

/** Show the form when a key is needed, in place of the page; a valid key reloads the page. */
export function watchKey() {
  document.querySelector("main").before(form);
  form.addEventListener("submit", (event) => { event.preventDefault(); signIn(byId("key").value.trim()); });
  asking.addEventListener("needed", ask);
  byId("sign-out").addEventListener("click", () => { forget(); location.reload(); });
  byId("sign-out").hidden = key() === null;
}

export const isAsking = () => !form.hidden;

function ask() {
  if (isAsking()) return;
  document.querySelector("main").hidden = true;
  byId("sign-out").hidden = true;
  form.hidden = false;
  byId("key").focus();
}

async function signIn(given) {
  setNotice(byId("sign-in-error"), "");
  keep(given);
  try {
    await call("GET", "/v1/jobs?limit=1");
  } catch (problem) {
    forget();
    setNotice(byId("sign-in-error"), problem.message);
    return;
  }
  location.reload();
}

/** The form, the same on each page. */
function build() {
  const hint = element("p", { id: "key-hint", className: "hint" },
    "This service is for callers with a key. Its operator makes one with ", element("code", {}, "adm keys create"),
    ". The key stays in this tab until you close it or sign out.");
  const field = element("input", {
    id: "key", type: "password", autocomplete: "off", spellcheck: false, required: true, "aria-describedby": hint.id,
  });
  return element("form", { id: "sign-in", className: "panel sign-in", noValidate: true, hidden: true, "aria-labelledby": "sign-in-title" },
    element("h2", { id: "sign-in-title" }, "Sign in"), hint,
    element("div", { className: "field" }, element("label", { htmlFor: field.id }, "Key"), field),
    element("div", { id: "sign-in-error", className: "notice error", role: "alert", hidden: true }),
    element("div", { className: "submit" }, element("button", { type: "submit", className: "primary" }, "Sign in")));
}
