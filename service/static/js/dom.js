/** Shorthands for the document. Text enters as text, never as markup. */

export const byId = (id) => document.getElementById(id);

/** An element; properties with a dash are attributes. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** Set text only if it differs, because a screen reader would read an equal text out again. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Show a text, and hide the element while there is none. */
export function setNotice(target, text) {
  setText(target, text);
  target.hidden = text === "";
}

/** Focus the first of some elements that is shown. */
export function focusFirst(ids) {
  ids.map(byId).find((each) => each.offsetParent !== null)?.focus();
}

/** Copy a text and confirm it on the button; without a clipboard, select the shown text instead. */
export async function copy(button, text, shown) {
  button.dataset.label ??= button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // browsers offer no clipboard to pages of another machine without TLS
    shown.textContent = text;
    getSelection().selectAllChildren(shown);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = button.dataset.label; }, 1500);
}

/** The value stored under a key, or null. `storage` is a function, because a browser that forbids storage throws at the access itself. */
export function recall(storage, key) {
  try {
    return JSON.parse(storage().getItem(key));
  } catch {
    return null;
  }
}

export function remember(storage, key, value) {
  try {
    storage().setItem(key, JSON.stringify(value));
  } catch {
    // without storage the page works, but keeps nothing across reloads
  }
}

export const session = () => sessionStorage;
export const local = () => localStorage;
