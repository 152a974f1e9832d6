// @ts-check
// Searches the open conversation. The browser's own search covers only the rows in the document.
//
// The search covers the loaded messages, newest first. Without a match, it loads at most `PAGES` pages of older
// messages at a time, shows how far back it has searched, and continues on request. The work between two frames is
// bounded, whatever the messages contain. Does not cover: unsent messages, and messages that arrive after a search
// began.

import { $, listening } from "./dom.js";
import { pause } from "./retry.js";
import { dateOf } from "./text.js";

const TYPING_MS = 150;
/** Pages that are loaded at a time. Each is a call. */
const PAGES = 20;
/** Characters that are searched at a time, which takes some milliseconds. */
const CHARS = 500_000;
/** Limits of matches that are counted, and that are coloured in one message. */
const MATCHES_MAX = 1000;
const RANGES_MAX = 100;
/** Pixels between a match and the edge of the box. */
const EDGE = 100;

/** The positions of `query` in `body`, ignoring case. None if a change of case would shift positions.
 * @param {string} body @param {string} query */
function placesOf(body, query) {
  const [text, wanted] = [body.toLowerCase(), query.toLowerCase()];
  /** @type {number[]} */
  const places = [];
  if (text.length !== body.length || !wanted) return places;
  let at = text.indexOf(wanted);
  while (at >= 0 && places.length < RANGES_MAX) {
    places.push(at);
    at = text.indexOf(wanted, at + wanted.length);
  }
  return places;
}

/** The ranges of positions in an element. They may span several text nodes.
 * @param {Element} element @param {number[]} places @param {number} length */
function rangesOf(element, places, length) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const next = () => /** @type {Text | null} */ (walker.nextNode());
  let [start, node] = [0, next()];
  /** The node and the offset of a position. Positions must come in ascending order.
   * @param {number} place */
  const point = (place) => {
    while (node && place > start + node.length) {
      start += node.length;
      node = next();
    }
    return node && { node, offset: place - start };
  };
  return places.flatMap((place) => {
    const [from, to] = [point(place), point(place + length)];
    if (!from || !to) return [];
    const range = document.createRange();
    range.setStart(from.node, from.offset);
    range.setEnd(to.node, to.offset);
    return [range];
  });
}

/**
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./picks.js").View & { update: (where: import("./list.js").Where) => void }} View
 */

export class Find {
  #query = "";
  /** The seqs of the matching messages, newest first.
   * @type {number[]} */
  #matches = [];
  #at = 0;
  /** The current run. A new run ends it.
   * @type {object | null} */
  #run = null;
  #isBusy = false;
  #problem = "";
  #timer = 0;
  /** @type {WeakMap<Element, Range[]>} */
  #ranges = new WeakMap();

  /** @param {View} chat @param {AbortSignal} signal */
  constructor(chat, signal) {
    this.chat = chat;
    this.active = false;
    this.input = $("find-text", HTMLInputElement);
    const on = listening(signal);
    on(document, "keydown", (event) => this.#shortcut(event));
    on($("find-open"), "click", () => (this.active ? this.close() : this.open()));
    on($("find-close"), "click", () => this.close());
    on($("find-older"), "click", () => this.#step(1));
    on($("find-newer"), "click", () => this.#step(-1));
    on($("find-further"), "click", () => this.#search(true));
    on($("find"), "submit", (event) => event.preventDefault());
    on(this.input, "input", () => this.#typed());
    on(this.input, "keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      this.#step(event.shiftKey ? -1 : 1);
    });
  }

  /** The shortcut of browsers. Pressing it twice opens the browser's own search.
   * @param {KeyboardEvent} event */
  #shortcut(event) {
    const { ctrlKey, metaKey, altKey, shiftKey, key } = event;
    if (!(ctrlKey || metaKey) || altKey || shiftKey || key.toLowerCase() !== "f") return;
    if (!this.chat.conversation || document.activeElement === this.input) return;
    if (document.querySelector("dialog[open]")) return;
    event.preventDefault();
    this.open();
  }

  open() {
    this.active = true;
    $("find").hidden = false;
    $("find-open").setAttribute("aria-pressed", "true");
    this.input.focus();
    this.input.select();
    this.#tell();
  }

  close() {
    if (!this.active) return;
    const hadFocus = $("find").contains(document.activeElement);
    this.active = false;
    this.input.value = "";
    this.#forget();
    $("find").hidden = true;
    $("find-open").setAttribute("aria-pressed", "false");
    if (hadFocus) this.chat.box.focus();
  }

  #forget() {
    clearTimeout(this.#timer);
    this.#run = null;
    this.#query = "";
    this.#matches = [];
    this.#at = 0;
    this.#problem = "";
    this.#isBusy = false;
    this.#ranges = new WeakMap();
    this.chat.soon();
  }

  #typed() {
    this.#forget();
    this.#query = this.input.value.trim();
    this.#isBusy = this.#query !== "";
    this.#tell();
    if (this.#query) this.#timer = setTimeout(() => this.#search(false), TYPING_MS);
  }

  /** Searches the loaded messages. Loads older ones if there is no match, or to go `further`.
   * @param {boolean} further */
  async #search(further) {
    const { conversation, client } = this.chat;
    if (!conversation) return;
    const run = {};
    this.#run = run;
    this.#isBusy = true;
    this.#problem = "";
    const known = this.#matches.length;
    try {
      if (!further && !(await this.#look(run, conversation, Infinity))) return;
      for (let pages = 0; pages < PAGES && conversation.hasOlder && this.#matches.length === known; pages += 1) {
        if (!further && this.#matches.length) break;
        this.#tell();
        const { floor } = conversation;
        await client.sync.load(conversation, true);
        if (!(await this.#look(run, conversation, floor))) return;
        // Another load was in flight, or nothing arrived.
        if (conversation.floor === floor && conversation.hasOlder) await pause(TYPING_MS);
      }
    } catch (failure) {
      if (this.#run === run) this.#problem = /** @type {Error} */ (failure).message;
    }
    if (this.#run !== run) return;
    this.#run = null;
    this.#isBusy = false;
    if (this.#matches.length > known) this.#go(known);
    else this.#tell();
  }

  /** Adds the matches before the seq `before`, in steps. False if the run was cancelled.
   * @param {object} run @param {Conversation} conversation @param {number} before */
  async #look(run, conversation, before) {
    const wanted = this.#query.toLowerCase();
    let chars = 0;
    // Copies the list, because arriving messages shift positions.
    const messages = conversation.messages.filter((message) => message.seq < before);
    for (const { seq, body, deleted } of messages.reverse()) {
      if (this.#matches.length >= MATCHES_MAX) break;
      if (!deleted && body.toLowerCase().includes(wanted)) this.#matches.push(seq);
      chars += body.length;
      if (chars < CHARS) continue;
      chars = 0;
      await pause(0);
      if (this.#run !== run) return false;
    }
    return this.#run === run;
  }

  /** Moves to an older or a newer match. Past the oldest known one, it searches further back.
   * @param {number} by */
  #step(by) {
    if (!this.#query || this.#isBusy) return;
    const to = this.#at + by;
    if (to >= 0 && to < this.#matches.length) this.#go(to);
    else if (by > 0 && this.chat.conversation?.hasOlder) this.#search(true);
    // Wraps around, as browsers do.
    else if (this.#matches.length) this.#go(by > 0 ? 0 : this.#matches.length - 1);
  }

  /** @param {number} at */
  #go(at) {
    this.#at = at;
    this.#tell();
    const seq = this.#matches[at];
    const message = this.chat.conversation?.messages.find((one) => one.seq === seq);
    // It may have been deleted since.
    if (!message) return;
    this.chat.update({ reveal: message.clientId || `seq/${seq}` });
    this.#bringIntoView();
  }

  /** A message may be taller than the box. */
  #bringIntoView() {
    const { box } = this.chat;
    const body = box.querySelector(".current .body");
    const match = body && this.#rangesIn(body)[0]?.getBoundingClientRect();
    if (!match) return;
    const { top, bottom } = box.getBoundingClientRect();
    if (match.top < top || match.bottom > bottom) box.scrollTop += match.top - top - EDGE;
  }

  /** Marks the matching rows.
   * @param {import("./messages.js").Row[]} rows */
  mark(rows) {
    if (!this.#matches.length) return;
    const matches = new Set(this.#matches);
    const current = this.#matches[this.#at];
    for (const row of rows) {
      if (row.kind !== "message" || !matches.has(row.message.seq)) continue;
      row.found = row.message.seq === current ? "current" : "found";
      row.version += `,${row.found}`;
    }
  }

  /** @param {Element} body */
  #rangesIn(body) {
    let ranges = this.#ranges.get(body);
    if (!ranges) {
      ranges = rangesOf(body, placesOf(body.textContent ?? "", this.#query), this.#query.length);
      this.#ranges.set(body, ranges);
    }
    return ranges;
  }

  /** Colours the matches in the rows in the document, if the browser supports it. */
  paint() {
    if (!globalThis.CSS?.highlights) return;
    const bodies = this.#query ? [...this.chat.box.querySelectorAll(":is(.found, .current) .body")] : [];
    CSS.highlights.set("find", new Highlight(...bodies.flatMap((body) => this.#rangesIn(body))));
  }

  #tell() {
    const { conversation } = this.chat;
    const oldest = conversation?.messages[0];
    const since = conversation?.hasOlder && oldest ? ` since ${dateOf(oldest.time)}` : "";
    const { length } = this.#matches;
    const most = length >= MATCHES_MAX ? `${MATCHES_MAX}+` : String(length);
    let text = length ? `${this.#at + 1} of ${most}${since}` : `No matches${since}`;
    if (this.#isBusy) text = `Searching…${since}`;
    if (this.#problem) text = `Couldn't load older messages: ${this.#problem}`;
    $("find-count").textContent = this.#query ? text : "";
    $("find-further").hidden = !this.#query || this.#isBusy || !since || length >= MATCHES_MAX;
    for (const id of ["find-older", "find-newer"]) $(id, HTMLButtonElement).disabled = !length;
  }
}
