/** Who calls: the name of the key, and for operators the way to their view. */

import { call } from "./api.js";
import { byId, setNotice } from "./dom.js";

/** Show who calls; where that cannot be told, the page does without. */
export async function showCaller() {
  try {
    const { name, role } = await call("GET", "/v1/caller");
    setNotice(byId("caller"), name === null ? "" : `${name}, ${role}`);
    byId("operator-link").hidden = role !== "operator";
  } catch {
    // the service is away, or a key is needed first: the page says so elsewhere
  }
}
