/** Pictures of the service. With a key they are fetched and shown as blobs, because an <img> or a link cannot send a key. */

import { credentials, key } from "./key.js";

const MAX_BYTES = 64 * 2 ** 20; // of blobs in memory; the oldest are released first

const blobs = new Map(); // path -> {url, bytes}, oldest first
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

/** Address of an image that is shown with this edge in CSS pixels: a reduced image, if that saves bytes. */
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

/** URL of a blob with a picture's bytes. Rejects if the service does not send it. */
async function blobOf(path) {
  const found = blobs.get(path);
  if (found !== undefined) return found.url;
  if (!fetching.has(path)) fetching.set(path, load(path).finally(() => fetching.delete(path)));
  return fetching.get(path);
}

async function load(path) {
  const response = await fetch(path, { headers: credentials() });
  if (!response.ok) throw new Error(`status ${response.status}`);
  const blob = await response.blob();
  const url = URL.createObjectURL(blob);
  blobs.set(path, { url, bytes: blob.size });
  dropOldest();
  return url;
}

/** Release blobs above the limit; an <img> still shows the blob that it has loaded. */
function dropOldest() {
  let bytes = [...blobs.values()].reduce((sum, each) => sum + each.bytes, 0);
  for (const [path, { url, bytes: size }] of blobs) {
    if (bytes <= MAX_BYTES || blobs.size === 1) return;
    URL.revokeObjectURL(url);
    blobs.delete(path);
    bytes -= size;
  }
}
