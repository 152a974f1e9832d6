// A long list of which only the visible part is in the document.
//
// Every row has a height: the measured one, or an estimate until it was seen. Rows are placed by the sums of the heights. Invariants:
// - What is being looked at does not move when rows come before it, or turn out to be higher than thought: the lower edge of
//   the first visible row is the anchor, and the scroll position follows it.
// - A list that shows its end keeps showing it, until somebody scrolls away.
// - The rows in the document are in their order, and the one that has the focus stays and keeps it.

import { eachFrame } from "./dom.js";

/** Pixels before and behind the visible part that are drawn as well. */
const MARGIN = 600;
/** The end is in view, but for what a scroll position is rounded by. */
const AT_END = 3;
/** Pixels from the top to the lower edge of a row that is revealed. */
const REVEALED = 100;
const FOCUSABLE = "a, button, input";

export class List {
  #rows = [];
  #tops = [0];
  #heights = new Map();
  #shown = new Map();
  #places = new Map();
  #width = 0;
  #sizes;
  #anchor = null;
  #padding;
  #stopping = new AbortController();

  /** `box` scrolls, `draw(row)` makes the element of a row, `estimate(row)` guesses its height. A row has a `key`, and is drawn anew when
   * its `version` changes; one that `isLoose` is never the anchor. `onScroll` is called after each change of what is visible. A list that is
   * `isLog` shows its end, has few rows at the bottom, and follows the anchor; another one stays where it was scrolled to. */
  constructor(box, { draw, estimate, onScroll = () => {}, isLog = false }) {
    Object.assign(this, { box, draw, estimate, onScroll, isLog });
    /** The end is kept in view. */
    this.atEnd = isLog;
    this.space = box.firstElementChild;
    const { paddingTop, paddingBottom } = getComputedStyle(box);
    this.#padding = Number.parseFloat(paddingTop) + Number.parseFloat(paddingBottom);
    this.soon = eachFrame(() => this.update());
    box.addEventListener("scroll", () => this.#onScroll(), { passive: true, signal: this.#stopping.signal });
    this.#sizes = new ResizeObserver((entries) => this.#onSizes(entries));
    this.#sizes.observe(box);
  }

  /** Leaves the box to another list. */
  stop() {
    this.clear();
    this.#stopping.abort();
    this.#sizes.disconnect();
  }

  #onScroll() {
    this.atEnd = this.isLog && this.fromEnd < AT_END;
    this.#anchor = this.#findAnchor();
    this.soon();
  }

  #onSizes(entries) {
    if (this.box.clientWidth !== this.#width) {
      // Texts wrap elsewhere: no height is what it was.
      this.#width = this.box.clientWidth;
      this.#heights.clear();
    }
    for (const { target } of entries) if (target !== this.box) this.#heights.delete(target.dataset.key);
    this.update();
  }

  /** Pixels below what is visible. */
  get fromEnd() {
    return this.box.scrollHeight - this.box.clientHeight - this.box.scrollTop;
  }

  get rows() {
    return this.#rows;
  }

  /** Shows these rows. `end` goes to the last one, or to the one with the key `reveal` if it is among them. */
  show(rows, { end = false, reveal = null } = {}) {
    this.#rows = rows;
    const isRevealing = reveal !== null && rows.some((row) => row.key === reveal);
    if (isRevealing) {
      this.atEnd = false;
      this.#anchor = { key: reveal, offset: REVEALED };
    } else if (end) {
      this.atEnd = true;
      this.#anchor = null;
    }
    this.update();
    // It may be that there is nothing to scroll.
    if (isRevealing) this.#onScroll();
  }

  /** Another list altogether. */
  clear() {
    this.#heights.clear();
    for (const element of this.#shown.values()) element.remove();
    this.#shown.clear();
    this.#anchor = null;
    this.#rows = [];
    this.atEnd = this.isLog;
    this.update();
  }

  /** The places of the first and the last row that can be seen. */
  get visible() {
    const top = this.box.scrollTop;
    return [this.#at(top), this.#at(top + this.box.clientHeight - 1)];
  }

  /** The place of the row at this height. */
  #at(y) {
    let [low, high] = [0, this.#rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#tops[middle + 1] <= y) low = middle + 1;
      else high = middle;
    }
    return Math.min(low, Math.max(this.#rows.length - 1, 0));
  }

  /** The first visible row that was seen before: where it is, is known. A row that stands for a place and not for a thing (a day, a
   * button) moves when rows come before it. */
  #findAnchor() {
    const [first, last] = this.visible;
    const visible = this.#rows.slice(first, last + 1).filter((row) => !row.isLoose);
    const row = visible.find(({ key }) => this.#heights.has(key)) ?? visible[0];
    return row ? { key: row.key, offset: this.#bottom(row.key) - this.box.scrollTop } : null;
  }

  #bottom(key) {
    return this.#tops[this.#places.get(key) + 1];
  }

  #measure() {
    this.#tops = new Array(this.#rows.length + 1);
    this.#places = new Map();
    const heights = this.#rows.map((row) => this.#heights.get(row.key) ?? this.estimate(row));
    const free = this.box.clientHeight - heights.reduce((sum, height) => sum + height, 0);
    let top = this.isLog ? Math.max(0, free - this.#padding) : 0;
    this.#rows.forEach((row, place) => {
      this.#places.set(row.key, place);
      this.#tops[place] = top;
      top += heights[place];
    });
    this.#tops[this.#rows.length] = top;
    this.space.style.height = `${top}px`;
  }

  update() {
    if (!this.box.clientHeight) return;
    // More than once: what is measured can bring further rows into view.
    for (let round = 0; round < 3; round += 1) {
      this.#measure();
      this.#scroll();
      if (!this.#draw()) break;
    }
    for (const [key, element] of this.#shown) element.style.transform = `translateY(${this.#tops[this.#places.get(key)]}px)`;
    this.onScroll();
  }

  #scroll() {
    if (!this.isLog) return;
    const { box } = this;
    let to = box.scrollTop;
    if (this.atEnd) to = this.#tops[this.#rows.length] + this.#padding - box.clientHeight;
    else {
      if (!this.#places.has(this.#anchor?.key)) this.#anchor = this.#findAnchor();
      if (this.#anchor) to = this.#bottom(this.#anchor.key) - this.#anchor.offset;
    }
    if (Math.abs(to - box.scrollTop) >= 1) box.scrollTop = Math.max(0, to);
  }

  /** Brings the elements of the visible rows into the document. Whether a height was not what was thought. */
  #draw() {
    const { box } = this;
    const first = this.#at(box.scrollTop - MARGIN);
    const last = this.#at(box.scrollTop + box.clientHeight + MARGIN);
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
    // An element that was moved has lost it.
    if (focus?.isConnected && document.activeElement !== focus) focus.focus({ preventScroll: true });
    let surprise = false;
    for (const [key, element] of this.#shown) {
      if (this.#heights.has(key)) continue;
      const height = element.offsetHeight;
      surprise ||= height !== this.estimate(this.#rows[this.#places.get(key)]);
      this.#heights.set(key, height);
    }
    return surprise;
  }

  #element(row) {
    const shown = this.#shown.get(row.key);
    if (shown?.dataset.version === row.version) return shown;
    const element = this.draw(row);
    element.dataset.key = row.key;
    element.dataset.version = row.version;
    if (shown) {
      const focused = [...shown.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
      this.#sizes.unobserve(shown);
      shown.replaceWith(element);
      if (focused >= 0) element.querySelectorAll(FOCUSABLE)[focused]?.focus({ preventScroll: true });
    }
    this.#heights.delete(row.key);
    this.#shown.set(row.key, element);
    this.#sizes.observe(element);
    return element;
  }
}
