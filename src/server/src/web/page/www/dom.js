// @ts-check
// Helpers for elements, listeners and frames, and the base class of objects with listeners. All text is inserted as
// text, so no string can become markup.

/** The element with this id, which must be of this `kind`.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id @param {new () => T} [kind] @returns {T} */
export function $(id, kind) {
  const element = document.getElementById(id);
  if (!(element instanceof (kind ?? HTMLElement))) throw new Error(`There is no such element: ${id}`);
  return /** @type {T} */ (element);
}

/** @typedef {Record<string, (event: Event) => unknown>} Listeners */

/** An element with attributes and children. `on` holds listeners. Attributes that are false, null or undefined are left
 * out.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {{ on?: Listeners, [name: string]: string | boolean | null | Listeners | undefined }} attributes
 * @param {...(Node | string | null | undefined)} children */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value && typeof value === "object") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  for (const child of children) if (child !== null && child !== undefined) element.append(child);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Creates an icon from index.html. Screen readers ignore it, so its meaning must also be in words next to it.
 * @param {string} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Creates the round initial of a person.
 * @param {string} name */
export function avatar(name) {
  const circle = el("span", { class: "avatar", "aria-hidden": "true" }, name.slice(0, 1).toUpperCase());
  let hash = 0x811c9dc5;
  for (const char of name) hash = Math.imul(hash ^ char.charCodeAt(0), 0x01000193) >>> 0;
  circle.style.setProperty("--hue", String(hash % 360));
  return circle;
}

/** The element that an event of the document's content happened on.
 * @param {Event} event */
export const targetOf = (event) => /** @type {HTMLElement} */ (event.target);

/** The element with the focus.
 * @returns {HTMLElement | null} */
export const focused = () => /** @type {HTMLElement | null} */ (document.activeElement);

/** Whether the key belongs to an input method. 229: some browsers have ended the composition by then.
 * @param {KeyboardEvent} event */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** @typedef {WindowEventMap & DocumentEventMap & HTMLElementEventMap} AnyEvents */

/** Returns a function that adds listeners until `signal`.
 * @param {AbortSignal} signal */
export function listening(signal) {
  /** @template {keyof AnyEvents} K
   * @param {EventTarget} target @param {K} event @param {(event: AnyEvents[K]) => unknown} action */
  return (target, event, action) =>
    target.addEventListener(event, /** @type {EventListener} */ (action), { signal });
}

/** Combines calls into one `draw` in the next frame. Also draws a page in the background.
 * @param {() => void} draw */
export function eachFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    const run = () => {
      if (!asked) return;
      asked = false;
      draw();
    };
    requestAnimationFrame(run);
    // A page that is hidden, or is about to be, has no frames.
    setTimeout(run, 100);
  };
}

/** Listeners by name. `on` returns a function that removes the listener.
 * @template {object} Details What listeners receive, by name. */
export class Events {
  /** @type {Map<keyof Details, Set<(detail: never) => unknown>>} */
  #listeners = new Map();

  /** @template {keyof Details} K @param {K} name @param {(detail: Details[K]) => unknown} listener */
  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /** @template {keyof Details} K @param {K} name @param {Details[K]} [detail] */
  emit(name, detail) {
    for (const listener of this.#listeners.get(name) ?? []) {
      try {
        listener(/** @type {never} */ (detail));
      } catch (error) {
        // A failing listener must not affect the emitter.
        reportError(error);
      }
    }
  }
}
