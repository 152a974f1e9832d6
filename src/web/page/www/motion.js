// Whether a box is being scrolled: by an animation, a finger or a wheel, and from the first sign of it to its end.
//
// Scripts learn of a scroll by events, and of its end by `scrollend` where there is one, else by the silence after it.

/** A scroll without an event for this long has ended. Where there is `scrollend`, this is only a fallback. */
const QUIET_MS = "onscrollend" in window ? 1000 : 150;
/** How long after a key or a wheel its scroll begins, at most. */
const BEGINS_MS = 150;
const KEYS = ["ArrowUp", "ArrowDown", "PageUp", "PageDown", " "];

export class Motion {
  #onEnd;
  /** The fingers that are down. */
  #fingers = new Set();
  /** The timer of the end; 0 when nothing moves. */
  #timer = 0;
  #until = 0;

  /** `onEnd` is called when a scroll has ended by itself. */
  constructor(box, onEnd, signal) {
    this.#onEnd = onEnd;
    const on = (event, action) => box.addEventListener(event, action, { passive: true, signal });
    on("scrollend", () => this.active && this.#end());
    on("wheel", () => this.#hold(BEGINS_MS));
    on("keydown", ({ key }) => KEYS.includes(key) && this.#hold(BEGINS_MS));
    on("touchstart", (event) => this.#touched(event));
  }

  get active() {
    return this.#timer !== 0;
  }

  /** The box has been scrolled, and may be further. */
  seen() {
    this.#hold(QUIET_MS);
  }

  /** Whatever moved does not any more: a script has set the scroll position. */
  stop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  /** For this long at least: a wheel that turns on does not shorten what its scroll still takes. */
  #hold(ms) {
    const until = performance.now() + ms;
    if (this.active && until < this.#until) return;
    this.#until = until;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#end(), ms);
  }

  #touched({ target, changedTouches }) {
    for (const { identifier } of changedTouches) this.#fingers.add(identifier);
    this.#hold(QUIET_MS);
    // What was touched may leave the document, and then the box hears no more of it.
    for (const event of ["touchend", "touchcancel"]) target.addEventListener(event, this.#lifted, { passive: true });
  }

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
