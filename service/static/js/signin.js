/** Signing in with a key, if the service requires one, and signing out. */

import { call } from "./api.js";
import { byId, setNotice } from "./dom.js";
import { asking, forget, keep, key } from "./key.js";

/** Show the form when a key is needed, in place of the page; a valid key reloads the page. */
export function watchKey() {
  asking.addEventListener("needed", ask);
  byId("sign-in").addEventListener("submit", (event) => { event.preventDefault(); signIn(byId("key").value.trim()); });
  byId("sign-out").addEventListener("click", () => { forget(); location.reload(); });
  byId("sign-out").hidden = key() === null;
}

export const isAsking = () => !byId("sign-in").hidden;

function ask() {
  if (isAsking()) return;
  document.querySelector("main").hidden = true;
  byId("sign-out").hidden = true;
  byId("sign-in").hidden = false;
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
