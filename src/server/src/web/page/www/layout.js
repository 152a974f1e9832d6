// @ts-check
// The places of the rows of a list. The height of a row is an estimate until it is measured, and rows are placed by the
// sums of the heights.
//
// Does not cover: the document and scrolling (list.js).

/** A row. It is redrawn when its `version` changes. One that `isLoose` stands for a place (a day, a button) and moves
 * when rows are added before it.
 * @typedef {{ key: string, version: string, isLoose?: boolean }} Row */

/** @template {Row} R */
export class Layout {
  /** @type {R[]} */
  rows = [];
  #estimate;
  /** The upper edges of the rows, and the lower edge of the last one. */
  #tops = [0];
  /** @type {Map<string, number>} */
  #heights = new Map();
  /** Cached estimates. Each frame needs them, and long texts take a while.
   * @type {Map<string, number>} */
  #estimates = new Map();
  /** @type {Map<string, number>} */
  #places = new Map();

  /** @param {(row: R) => number} estimate Guesses the height of a row. */
  constructor(estimate) {
    this.#estimate = estimate;
  }

  /** Forgets all heights. */
  forgetAll() {
    this.#heights.clear();
    this.#estimates.clear();
  }

  /** Forgets a measured height.
   * @param {string} key */
  forget(key) {
    this.#heights.delete(key);
  }

  /** @param {string} key */
  isMeasured(key) {
    return this.#heights.has(key);
  }

  /** Sets a measured height. Returns whether it differs from the estimate.
   * @param {string} key @param {number} height */
  measured(key, height) {
    this.#heights.set(key, height);
    return height !== this.#estimateOf(this.rows[this.#placeOf(key)]);
  }

  /** @param {R} row */
  #estimateOf(row) {
    let height = this.#estimates.get(row.key);
    if (height === undefined) {
      height = this.#estimate(row);
      this.#estimates.set(row.key, height);
    }
    return height;
  }

  /** Places the rows. If they are lower than `room`, they are at its bottom.
   * @param {number} room */
  place(room) {
    const heights = this.rows.map((row) => this.#heights.get(row.key) ?? this.#estimateOf(row));
    let top = Math.max(0, room - heights.reduce((sum, height) => sum + height, 0));
    this.#tops = [top];
    this.#places = new Map();
    this.rows.forEach((row, place) => {
      this.#places.set(row.key, place);
      top += heights[place];
      this.#tops.push(top);
    });
  }

  /** The height of all rows. */
  get height() {
    return this.#tops[this.rows.length];
  }

  /** The index of a row, if it exists.
   * @param {string | undefined} key */
  find(key) {
    return this.#places.get(key ?? "");
  }

  /** @param {string} key */
  #placeOf(key) {
    return /** @type {number} */ (this.#places.get(key));
  }

  /** The edges of a row that exists.
   * @param {string} key */
  edges(key) {
    const place = this.#placeOf(key);
    return { top: this.#tops[place], bottom: this.#tops[place + 1] };
  }

  /** The index of the row at this height.
   * @param {number} y */
  at(y) {
    let [low, high] = [0, this.rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#tops[middle + 1] <= y) low = middle + 1;
      else high = middle;
    }
    return Math.min(low, Math.max(this.rows.length - 1, 0));
  }
}
