/** Chosen images as one archive, which the service makes. */

import { Problem, ROOT } from "./api.js";
import { credentials, key, refused } from "./key.js";

const MAX_IMAGES = 384; // that the service takes in one call
const MAX_BYTES = 64 * 2 ** 20; // of an archive that is fetched with a key, and so is in memory until it is saved
const NAME = "images.zip";

/** Save an archive of images, each a "job/index". Throws: Problem. */
export async function saveZip(chosen) {
  if (chosen.length > MAX_IMAGES) throw problem(`An archive has up to ${MAX_IMAGES} images; ${chosen.length} are selected`);
  const path = `${ROOT}/v1/images.zip?${chosen.map((each) => `image=${encodeURIComponent(each)}`).join("&")}`;
  if (key() === null) return save(path); // the browser writes it to the disk as it comes
  const url = URL.createObjectURL(await fetched(path));
  save(url);
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // not before the browser has started to read it
  return undefined;
}

function save(href) {
  Object.assign(document.createElement("a"), { href, download: NAME }).click();
}

/** The archive's bytes. Throws: Problem if it is too large. */
async function fetched(path) {
  const stop = new AbortController();
  const headers = credentials();
  const response = await fetch(path, { headers, signal: stop.signal }).catch(() => null);
  if (response?.status === 401) refused(headers);
  if (!response?.ok) throw problem("The service did not send the images; some may have been removed");
  const pieces = [];
  let bytes = 0;
  try {
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) return new Blob(pieces, { type: "application/zip" });
      pieces.push(value);
      bytes += value.length;
      if (bytes > MAX_BYTES) break;
    }
  } catch {
    throw problem("The connection was lost before all images had arrived");
  }
  stop.abort();
  throw problem(`These images have more than ${MAX_BYTES / 2 ** 20} MiB. Select fewer, or fetch them through the API`);
}

const problem = (detail) => new Problem({ status: 0, detail });
