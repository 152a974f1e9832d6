// Element helpers. All text is inserted as text, so no string can become markup.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children. `on` holds listeners. Attributes that are false, null or undefined are left
 * out. */
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

/** Creates an icon from index.html. Screen readers ignore it, so its meaning must also be in words next to it. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Creates the round initial of a person. */
export function avatar(name) {
  const circle = el("span", { class: "avatar", "aria-hidden": "true" }, name.slice(0, 1).toUpperCase());
  let hash = 0x811c9dc5;
  for (const char of name) hash = Math.imul(hash ^ char.charCodeAt(0), 0x01000193) >>> 0;
  circle.style.setProperty("--hue", hash % 360);
  return circle;
}

/** Whether the key belongs to an input method. 229: some browsers have ended the composition by then. */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** Combines calls into one `draw` in the next frame. Also draws a page in the background. */
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

/** Listeners by name. `on` returns a function that removes the listener. */
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
        // A failing listener must not affect the emitter.
        reportError(error);
      }
    }
  }
}
