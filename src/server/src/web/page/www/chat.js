// @ts-check
// The open conversation. Connects its parts: the list of messages, the loads, and what the user has read.
//
// Does not cover: the elements of messages (messages.js), text input (composer.js), selection (picks.js) and search
// (find.js).

import { Banner } from "./banner.js";
import { Composer } from "./composer.js";
import { copyTexts } from "./copy.js";
import { $, avatar, eachFrame, focused, isComposing, listening } from "./dom.js";
import { Find } from "./find.js";
import { List } from "./list.js";
import { Loader } from "./loader.js";
import { draw, heightOf, rowsOf } from "./messages.js";
import { PickBar } from "./picks.js";
import { Reading } from "./reading.js";
import { dayOf, oneLine } from "./text.js";
import { announce, toast } from "./toasts.js";

/** With fewer rows before the first visible one, older messages are loaded. */
const AHEAD = 30;

/**
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./messages.js").Row} Row
 */

export class Chat {
  /** @type {Loader | null} */
  #loader = null;
  #day = dayOf(Date.now());

  /** @param {import("./client.js").Client} client */
  constructor(client) {
    this.client = client;
    this.box = $("messages");
    this.stopping = new AbortController();
    const { signal } = this.stopping;
    this.soon = eachFrame(() => this.update());
    this.banner = new Banner(client);
    this.bar = new PickBar(this, signal);
    this.picks = this.bar.picks;
    this.find = new Find(this, signal);
    this.composer = new Composer(client, (body) => this.#send(body), signal);
    /** @type {import("./messages.js").Actions} */
    const actions = {
      pick: (row) => this.picks.toggle(row.key, row.message),
      retry: (message) => client.outbox.retry(message.id),
      edit: (message) => {
        client.outbox.done(message.id);
        this.composer.edit(message.body);
      },
      discard: (message) => client.outbox.done(message.id),
      older: () => this.#loadOlder(),
    };
    /** @type {List<Row>} */
    this.list = new List(this.box, {
      draw: (row, shown) => draw(row, actions, shown),
      estimate: (row) => heightOf(row, this.box.clientWidth),
      onScroll: () => this.#scrolled(),
      isLog: true,
    });
    this.reading = new Reading(client, this.list);
    const on = listening(signal);
    on($("jump"), "click", () => {
      this.list.show(this.list.rows, { end: true });
      // The button is about to be hidden.
      this.box.focus();
    });
    copyTexts(this.box, signal);
    on(document, "keydown", (event) => this.#key(event));
    on(window, "focus", this.soon);
    on(window, "blur", this.soon);
    on(document, "visibilitychange", this.soon);
    this.timer = setInterval(() => this.status(), 1000);
  }

  stop() {
    this.stopping.abort();
    clearInterval(this.timer);
    this.close();
    this.list.stop();
  }

  /** The open conversation. */
  get conversation() {
    return this.#loader?.conversation ?? null;
  }

  /** @param {string} name */
  async open(name) {
    if (this.conversation?.name === name) return;
    this.close();
    const conversation = this.client.store.with(name);
    this.#loader = new Loader(this.client.sync, conversation);
    conversation.isOpen = true;
    $("chat").dataset.open = "yes";
    this.composer.open(name);
    this.#head(this.#loader);
    await this.#loadNewest(this.#loader);
  }

  /** Shows the messages that are already there, then the newest page. Scrolls to the first new message, if any.
   * @param {Loader} loader */
  async #loadNewest(loader) {
    if (loader.isLoading) return;
    const { conversation, isPreview } = loader;
    const loading = loader.newest();
    if (!conversation.loaded && !isPreview) this.update({ end: true });
    const failure = await loading;
    // Another conversation may have been opened meanwhile.
    if (this.#loader !== loader) return;
    if (failure) {
      if (!conversation.messages.length) this.#empty(`Couldn't load messages: ${failure.message}`);
      // `status` retries when the cluster is available again.
      this.#head(loader);
      return;
    }
    this.reading.mark(conversation);
    // The list must not move once the user has begun to read.
    const isBeingRead = isPreview && !this.list.atEnd;
    this.update(isBeingRead ? {} : { end: true, reveal: "new" });
  }

  async #loadOlder() {
    const loader = this.#loader;
    const failure = await loader?.older();
    // The button at the top stays for a retry.
    if (!failure || this.#loader !== loader) return;
    toast(`Couldn't load older messages: ${failure.message}`, { isError: true });
  }

  close() {
    const { conversation } = this;
    this.composer.close();
    if (conversation) conversation.isOpen = false;
    conversation?.trim();
    this.#loader = null;
    this.reading.end();
    this.picks.end();
    this.find.close();
    this.list.clear();
    $("chat").dataset.open = "no";
  }

  /** Called after a full reload, which replaces the open conversation's object. */
  reopen() {
    const name = this.conversation?.name;
    if (!name) return;
    this.#loader = null;
    this.open(name);
  }

  /** Handles an incoming message. Returns whether the user is looking at it.
   * @param {import("./store.js").Arrival} arrival */
  arrived(arrival) {
    const { conversation, message } = arrival;
    if (conversation !== this.conversation) return false;
    announce(`${message.sender}: ${oneLine(message.body)}`);
    return this.reading.arrived(arrival);
  }

  /** @param {Conversation} conversation */
  changed(conversation) {
    if (conversation === this.conversation) this.soon();
  }

  /** @param {Loader} loader */
  #head({ conversation: { name, deleted, loaded }, isUnknown }) {
    const isMe = name === this.client.me;
    $("chat-avatar").replaceChildren(avatar(name));
    $("chat-name").textContent = name;
    $("chat-sub").textContent = isMe ? "Notes to yourself" : deleted ? "This account was deleted" : "";
    // Unsent messages may be older than this finding, and a first message may have arrived since.
    const isMissing = isUnknown && !loaded;
    const placeholder = deleted ? "This account was deleted"
      : isMissing ? "There is no such account"
      : isMe ? "Write a note" : `Message ${name}`;
    this.composer.head(placeholder, deleted || isMissing);
  }

  /** @param {string} text */
  #empty(text) {
    $("messages-empty").textContent = text;
    $("messages-empty").hidden = !text;
  }

  /** @param {import("./list.js").Where} where */
  update(where = {}) {
    const { client, picks } = this;
    const loader = this.#loader;
    if (!loader) return;
    const { conversation } = loader;
    // A conversation that begins with an arriving message needs no load.
    if (conversation.loaded && !loader.isLoading) loader.isSettled = true;
    this.#head(loader);
    const waiting = client.outbox.to(conversation.name);
    const { marker } = this.reading;
    let rows = rowsOf(conversation, waiting, marker, picks, client.me);
    if (picks.active) {
      picks.keepOnly(new Set(rows.map((row) => row.key)));
      rows = rowsOf(conversation, waiting, marker, picks, client.me);
      this.bar.update();
    }
    if (rows.length) this.#empty("");
    else if (loader.isHopeless) return;
    else if (!conversation.loaded) this.#empty("Loading…");
    else if (conversation.name === client.me) this.#empty("Only you can see what you write here.");
    else this.#empty(`No messages yet. Say hello to ${conversation.name}.`);
    this.find.mark(rows);
    this.list.show(rows, where);
  }

  #scrolled() {
    const { conversation, list } = this;
    this.find.paint();
    if (!conversation?.loaded || !this.#loader?.isSettled) return;
    if (conversation.hasOlder && list.visible[0] < AHEAD && !this.#loader.failedOlder) this.#loadOlder();
    this.reading.scrolled(conversation);
  }

  /** Returns whether the text was accepted.
   * @param {string} body */
  #send(body) {
    const { client, conversation } = this;
    if (!conversation) return false;
    if (!client.outbox.send(conversation.name, body)) {
      toast("Too many unsent messages. Your text is still here.", { isError: true });
      return false;
    }
    if (!client.outbox.isKept) {
      toast("This browser can't store unsent messages. Keep this page open until they're sent.", { isError: true });
    }
    this.reading.marker = null;
    this.update({ end: true });
    return true;
  }

  /** Inserts dropped text.
   * @param {string} text */
  insert(text) {
    if (this.conversation) this.composer.insert(text);
  }

  /** Escape ends the selection, or else the search, or else leaves the conversation.
   * @param {KeyboardEvent} event */
  #key(event) {
    if (event.key !== "Escape" || event.defaultPrevented || isComposing(event)) return;
    if (!this.conversation || document.querySelector("dialog[open]")) return;
    if (this.picks.active) return this.bar.end();
    if (this.find.active) return this.find.close();
    // The focus then moves to the list.
    focused()?.blur();
    $("back").click();
  }

  /** Emits "midnight" when the date changes, because day names depend on it. */
  #tellOfMidnight() {
    const day = dayOf(Date.now());
    if (day !== this.#day) this.client.emit("midnight");
    this.#day = day;
  }

  /** Shows the state of the connection. Tries again to load the messages, once that may succeed. */
  status() {
    this.#tellOfMidnight();
    this.banner.update();
    const loader = this.#loader;
    if (this.client.status !== "online" || !loader || loader.isHopeless) return;
    if (!loader.conversation.loaded) this.#loadNewest(loader);
  }
}
