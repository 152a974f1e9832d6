// @ts-check
// The list of conversations, and the search for people.
//
// Does not cover: the conversations (store.js), and accounts without one (directory.js).

import { findAccounts } from "./directory.js";
import { $, avatar, el, focused, icon, isComposing, listening, targetOf } from "./dom.js";
import { List } from "./list.js";
import { count, distance, exactly, oneLine, when } from "./text.js";
import { announce } from "./toasts.js";

const ROW_PX = 68;
const HEAD_PX = 36;
const TYPING_MS = 150;
/** Limit of a search in characters (see the protocol files). */
const QUERY_MAX = 32;

const MARKS = {
  refused: ["alert", "Not sent"],
  pending: ["clock", "Sending…"],
  saved: ["check", "Sent"],
  delivered: ["checks", "Delivered"],
  read: ["checks", "Read"],
};

/** @typedef {keyof typeof MARKS} State */

/** Creates the icon of a message's state, with its label.
 * @param {State} state */
export function mark(state) {
  const [picture, words] = MARKS[state];
  return el("span", { class: `mark ${state}`, title: words }, icon(picture), el("span", { class: "vh" }, words));
}

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** A heading, a conversation, or an account without one.
 * @typedef {object} Facts
 * @property {string} [head]
 * @property {string} [name]
 * @property {Conversation} [conversation]
 * @property {import("./outbox.js").Entry} [waiting] The message to show: a refused one, or the last unsent one.
 * @property {State | ""} [state]
 * @property {boolean} [isOpen] */
/** @typedef {import("./layout.js").Row & Facts} Row */
/** @typedef {{ people: Api.Account[], hasMore: boolean, problem?: string }} Found */

export class People {
  #query = "";
  /** @type {Found | null} */
  #found = null;
  #timer = 0;
  /** Whether Enter was pressed before there was an answer. */
  #isImpatient = false;
  /** The name of the open conversation. */
  #open = "";
  /** Whether the open conversation must still be brought into view, because it is not listed yet. */
  #isToReveal = false;

  /** @param {import("./client.js").Client} client */
  constructor(client) {
    this.client = client;
    /** @type {List<Row>} */
    this.list = new List($("people"), {
      draw: (row) => this.#draw(row),
      estimate: (row) => (row.head ? HEAD_PX : ROW_PX),
      onScroll: () => this.#setTabStop(),
    });
    this.box = $("people");
    this.search = $("search", HTMLInputElement);
    this.stopping = new AbortController();
    const { signal } = this.stopping;
    const on = listening(signal);
    on(this.search, "input", () => this.#typed());
    on(this.search, "keydown", (event) => this.#key(event));
    on(this.box, "keydown", (event) => this.#key(event));
    on(this.box, "focusin", () => this.#setTabStop());
    on(this.box, "click", (event) => targetOf(event).closest("a") && this.clear());
    this.clear();
  }

  stop() {
    this.stopping.abort();
    clearTimeout(this.#timer);
    this.list.stop();
  }

  /** Sets the open conversation.
   * @param {string} name */
  current(name) {
    this.#isToReveal = name !== "" && name !== this.#open;
    this.#open = name;
    this.update();
  }

  clear() {
    clearTimeout(this.#timer);
    this.search.value = "";
    this.#query = "";
    this.#found = null;
    this.update();
  }

  #typed() {
    this.#query = this.search.value.trim().toLowerCase();
    this.#isImpatient = false;
    clearTimeout(this.#timer);
    if (!this.#query) return this.clear();
    this.box.scrollTop = 0;
    this.#timer = setTimeout(() => this.#ask(this.#query), TYPING_MS);
    this.update();
  }

  /** @param {string} query */
  async #ask(query) {
    /** @type {Found} */
    let found;
    try {
      const fits = new TextEncoder().encode(query).length <= QUERY_MAX;
      found = fits ? await findAccounts(this.client.calls, query) : { people: [], hasMore: false };
    } catch (failure) {
      found = { people: [], hasMore: false, problem: /** @type {Error} */ (failure).message };
    }
    if (query !== this.#query || this.stopping.signal.aborted) return;
    this.#found = found;
    this.update();
    if (this.#isImpatient) return this.box.querySelector("a")?.click();
    const more = found.hasMore ? "; keep typing to narrow" : "";
    announce(found.problem ?? `${count(found.people.length, "person", "people")} found${more}`);
  }

  update() {
    const rows = this.#query ? this.#matches() : this.client.list.map(this.#row);
    this.list.show(rows);
    if (this.#isToReveal && !this.#query && this.list.reveal(`with/${this.#open}`)) this.#isToReveal = false;
    const empty = $("people-empty");
    empty.hidden = rows.length > 0;
    const { ready } = this.client.sync;
    if (this.#query) empty.textContent = this.#found?.problem ?? (this.#found ? "No matches." : "Searching…");
    else empty.textContent = ready ? "No conversations yet. Search for someone to message." : "Loading…";
  }

  #matches() {
    const known = this.client.list.filter((conversation) => conversation.name.includes(this.#query));
    known.sort((a, b) => distance(a.name, this.#query) - distance(b.name, this.#query));
    const names = new Set(known.map((conversation) => conversation.name));
    const others = (this.#found?.people ?? []).filter((account) => !names.has(account.username));
    /** @type {Row[]} */
    const rows = known.map(this.#row);
    if (known.length) rows.unshift({ key: "head/known", version: "", head: "Conversations" });
    if (others.length) rows.push({ key: "head/others", version: "", head: "People" });
    for (const { username: name } of others) {
      rows.push({ key: `person/${name}`, version: String(name === this.client.me), name });
    }
    if (this.#found?.hasMore) {
      rows.push({ key: "head/more", version: "", head: "More results – keep typing to narrow" });
    }
    return rows;
  }

  /** @param {Conversation} conversation @returns {Row} */
  #row = (conversation) => {
    const { me, outbox } = this.client;
    const { name, last, unread, deleted } = conversation;
    const entries = outbox.to(name);
    // A refused message stays until the user decides about it.
    const refused = entries.findLast((entry) => entry.problem);
    const waiting = refused ?? entries.at(-1);
    const isOpen = name === this.#open;
    const isMine = last?.sender === me && !last.deleted;
    const state = refused ? "refused" : waiting ? "pending" : isMine ? conversation.reached(last, me) : "";
    const day = new Date().getDate();
    const version = [waiting?.id, last?.id, last?.deleted, state, unread, deleted, isOpen, day].join();
    return { key: `with/${name}`, version, name, conversation, waiting, state, isOpen };
  };

  /** @param {Row} row */
  #draw({ head, name = "", conversation, waiting, state, isOpen }) {
    if (head) return el("li", { class: "people-head" }, head);
    const title = name === this.client.me ? `${name} (notes to yourself)` : name;
    const shownName = el("span", { class: "name", dir: "auto" }, title);
    if (!conversation) {
      return el("li", {}, el("a", { href: `#/${name}` }, avatar(name), el("span", { class: "row-main" },
        el("span", { class: "row-top" }, shownName),
        el("span", { class: "row-last" }, "Start a conversation"))));
    }
    const { last, unread } = conversation;
    const time = waiting?.time ?? last?.time;
    const words = waiting ? oneLine(waiting.body)
      : !last ? "No messages"
      : last.deleted ? "This message was deleted" : oneLine(last.body);
    const isGone = !waiting && (!last || last.deleted);
    const badge = el("span", { class: "badge" }, unread > 99 ? "99+" : String(unread),
      el("span", { class: "vh" }, " unread"));
    const attributes = { href: `#/${name}`, "aria-current": isOpen && "page", class: unread ? "unread" : "" };
    return el("li", {}, el("a", attributes, avatar(name), el("span", { class: "row-main" },
      el("span", { class: "row-top" }, shownName, time ? el("time", { title: exactly(time) }, when(time)) : null),
      el("span", { class: "row-bottom" },
        state ? mark(state) : null,
        el("span", { class: `row-last${isGone ? " gone" : ""}`, dir: "auto" }, words),
        unread > 0 ? badge : null))));
  }

  /** The list is a single tab stop. It is the focused row, the open one, or the first visible one. */
  #setTabStop() {
    const links = [...this.box.querySelectorAll("a")];
    const top = this.box.getBoundingClientRect().top;
    const stop = links.find((link) => link === focused())
      ?? links.find((link) => link.hasAttribute("aria-current"))
      ?? links.find((link) => link.getBoundingClientRect().bottom > top);
    for (const link of links) link.tabIndex = link === stop ? 0 : -1;
  }

  /** Arrows, Home and End move in the list. Escape ends the search. Enter opens the first result.
   * @param {KeyboardEvent} event */
  #key(event) {
    if (isComposing(event) || event.ctrlKey || event.altKey || event.metaKey) return;
    const links = [...this.box.querySelectorAll("a")];
    const at = links.findIndex((link) => link === focused());
    if (event.key === "Escape" && this.#query) {
      this.clear();
      this.search.focus();
    } else if (event.key === "Enter" && at < 0) {
      this.#isImpatient = this.#query !== "" && !links.length;
      links[0]?.click();
    } else if (event.key === "ArrowDown") {
      (at < 0 ? links.find((link) => link.tabIndex === 0) : links[at + 1])?.focus();
    } else if (event.key === "ArrowUp") (links[at - 1] ?? this.search).focus();
    else if (event.key === "Home" && at >= 0) this.#focus(this.list.rows.find((row) => row.name));
    else if (event.key === "End" && at >= 0) this.#focus(this.list.rows.findLast((row) => row.name));
    else return;
    event.preventDefault();
  }

  /** @param {Row | undefined} row */
  #focus(row) {
    if (row) this.list.reveal(row.key)?.querySelector("a")?.focus();
  }
}
