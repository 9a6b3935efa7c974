/** Pictures of the service: an <img> and a link can send no key, so with one they are fetched and shown as blobs. */

import { credentials, key } from "./key.js";

const MAX_BYTES = 64 * 2 ** 20; // of blobs that are held; the oldest go first

const held = new Map(); // path -> {url, bytes}, oldest first
const shown = new WeakMap(); // <img> -> path of what it shows, or is about to
const fetching = new Map(); // path -> promise of a blob's URL

/** Show a picture of the service, or of a data URL, in an <img>. */
export function showPicture(image, path) {
  image.hidden = false;
  if (isShown(image, path)) return;
  shown.set(image, path);
  if (key() === null || path.startsWith("data:")) {
    image.src = path;
    return;
  }
  blobOf(path).then((url) => {
    if (isShown(image, path)) image.src = url; // else it shows another by now
  }, () => { if (isShown(image, path)) shown.delete(image); });
}

/** Address of an image for a place of so many CSS pixels: smaller than it is, where that spares bytes. */
export function thumbnail({ url, width, height }, edgePx) {
  const size = 2 * edgePx; // sharp on dense screens
  return Math.max(width, height) > size ? `${url}?size=${size}` : url;
}

const isShown = (image, path) => shown.get(image) === path;

/** Let a link download a picture of the service. */
export function linkPicture(link, path, name) {
  Object.assign(link, { href: path, download: name });
  link.onclick = (event) => {
    if (key() === null) return;
    event.preventDefault();
    blobOf(path).then((url) => Object.assign(document.createElement("a"), { href: url, download: name }).click(), () => {});
  };
}

/** URL of a blob with a picture's bytes. Rejects where the service does not give it. */
async function blobOf(path) {
  const found = held.get(path);
  if (found !== undefined) return found.url;
  if (!fetching.has(path)) fetching.set(path, load(path).finally(() => fetching.delete(path)));
  return fetching.get(path);
}

async function load(path) {
  const response = await fetch(path, { headers: credentials() });
  if (!response.ok) throw new Error(`status ${response.status}`);
  const blob = await response.blob();
  const url = URL.createObjectURL(blob);
  held.set(path, { url, bytes: blob.size });
  dropOldest();
  return url;
}

/** Let go of blobs above the limit; what an <img> has loaded it goes on showing. */
function dropOldest() {
  let bytes = [...held.values()].reduce((sum, each) => sum + each.bytes, 0);
  for (const [path, { url, bytes: size }] of held) {
    if (bytes <= MAX_BYTES || held.size === 1) return;
    URL.revokeObjectURL(url);
    held.delete(path);
    bytes -= size;
  }
}
