// The list of conversations, and the search for people.

import { $, avatar, el, icon, isComposing } from "./dom.js";
import { announce } from "./toasts.js";
import { List } from "./list.js";
import { count, distance, exactly, oneLine, when } from "./text.js";

const ROW_PX = 68;
const HEAD_PX = 36;
const TYPING_MS = 150;
/** Limit of a search in characters (see the protocol files). */
const QUERY_MAX = 32;

export const MARKS = {
  refused: ["alert", "Not sent"],
  pending: ["clock", "Sending…"],
  saved: ["check", "Sent"],
  delivered: ["checks", "Delivered"],
  read: ["checks", "Read"],
};

/** Creates the icon of a message's state, with its label. */
export function mark(state) {
  const [picture, words] = MARKS[state];
  return el("span", { class: `mark ${state}`, title: words }, icon(picture), el("span", { class: "vh" }, words));
}

export class People {
  #query = "";
  #found = null;
  #timer = 0;
  /** Whether Enter was pressed before there was an answer. */
  #isImpatient = false;
  #open = null;
  /** Whether the open conversation must still be brought into view, because it is not listed yet. */
  #isToReveal = false;

  constructor(client) {
    this.client = client;
    this.list = new List($("people"), {
      draw: (row) => this.#draw(row),
      estimate: (row) => (row.head ? HEAD_PX : ROW_PX),
      onScroll: () => this.#setTabStop(),
    });
    this.box = $("people");
    this.search = $("search");
    this.stopping = new AbortController();
    const { signal } = this.stopping;
    this.search.addEventListener("input", () => this.#typed(), { signal });
    this.search.addEventListener("keydown", (event) => this.#key(event), { signal });
    $("people").addEventListener("keydown", (event) => this.#key(event), { signal });
    $("people").addEventListener("focusin", () => this.#setTabStop(), { signal });
    $("people").addEventListener("click", (event) => event.target.closest("a") && this.clear(), { signal });
    this.clear();
  }

  stop() {
    this.stopping.abort();
    clearTimeout(this.#timer);
    this.list.stop();
  }

  /** Sets the open conversation. */
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

  async #ask(query) {
    let found;
    try {
      const fits = new TextEncoder().encode(query).length <= QUERY_MAX;
      found = fits ? await this.client.search(query) : { people: [], hasMore: false };
    } catch (failure) {
      found = { people: [], hasMore: false, problem: failure.message };
    }
    if (query !== this.#query || this.stopping.signal.aborted) return;
    this.#found = found;
    this.update();
    if (this.#isImpatient) return $("people").querySelector("a")?.click();
    const more = found.hasMore ? "; keep typing to narrow" : "";
    announce(found.problem ?? `${count(found.people.length, "person", "people")} found${more}`);
  }

  update() {
    const rows = this.#query ? this.#matches() : this.client.list.map((conversation) => this.#row(conversation));
    this.list.show(rows);
    if (this.#isToReveal && !this.#query && this.list.reveal(`with/${this.#open}`)) this.#isToReveal = false;
    const empty = $("people-empty");
    empty.hidden = rows.length > 0;
    if (this.#query) empty.textContent = this.#found?.problem ?? (this.#found ? "No matches." : "Searching…");
    else empty.textContent = this.client.ready ? "No conversations yet. Search for someone to message." : "Loading…";
  }

  #matches() {
    const known = this.client.list.filter((conversation) => conversation.name.includes(this.#query));
    known.sort((a, b) => distance(a.name, this.#query) - distance(b.name, this.#query));
    const names = new Set(known.map((conversation) => conversation.name));
    const others = (this.#found?.people ?? []).filter((account) => !names.has(account.username));
    const rows = known.length ? [{ key: "head/known", version: "", head: "Conversations" }, ...known.map((conversation) => this.#row(conversation))] : [];
    if (others.length) rows.push({ key: "head/others", version: "", head: "People" });
    for (const { username } of others) rows.push({ key: `person/${username}`, version: String(username === this.client.me), name: username });
    if (this.#found?.hasMore) {
      rows.push({ key: "head/more", version: "", head: "More results – keep typing to narrow" });
    }
    return rows;
  }

  #row(conversation) {
    const entries = this.client.outbox.to(conversation.name);
    // A refused message stays until the user decides about it.
    const refused = entries.findLast((entry) => entry.problem);
    const waiting = refused ?? entries.at(-1);
    const { last } = conversation;
    const isOpen = conversation.name === this.#open;
    const isMine = last?.sender === this.client.me && !last.deleted;
    const state = refused ? "refused" : waiting ? "pending" : isMine ? conversation.reached(last, this.client.me) : "";
    const version = [waiting?.id, last?.id, last?.deleted, state, conversation.unread, conversation.deleted, isOpen, new Date().getDate()].join();
    return { key: `with/${conversation.name}`, version, name: conversation.name, conversation, waiting, state, isOpen };
  }

  #draw({ head, name, conversation, waiting, state, isOpen }) {
    if (head) return el("li", { class: "people-head" }, head);
    const title = el("span", { class: "name", dir: "auto" }, name === this.client.me ? `${name} (notes to yourself)` : name);
    if (!conversation) {
      return el("li", {}, el("a", { href: `#/${name}` }, avatar(name), el("span", { class: "row-main" },
        el("span", { class: "row-top" }, title),
        el("span", { class: "row-last" }, "Start a conversation"))));
    }
    const { last, unread } = conversation;
    const time = waiting?.time ?? last?.time;
    const words = waiting ? oneLine(waiting.body) : !last ? "No messages" : last.deleted ? "This message was deleted" : oneLine(last.body);
    const badge = unread > 0 ? el("span", { class: "badge" }, unread > 99 ? "99+" : String(unread), el("span", { class: "vh" }, " unread")) : null;
    return el("li", {}, el("a", { href: `#/${name}`, "aria-current": isOpen ? "page" : false, class: unread ? "unread" : "" },
      avatar(name),
      el("span", { class: "row-main" },
        el("span", { class: "row-top" }, title, time ? el("time", { title: exactly(time) }, when(time)) : null),
        el("span", { class: "row-bottom" },
          state ? mark(state) : null,
          el("span", { class: `row-last${!waiting && (!last || last.deleted) ? " gone" : ""}`, dir: "auto" }, words), badge))));
  }

  /** The list is a single tab stop. It is the focused row, the open one, or the first visible one. */
  #setTabStop() {
    const links = [...this.box.querySelectorAll("a")];
    const top = this.box.getBoundingClientRect().top;
    const stop = links.find((link) => link === document.activeElement)
      ?? links.find((link) => link.hasAttribute("aria-current"))
      ?? links.find((link) => link.getBoundingClientRect().bottom > top);
    for (const link of links) link.tabIndex = link === stop ? 0 : -1;
  }

  /** Arrows, Home and End move in the list. Escape ends the search. Enter opens the first result. */
  #key(event) {
    if (isComposing(event) || event.ctrlKey || event.altKey || event.metaKey) return;
    const links = [...this.box.querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    if (event.key === "Escape" && this.#query) {
      this.clear();
      this.search.focus();
    } else if (event.key === "Enter" && at < 0) {
      this.#isImpatient = this.#query !== "" && !links.length;
      links[0]?.click();
    } else if (event.key === "ArrowDown") (at < 0 ? links.find((link) => link.tabIndex === 0) : links[at + 1])?.focus();
    else if (event.key === "ArrowUp") (links[at - 1] ?? this.search).focus();
    else if (event.key === "Home" && at >= 0) this.#focus(this.list.rows.find((row) => row.name));
    else if (event.key === "End" && at >= 0) this.#focus(this.list.rows.findLast((row) => row.name));
    else return;
    event.preventDefault();
  }

  #focus(row) {
    this.list.reveal(row?.key)?.querySelector("a").focus();
  }
}
