/** Calls of the service: JSON in and out, errors by RFC 9457. */

import { credentials, refused } from "./key.js";

/** An error of a call: a refusal by the service, or status 0 if it is unreachable. */
export class Problem extends Error {
  constructor({ status, title = "", detail = "", errors = [] }, retryAfterSeconds = 0) {
    const sentence = (detail || title || "The service could not do this").replace(/\.$/, "");
    super(retryAfterSeconds > 0 ? `${sentence}. Try again in ${retryAfterSeconds} s.` : `${sentence}.`);
    this.status = status;
    this.errors = errors; // [{pointer, detail}]
  }
}

/** Path under which a proxy publishes the service; empty at the root of a host. */
export const ROOT = new URL("../..", import.meta.url).pathname.replace(/\/$/, "");

/** Path of an uploaded picture. */
export const pathOfFile = (id) => `${ROOT}/v1/files/${id}/content`;

const NOT_MODIFIED = 304;
const UNAUTHORIZED = 401;
const UNREACHABLE = { status: 0, title: "Unreachable", detail: "The service cannot be reached" };

/** Answer of a call as JSON; `body` is JSON text. Throws: Problem. */
export async function call(method, path, body = undefined) {
  return send(method, path, body, body === undefined ? {} : { "Content-Type": "application/json" });
}

/** Upload a picture, a File of the browser; the service detects its format from its bytes. Throws: Problem. */
export async function upload(file) {
  return send("POST", "/v1/files", file, { "Content-Type": "application/octet-stream" });
}

/** The request that reproduces a PNG of this service, a File of the browser. Throws: Problem. */
export async function requestOf(file) {
  return send("POST", "/v1/requests/from-image", file, { "Content-Type": "application/octet-stream" });
}

/** {answer, etag} of a GET; null while the answer is the one that `etag` names. Throws: Problem. */
export async function callIfChanged(path, etag) {
  const { response, text } = await exchange("GET", path, undefined, etag === null ? {} : { "If-None-Match": etag });
  return response.status === NOT_MODIFIED ? null : { answer: parse(text), etag: response.headers.get("ETag") };
}

async function send(method, path, body, more) {
  const { text } = await exchange(method, path, body, more);
  return parse(text);
}

async function exchange(method, path, body, more) {
  const headers = { Accept: "application/json", ...credentials(), ...more };
  let response;
  let text;
  try {
    response = await fetch(ROOT + path, { method, headers, body });
    text = await response.text();
  } catch {
    throw new Problem(UNREACHABLE);
  }
  if (!response.ok && response.status !== NOT_MODIFIED) {
    if (response.status === UNAUTHORIZED) refused(headers);
    throw problemOf(response, text);
  }
  return { response, text };
}

function problemOf(response, text) {
  const retryAfterSeconds = Number(response.headers.get("Retry-After"));
  try {
    return new Problem(JSON.parse(text), retryAfterSeconds);
  } catch {
    // the answer of a proxy, not of the service itself
    return new Problem({ status: response.status, title: response.statusText }, retryAfterSeconds);
  }
}

/** JSON with seeds as strings: they have up to 63 bits, and a number in JavaScript has 53. */
export function parse(text) {
  return JSON.parse(text.replace(/"seed":\s*(\d+)/g, '"seed":"$1"'));
}

/** A request as JSON, with its seed as a number again; a seed that is not a whole number is sent as typed, and the service refuses it. */
export function write(request, indent = 0) {
  const lines = Object.entries(request).map(([key, value]) => {
    const text = key === "seed" && /^-?\d+$/.test(value) ? value.replace(/^(-?)0+(?=\d)/, "$1") : JSON.stringify(value);
    return `${JSON.stringify(key)}: ${text}`;
  });
  if (indent === 0) return `{${lines.join(", ")}}`;
  const space = " ".repeat(indent);
  return `{\n${lines.map((line) => space + line).join(",\n")}\n}`;
}
