/** The caller's API key: kept only for this tab, sent in a header, never in a URL. */

import { recall, remember, session } from "./dom.js";

const PLACE = "adm-key";

/** Fires "needed" when the service asks for a key, or refuses the present one. */
export const asking = new EventTarget();

export const key = () => recall(session, PLACE);

/** Header of a call; none without a key. */
export const credentials = () => (key() === null ? {} : { Authorization: `Bearer ${key()}` });

export function keep(given) {
  remember(session, PLACE, given);
}

export function forget() {
  session().removeItem(PLACE);
}

/**
 * The service has answered 401 to a call with these headers: forget the key, and ask for another.
 * A late answer to a call without the present key does not count: the user may have signed in meanwhile.
 */
export function refused(headers) {
  if (headers.Authorization !== credentials().Authorization) return;
  forget();
  asking.dispatchEvent(new Event("needed"));
}
