// @ts-check
// A long list with only its visible part in the document.
//
// Owns the elements of the rows, and the scroll position. Invariants:
// - Visible rows do not move when rows are added before them, or turn out to be taller than estimated. The lower edge
//   of the first visible row is the anchor, and the scroll position follows it.
// - A list at its end stays there until the user scrolls away. Only a scroll position that changed while the size of
//   the box did not comes from the user, because browsers also move it when the box grows.
// - A scroll in progress (an animation, a finger, a wheel) is never overwritten, because that would end it. Until it
//   ends, the rows move instead. `#shift` is their distance from their proper place.
// - The rows in the document are in order. The row with the focus stays and keeps it.
//
// Does not cover: the places of the rows (layout.js), and what scrolls the box (motion.js).

import { eachFrame, focused } from "./dom.js";
import { Layout } from "./layout.js";
import { Motion } from "./motion.js";

/** Pixels before and after the visible part that are drawn, too. */
const MARGIN = 600;
/** A list closer to the end than this is at its end. */
const NEAR_PX = 40;
/** Pixels from the top to the lower edge of a revealed row. */
const REVEALED = 100;

/** @param {HTMLElement} element */
const focusableIn = (element) => /** @type {HTMLElement[]} */ ([...element.querySelectorAll("a, button, input")]);

/** @typedef {import("./layout.js").Row} Row */
/** Where to scroll: to the last row, or to the one with a key, if there is one.
 * @typedef {{ end?: boolean, reveal?: string | null }} Where */

/** @template {Row} R */
export class List {
  /** @type {Layout<R>} */
  #layout;
  /** The elements in the document, by key.
   * @type {Map<string, HTMLElement>} */
  #shown = new Map();
  #width = 0;
  #sizes;
  /** @type {{ key: string, offset: number } | null} */
  #anchor = null;
  /** Pixels to the end, while the list is at its end. */
  #gap = 0;
  /** The height of the box and its scroll position after the last update. */
  #height = 0;
  #top = 0;
  #shift = 0;
  #motion;
  #padding;
  #stopping = new AbortController();

  /** `box` is the scroll container. `draw(row, shown)` creates the element of a row or updates the `shown` one, and
   * `estimate(row)` guesses its height. `onScroll` is called after each change of the visible part. A list that `isLog`
   * starts at its end, has few rows at the bottom, and follows the anchor. Other lists keep their scroll position.
   * @param {HTMLElement} box
   * @param {{ draw: (row: R, shown?: HTMLElement) => HTMLElement, estimate: (row: R) => number,
   *   onScroll: () => void, isLog?: boolean }} options */
  constructor(box, { draw, estimate, onScroll, isLog = false }) {
    this.box = box;
    this.draw = draw;
    this.#layout = new Layout(estimate);
    this.onScroll = onScroll;
    this.isLog = isLog;
    /** Whether the end is kept in view. */
    this.atEnd = isLog;
    this.space = /** @type {HTMLElement} */ (box.firstElementChild);
    const { paddingTop, paddingBottom } = getComputedStyle(box);
    this.#padding = Number.parseFloat(paddingTop) + Number.parseFloat(paddingBottom);
    this.soon = eachFrame(() => this.update());
    const { signal } = this.#stopping;
    this.#motion = new Motion(box, () => (this.#shift || this.atEnd) && this.update(), signal);
    box.addEventListener("scroll", () => this.#onScroll(), { passive: true, signal });
    if (isLog) box.addEventListener("keydown", (event) => this.#onKey(event), { signal });
    this.#sizes = new ResizeObserver((entries) => this.#onSizes(entries));
    this.#sizes.observe(box);
  }

  /** Releases the box for another list. */
  stop() {
    this.clear();
    this.#stopping.abort();
    this.#sizes.disconnect();
  }

  #onScroll() {
    this.#follow();
    this.soon();
  }

  /** Notes a scroll by the user. An animation continues between a scroll event and the next frame. */
  #follow() {
    if (!this.isLog || this.box.scrollTop === this.#top) return;
    if (!this.#motion.active && this.box.clientHeight !== this.#height) return;
    this.#motion.seen();
    this.#scrolledTo();
  }

  /** The scroll position is now the one to keep. */
  #scrolledTo() {
    this.#top = this.box.scrollTop;
    // Rows that were shifted beyond the top cannot be scrolled to, so they return at once.
    if (this.#top <= 0 && this.#shift < 0) {
      this.#top = this.box.scrollTop = -this.#shift;
      this.#shift = 0;
    }
    this.#gap = Math.max(0, this.fromEnd);
    this.atEnd = this.isNearEnd;
    this.#anchor = this.#findAnchor();
  }

  /** Jumps to the ends, because a scroll would draw all rows on the way.
   * @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (event.key === "End") this.show(this.rows, { end: true });
    else if (event.key === "Home") this.#toTop();
    else return;
    event.preventDefault();
  }

  #toTop() {
    this.#motion.stop();
    this.#shift = 0;
    this.box.scrollTop = 0;
    this.#scrolledTo();
    this.update();
  }

  /** @param {ResizeObserverEntry[]} entries */
  #onSizes(entries) {
    this.#follow();
    if (this.box.clientWidth !== this.#width) {
      // Texts wrap elsewhere, so all heights are invalid.
      this.#width = this.box.clientWidth;
      this.#layout.forgetAll();
    }
    for (const { target } of entries) {
      const { key } = /** @type {HTMLElement} */ (target).dataset;
      if (key) this.#layout.forget(key);
    }
    this.update();
  }

  /** Pixels above the visible part. */
  get #y() {
    return this.box.scrollTop - this.#shift;
  }

  /** The scroll position at the end. */
  get #end() {
    return Math.max(0, this.#layout.height + this.#padding - this.box.clientHeight);
  }

  /** Pixels below the visible part. */
  get fromEnd() {
    return this.#end - this.#y;
  }

  get isNearEnd() {
    return this.fromEnd < NEAR_PX;
  }

  get rows() {
    return this.#layout.rows;
  }

  /** @param {R[]} rows @param {Where} where */
  show(rows, { end = false, reveal = null } = {}) {
    this.#follow();
    // A list that is a few pixels from its end shows a new last row completely.
    if (!this.#motion.active && rows.at(-1)?.key !== this.rows.at(-1)?.key) this.#gap = 0;
    this.#layout.rows = rows;
    const isRevealing = reveal !== null && rows.some((row) => row.key === reveal);
    if (isRevealing) {
      this.#motion.stop();
      this.atEnd = false;
      this.#anchor = { key: reveal, offset: REVEALED };
    } else if (end) {
      this.#motion.stop();
      this.atEnd = true;
      this.#gap = 0;
    }
    this.update();
    if (!isRevealing) return;
    // There may be nothing to scroll, and so no event.
    this.#scrolledTo();
    this.soon();
  }

  /** Prepares for entirely different rows. */
  clear() {
    this.#motion.stop();
    this.#layout.forgetAll();
    for (const element of this.#shown.values()) element.remove();
    this.#shown.clear();
    this.#anchor = null;
    this.#gap = 0;
    this.#shift = 0;
    this.#layout.rows = [];
    this.atEnd = this.isLog;
    this.update();
  }

  /** Scrolls just far enough to show the row with this key. Returns its element, or null if there is no such row.
   * @param {string} key */
  reveal(key) {
    const { box } = this;
    if (this.#layout.find(key) === undefined || !box.clientHeight) return null;
    const { top, bottom } = this.#layout.edges(key);
    if (top < box.scrollTop) box.scrollTop = top;
    else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
    this.update();
    return this.#shown.get(key) ?? null;
  }

  /** The indexes of the first and the last visible row. */
  get visible() {
    const top = this.#y;
    return [this.#layout.at(top), this.#layout.at(top + this.box.clientHeight - 1)];
  }

  /** The first visible row, preferably a measured one, whose position is known. */
  #findAnchor() {
    const [first, last] = this.visible;
    const visible = this.rows.slice(first, last + 1).filter((row) => !row.isLoose);
    const row = visible.find(({ key }) => this.#layout.isMeasured(key)) ?? visible[0];
    return row ? { key: row.key, offset: this.#layout.edges(row.key).bottom - this.#y } : null;
  }

  update() {
    if (!this.box.clientHeight) return;
    this.#follow();
    // Repeats, because measured heights can bring more rows into view.
    for (let round = 0; round < 3; round += 1) {
      this.#layout.place(this.isLog ? this.box.clientHeight - this.#padding : 0);
      this.#scroll();
      if (!this.#draw()) break;
    }
    for (const [key, element] of this.#shown) {
      element.style.transform = `translateY(${this.#layout.edges(key).top + this.#shift}px)`;
    }
    this.#height = this.box.clientHeight;
    this.#top = this.box.scrollTop;
    // A list that follows its end shows other rows now. A scroll has to start from those.
    if (this.atEnd && !this.#motion.active) this.#anchor = this.#findAnchor();
    this.onScroll();
  }

  /** Sets the scroll position or, while the browser scrolls, moves the rows. */
  #scroll() {
    const { box } = this;
    const space = () => { this.space.style.height = `${this.#layout.height + this.#shift}px`; };
    if (!this.isLog) return space();
    const isMoving = this.#motion.active;
    if (this.#layout.find(this.#anchor?.key) === undefined) this.#anchor = this.#findAnchor();
    let to = this.#y;
    if (this.atEnd && !isMoving) to = this.#end - this.#gap;
    else if (this.#anchor) to = Math.max(0, this.#layout.edges(this.#anchor.key).bottom - this.#anchor.offset);
    if (Math.abs(to - this.#y) < 1) to = this.#y;
    this.#shift = isMoving ? box.scrollTop - to : 0;
    space();
    if (!isMoving && to !== box.scrollTop) box.scrollTop = to;
  }

  /** Puts the visible rows into the document. Returns whether a height differed from its estimate. */
  #draw() {
    const { rows } = this;
    const first = this.#layout.at(this.#y - MARGIN);
    const last = this.#layout.at(this.#y + this.box.clientHeight + MARGIN);
    /** @type {Set<number>} */
    const wanted = new Set();
    for (let place = first; place <= last && place < rows.length; place += 1) wanted.add(place);
    const focus = this.space.contains(focused()) ? focused() : null;
    /** @type {HTMLElement | null | undefined} */
    const holder = focus?.closest("[data-key]");
    const held = this.#layout.find(holder?.dataset.key);
    if (held !== undefined) wanted.add(held);
    const places = [...wanted].sort((a, b) => a - b);
    const keys = new Set(places.map((place) => rows[place].key));
    for (const [key, element] of this.#shown) {
      if (keys.has(key)) continue;
      this.#sizes.unobserve(element);
      element.remove();
      this.#shown.delete(key);
    }
    /** @type {HTMLElement | null} */
    let before = null;
    for (const place of places.reverse()) {
      const element = this.#element(rows[place]);
      if (element.parentNode !== this.space || element.nextSibling !== before) {
        this.space.insertBefore(element, before);
      }
      before = element;
    }
    // Moving an element removes the focus.
    if (focus?.isConnected && document.activeElement !== focus) focus.focus({ preventScroll: true });
    let surprise = false;
    for (const [key, element] of this.#shown) {
      if (!this.#layout.isMeasured(key)) surprise = this.#layout.measured(key, element.offsetHeight) || surprise;
    }
    return surprise;
  }

  /** @param {R} row */
  #element(row) {
    const shown = this.#shown.get(row.key);
    if (shown && shown.dataset.version === row.version) return shown;
    const element = this.draw(row, shown);
    element.dataset.key = row.key;
    element.dataset.version = row.version;
    if (shown && element !== shown) {
      const at = focusableIn(shown).findIndex((one) => one === focused());
      this.#sizes.unobserve(shown);
      shown.replaceWith(element);
      if (at >= 0) focusableIn(element)[at]?.focus({ preventScroll: true });
    }
    this.#layout.forget(row.key);
    this.#shown.set(row.key, element);
    if (element !== shown) this.#sizes.observe(element);
    return element;
  }
}
