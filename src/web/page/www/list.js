// A long list with only its visible part in the document.
//
// The height of a row is an estimate until it is measured. Rows are placed by the sums of the heights. Invariants:
// - Visible rows do not move when rows are added before them, or turn out to be taller than estimated. The lower edge
//   of the first visible row is the anchor, and the scroll position follows it.
// - A list at its end stays there until the user scrolls away. Only a scroll position that changed while the size of
//   the box did not comes from the user, because browsers also move it when the box grows.
// - A scroll in progress (an animation, a finger, a wheel) is never overwritten, because that would end it. Until it
//   ends, the rows move instead. `#shift` is their distance from their proper place.
// - The rows in the document are in order. The row with the focus stays and keeps it.

import { eachFrame } from "./dom.js";
import { Motion } from "./motion.js";

/** Pixels before and after the visible part that are drawn, too. */
const MARGIN = 600;
/** A list closer to the end than this is at its end. */
const NEAR_PX = 40;
/** Pixels from the top to the lower edge of a revealed row. */
const REVEALED = 100;
const FOCUSABLE = "a, button, input";

export class List {
  #rows = [];
  #tops = [0];
  #heights = new Map();
  /** Cached estimates. Each frame needs them, and long texts take a while. */
  #estimates = new Map();
  #shown = new Map();
  #places = new Map();
  #width = 0;
  #sizes;
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
   * `estimate(row)` guesses its height. A row has a `key`, and is redrawn when its `version` changes. A row that
   * `isLoose` is never the anchor. `onScroll` is called after each change of the visible part. A list that `isLog`
   * starts at its end, has few rows at the bottom, and follows the anchor. Other lists keep their scroll position. */
  constructor(box, { draw, estimate, onScroll = () => {}, isLog = false }) {
    Object.assign(this, { box, draw, estimate, onScroll, isLog });
    /** Whether the end is kept in view. */
    this.atEnd = isLog;
    this.space = box.firstElementChild;
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

  /** Jumps to the ends, because a scroll would draw all rows on the way. */
  #onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (event.key === "End") this.show(this.#rows, { end: true });
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

  #onSizes(entries) {
    this.#follow();
    if (this.box.clientWidth !== this.#width) {
      // Texts wrap elsewhere, so all heights are invalid.
      this.#width = this.box.clientWidth;
      this.#heights.clear();
      this.#estimates.clear();
    }
    for (const { target } of entries) if (target !== this.box) this.#heights.delete(target.dataset.key);
    this.update();
  }

  /** Pixels above the visible part. */
  get #y() {
    return this.box.scrollTop - this.#shift;
  }

  /** The scroll position at the end. */
  get #end() {
    return Math.max(0, this.#tops[this.#rows.length] + this.#padding - this.box.clientHeight);
  }

  /** Pixels below the visible part. */
  get fromEnd() {
    return this.#end - this.#y;
  }

  get isNearEnd() {
    return this.fromEnd < NEAR_PX;
  }

  get rows() {
    return this.#rows;
  }

  /** Shows these rows. `end` scrolls to the last one, `reveal` to the one with this key if there is one. */
  show(rows, { end = false, reveal = null } = {}) {
    this.#follow();
    // A list that is a few pixels from its end shows a new last row completely.
    if (!this.#motion.active && rows.at(-1)?.key !== this.#rows.at(-1)?.key) this.#gap = 0;
    this.#rows = rows;
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
    this.#heights.clear();
    this.#estimates.clear();
    for (const element of this.#shown.values()) element.remove();
    this.#shown.clear();
    this.#anchor = null;
    this.#gap = 0;
    this.#shift = 0;
    this.#rows = [];
    this.atEnd = this.isLog;
    this.update();
  }

  /** Scrolls just far enough to show the row with this key. Returns its element, or null if there is no such row. */
  reveal(key) {
    const place = this.#places.get(key);
    const { box } = this;
    if (place === undefined || !box.clientHeight) return null;
    const [top, bottom] = [this.#tops[place], this.#tops[place + 1]];
    if (top < box.scrollTop) box.scrollTop = top;
    else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
    this.update();
    return this.#shown.get(key);
  }

  /** The indexes of the first and the last visible row. */
  get visible() {
    const top = this.#y;
    return [this.#at(top), this.#at(top + this.box.clientHeight - 1)];
  }

  /** The index of the row at this height. */
  #at(y) {
    let [low, high] = [0, this.#rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#tops[middle + 1] <= y) low = middle + 1;
      else high = middle;
    }
    return Math.min(low, Math.max(this.#rows.length - 1, 0));
  }

  /** The first visible row, preferably a measured one, whose position is known. A row that stands for a place (a day, a
   * button) moves when rows are added before it. */
  #findAnchor() {
    const [first, last] = this.visible;
    const visible = this.#rows.slice(first, last + 1).filter((row) => !row.isLoose);
    const row = visible.find(({ key }) => this.#heights.has(key)) ?? visible[0];
    return row ? { key: row.key, offset: this.#bottom(row.key) - this.#y } : null;
  }

  #bottom(key) {
    return this.#tops[this.#places.get(key) + 1];
  }

  #estimate(row) {
    let height = this.#estimates.get(row.key);
    if (height === undefined) {
      height = this.estimate(row);
      this.#estimates.set(row.key, height);
    }
    return height;
  }

  #measure() {
    this.#tops = new Array(this.#rows.length + 1);
    this.#places = new Map();
    const heights = this.#rows.map((row) => this.#heights.get(row.key) ?? this.#estimate(row));
    const free = this.box.clientHeight - heights.reduce((sum, height) => sum + height, 0);
    let top = this.isLog ? Math.max(0, free - this.#padding) : 0;
    this.#rows.forEach((row, place) => {
      this.#places.set(row.key, place);
      this.#tops[place] = top;
      top += heights[place];
    });
    this.#tops[this.#rows.length] = top;
  }

  update() {
    if (!this.box.clientHeight) return;
    this.#follow();
    // Repeats, because measured heights can bring more rows into view.
    for (let round = 0; round < 3; round += 1) {
      this.#measure();
      this.#scroll();
      if (!this.#draw()) break;
    }
    for (const [key, element] of this.#shown) {
      element.style.transform = `translateY(${this.#tops[this.#places.get(key)] + this.#shift}px)`;
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
    const space = () => { this.space.style.height = `${this.#tops[this.#rows.length] + this.#shift}px`; };
    if (!this.isLog) return space();
    const isMoving = this.#motion.active;
    if (!this.#places.has(this.#anchor?.key)) this.#anchor = this.#findAnchor();
    let to = this.#y;
    if (this.atEnd && !isMoving) to = this.#end - this.#gap;
    else if (this.#anchor) to = Math.max(0, this.#bottom(this.#anchor.key) - this.#anchor.offset);
    if (Math.abs(to - this.#y) < 1) to = this.#y;
    this.#shift = isMoving ? box.scrollTop - to : 0;
    space();
    if (!isMoving && to !== box.scrollTop) box.scrollTop = to;
  }

  /** Puts the visible rows into the document. Returns whether a height differed from its estimate. */
  #draw() {
    const { box } = this;
    const first = this.#at(this.#y - MARGIN);
    const last = this.#at(this.#y + box.clientHeight + MARGIN);
    const wanted = new Set();
    for (let place = first; place <= last && place < this.#rows.length; place += 1) wanted.add(place);
    const focus = this.space.contains(document.activeElement) ? document.activeElement : null;
    const focused = this.#places.get(focus?.closest("[data-key]")?.dataset.key);
    if (focused !== undefined) wanted.add(focused);
    const places = [...wanted].sort((a, b) => a - b);
    const keys = new Set(places.map((place) => this.#rows[place].key));
    for (const [key, element] of this.#shown) {
      if (keys.has(key)) continue;
      this.#sizes.unobserve(element);
      element.remove();
      this.#shown.delete(key);
    }
    let before = null;
    for (const place of places.reverse()) {
      const element = this.#element(this.#rows[place]);
      if (element.parentNode !== this.space || element.nextSibling !== before) this.space.insertBefore(element, before);
      before = element;
    }
    // Moving an element removes the focus.
    if (focus?.isConnected && document.activeElement !== focus) focus.focus({ preventScroll: true });
    let surprise = false;
    for (const [key, element] of this.#shown) {
      if (this.#heights.has(key)) continue;
      const height = element.offsetHeight;
      surprise ||= height !== this.#estimate(this.#rows[this.#places.get(key)]);
      this.#heights.set(key, height);
    }
    return surprise;
  }

  #element(row) {
    const shown = this.#shown.get(row.key);
    if (shown?.dataset.version === row.version) return shown;
    const element = this.draw(row, shown);
    element.dataset.key = row.key;
    element.dataset.version = row.version;
    if (shown && element !== shown) {
      const focused = [...shown.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
      this.#sizes.unobserve(shown);
      shown.replaceWith(element);
      if (focused >= 0) element.querySelectorAll(FOCUSABLE)[focused]?.focus({ preventScroll: true });
    }
    this.#heights.delete(row.key);
    this.#shown.set(row.key, element);
    if (element !== shown) this.#sizes.observe(element);
    return element;
  }
}
