// Elements. All text goes in as text: there is no way here to make markup from a string.

export const $ = (id) => document.getElementById(id);

/** An element with attributes (`on` holds listeners; false, null and undefined leave an attribute out) and children. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the pictures in index.html. It says nothing: what it stands for has to be in words beside it. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** The round letter that stands for a person. */
export function avatar(name) {
  const circle = el("span", { class: "avatar", "aria-hidden": "true" }, name.slice(0, 1).toUpperCase());
  let hash = 0x811c9dc5;
  for (const char of name) hash = Math.imul(hash ^ char.charCodeAt(0), 0x01000193) >>> 0;
  circle.style.setProperty("--hue", hash % 360);
  return circle;
}

/** The key is one of an input method, which goes on with it. 229: some browsers have ended the composition by then. */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** Calls `draw` once in the next frame, however often it is asked to. A page in the background is drawn, too. */
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

/** Who wants to know. Returned from `on`: how not to be told any more. */
export class Events {
  #listeners = new Map();

  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? this.#listeners.set(name, new Set()).get(name);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  emit(name, detail) {
    for (const listener of this.#listeners.get(name) ?? []) {
      try {
        listener(detail);
      } catch (error) {
        // Who tells must not fail because of who listens.
        reportError(error);
      }
    }
  }
}
