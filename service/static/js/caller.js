/** The caller: the name of its key, and for operators a link to their view. */

import { call } from "./api.js";
import { byId, setNotice } from "./dom.js";

/** Show the caller; if it is unknown, show nothing. */
export async function showCaller() {
  try {
    const { name, role } = await call("GET", "/v1/caller");
    setNotice(byId("caller"), name === null ? "" : `${name}, ${role}`);
    byId("operator-link").hidden = role !== "operator";
  } catch {
    // the service is unreachable, or a key is needed first: other parts of the page show that
  }
}
