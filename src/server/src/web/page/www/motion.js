// @ts-check
// Tracks whether an animation, a finger or a wheel scrolls a box, from the first sign to the end.
//
// Scripts detect a scroll by its events. It ends with `scrollend` or, in browsers without that, after a pause.
//
// Does not cover: the scroll position (list.js).

import { targetOf } from "./dom.js";

/** A scroll without an event for this long has ended. With `scrollend`, this is only a fallback. */
const QUIET_MS = "onscrollend" in window ? 1000 : 150;
/** The maximum delay from a key or a wheel to its scroll. */
const BEGINS_MS = 150;
const KEYS = ["ArrowUp", "ArrowDown", "PageUp", "PageDown", " "];

export class Motion {
  #onEnd;
  /** The fingers that are down.
   * @type {Set<number>} */
  #fingers = new Set();
  /** The timer of the end, or 0 if nothing moves. */
  #timer = 0;
  #until = 0;

  /** `onEnd` is called when a scroll has ended by itself.
   * @param {HTMLElement} box @param {() => void} onEnd @param {AbortSignal} signal */
  constructor(box, onEnd, signal) {
    this.#onEnd = onEnd;
    const options = { passive: true, signal };
    box.addEventListener("scrollend", () => this.active && this.#end(), options);
    box.addEventListener("wheel", () => this.#hold(BEGINS_MS), options);
    box.addEventListener("keydown", ({ key }) => KEYS.includes(key) && this.#hold(BEGINS_MS), options);
    box.addEventListener("touchstart", (event) => this.#touched(event), options);
  }

  get active() {
    return this.#timer !== 0;
  }

  /** Notes a scroll, which may continue. */
  seen() {
    this.#hold(QUIET_MS);
  }

  /** Ends every scroll, because a script has set the scroll position. */
  stop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  /** Extends the scroll by at least `ms`. More wheel events must not shorten it.
   * @param {number} ms */
  #hold(ms) {
    const until = performance.now() + ms;
    if (this.active && until < this.#until) return;
    this.#until = until;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#end(), ms);
  }

  /** @param {TouchEvent} event */
  #touched(event) {
    for (const { identifier } of event.changedTouches) this.#fingers.add(identifier);
    this.#hold(QUIET_MS);
    // The touched element may leave the document, and its events then no longer reach the box.
    const target = targetOf(event);
    target.addEventListener("touchend", this.#lifted, { passive: true });
    target.addEventListener("touchcancel", this.#lifted, { passive: true });
  }

  /** @param {TouchEvent} event */
  #lifted = ({ changedTouches }) => {
    for (const { identifier } of changedTouches) this.#fingers.delete(identifier);
    this.#hold(BEGINS_MS);
  };

  #end() {
    if (this.#fingers.size) return this.#hold(QUIET_MS);
    this.stop();
    this.#onEnd();
  }
}
