// The open conversation.
//
// A message counts as read once it is on the screen while the page has the focus.
// Does not cover: text input (composer.js), selection (picks.js) and search (find.js).

import { $, avatar, eachFrame, isComposing } from "./dom.js";
import { Composer } from "./composer.js";
import { copyTexts } from "./copy.js";
import { Find } from "./find.js";
import { List } from "./list.js";
import { draw, heightOf, rowsOf } from "./messages.js";
import { PickBar } from "./picks.js";
import { announce, toast } from "./toasts.js";
import { dayOf, duration, oneLine } from "./text.js";

/** With fewer rows before the first visible one, older messages are loaded. */
const AHEAD = 30;
/** Shorter interruptions are not shown. */
const QUIET_MS = 1500;

export class Chat {
  #marker = null;
  /** Whether the first page is shown, and not only what was there before it arrived. */
  #isSettled = false;
  /** Whether the shown messages come from a lagging node. */
  #isPreview = false;
  #loading = null;
  #loadsOlder = false;
  #failedOlder = false;
  #troubleSince = 0;
  #day = dayOf(Date.now());
  #missed = 0;
  #isHopeless = false;
  /** Whether the account does not exist. */
  #isUnknown = false;

  constructor(client) {
    this.client = client;
    this.conversation = null;
    this.box = $("messages");
    this.stopping = new AbortController();
    const { signal } = this.stopping;
    this.soon = eachFrame(() => this.update());
    this.bar = new PickBar(this, signal);
    this.picks = this.bar.picks;
    this.find = new Find(this, signal);
    this.composer = new Composer(client, (body) => this.#send(body), signal);
    const actions = {
      pick: (row) => this.picks.toggle(row.key, row.message),
      retry: (message) => client.outbox.retry(message.id),
      edit: (message) => this.#edit(message),
      discard: (message) => client.outbox.done(message.id),
      older: () => this.#older(),
    };
    this.list = new List(this.box, {
      draw: (row, shown) => draw(row, actions, shown),
      estimate: (row) => heightOf(row, this.box.clientWidth),
      onScroll: () => this.#scrolled(),
      isLog: true,
    });
    const on = (target, event, action) => target.addEventListener(event, action, { signal });
    on($("jump"), "click", () => {
      this.list.show(this.list.rows, { end: true });
      // The button is about to be hidden.
      this.box.focus();
    });
    copyTexts(this.box, signal);
    on(document, "keydown", (event) => this.#key(event));
    for (const event of ["focus", "blur"]) on(window, event, () => this.soon());
    on(document, "visibilitychange", () => this.soon());
    this.timer = setInterval(() => this.status(), 1000);
  }

  stop() {
    this.stopping.abort();
    clearInterval(this.timer);
    this.close();
    this.list.stop();
  }

  get #looking() {
    return !document.hidden && document.hasFocus();
  }

  async open(name) {
    if (this.conversation?.name === name) return;
    this.close();
    const conversation = this.client.store.with(name);
    this.conversation = conversation;
    conversation.isOpen = true;
    $("chat").dataset.open = "yes";
    this.composer.open(name);
    this.#head();
    await this.#loadFirst();
  }

  /** Shows the messages that are already there, then the newest page. Scrolls to the first new message, if any. */
  async #loadFirst() {
    const { conversation, client } = this;
    if (this.#loading === conversation) return;
    this.#loading = conversation;
    let problem = null;
    try {
      if (!conversation.loaded && !this.#isPreview) this.update({ end: true });
      await client.load(conversation);
    } catch (failure) {
      problem = failure;
    }
    // Another conversation may have been opened meanwhile.
    if (this.#loading !== conversation) return;
    this.#loading = null;
    if (problem) {
      if (!conversation.messages.length) this.#empty(`Couldn't load messages: ${problem.message}`);
      // `status` retries when the cluster is available again.
      this.#isHopeless = !problem.passing;
      this.#isUnknown = problem.reason === "USER_UNKNOWN";
      this.#head();
      return;
    }
    this.#isHopeless = false;
    this.#isUnknown = false;
    // The list must not move once the user has begun to read.
    const isBeingRead = this.#isPreview && !this.list.atEnd;
    this.#isPreview = !conversation.loaded;
    if (conversation.unread > 0) this.#marker = conversation.readBy(client.me);
    this.#isSettled = conversation.loaded;
    this.update(isBeingRead ? {} : { end: true, reveal: "new" });
  }

  close() {
    this.composer.close();
    if (this.conversation) this.conversation.isOpen = false;
    this.conversation?.trim();
    this.#loading = null;
    this.conversation = null;
    this.#marker = null;
    this.#missed = 0;
    this.#failedOlder = false;
    this.#isSettled = false;
    this.#isPreview = false;
    this.#isHopeless = false;
    this.#isUnknown = false;
    this.picks.end();
    this.find.close();
    this.list.clear();
    $("chat").dataset.open = "no";
  }

  /** Called after a full reload, which replaces the open conversation's object. */
  reopen() {
    const name = this.conversation?.name;
    if (!name) return;
    this.conversation = null;
    this.open(name);
  }

  /** Handles an incoming message. Returns whether the user is looking at it. */
  arrived({ conversation, message }) {
    if (conversation !== this.conversation) return false;
    announce(`${message.sender}: ${oneLine(message.body)}`);
    if (!this.#looking || !this.list.atEnd) this.#missed += 1;
    // Everything before it is read, so it is the first new message.
    if (!this.#looking && conversation.unread <= 1) this.#marker = message.seq - 1;
    return this.#looking;
  }

  changed(conversation) {
    if (conversation === this.conversation) this.soon();
  }

  #head() {
    const { name, deleted } = this.conversation;
    const isMe = name === this.client.me;
    $("chat-avatar").replaceChildren(avatar(name));
    $("chat-name").textContent = name;
    $("chat-sub").textContent = isMe ? "Notes to yourself" : deleted ? "This account was deleted" : "";
    // Unsent messages may be older than this finding, and a first message may have arrived since.
    const isUnknown = this.#isUnknown && !this.conversation.loaded;
    const placeholder = deleted ? "This account was deleted"
      : isUnknown ? "There is no such account"
      : isMe ? "Write a note" : `Message ${name}`;
    this.composer.head(placeholder, deleted || isUnknown);
  }

  #empty(text) {
    $("messages-empty").textContent = text;
    $("messages-empty").hidden = !text;
  }

  update(where = {}) {
    const { conversation, client } = this;
    if (!conversation) return;
    // A conversation that begins with an arriving message needs no load.
    if (conversation.loaded && !this.#loading) this.#isSettled = true;
    this.#head();
    const waiting = client.outbox.to(conversation.name);
    let rows = rowsOf(conversation, waiting, this.#marker, this.picks, client.me);
    if (this.picks.active) {
      this.picks.keepOnly(new Set(rows.map((row) => row.key)));
      rows = rowsOf(conversation, waiting, this.#marker, this.picks, client.me);
      this.bar.update();
    }
    if (rows.length) this.#empty("");
    else if (this.#isHopeless) return;
    else if (!conversation.loaded) this.#empty("Loading…");
    else if (conversation.name === client.me) this.#empty("Only you can see what you write here.");
    else this.#empty(`No messages yet. Say hello to ${conversation.name}.`);
    this.find.mark(rows);
    this.list.show(rows, where);
  }

  #scrolled() {
    const { conversation, list } = this;
    this.find.paint();
    if (!conversation?.loaded || !this.#isSettled) return;
    const [first, last] = list.visible;
    if (conversation.hasOlder && first < AHEAD && !this.#failedOlder) this.#older();
    // Uses the position, because a list that follows its end may not have reached it yet.
    const isNearEnd = list.isNearEnd;
    if (isNearEnd) this.#missed = 0;
    $("jump").hidden = isNearEnd;
    $("jump-count").textContent = this.#missed ? String(this.#missed) : "";
    if (!this.#looking) return;
    const seen = list.rows.slice(first, last + 1).reduce((seq, row) => (row.message && row.message.seq !== Infinity ? Math.max(seq, row.message.seq) : seq), 0);
    const upTo = isNearEnd ? Math.max(seen, conversation.messages.at(-1)?.seq ?? 0) : seen;
    if (conversation.id && upTo > conversation.readBy(this.client.me) && conversation.unread > 0) this.client.receipts.read(conversation, upTo);
  }

  async #older() {
    const { conversation } = this;
    if (this.#loadsOlder) return;
    this.#loadsOlder = true;
    this.#failedOlder = false;
    try {
      await this.client.load(conversation, true);
    } catch (failure) {
      if (this.conversation !== conversation) return;
      // The button at the top stays for a retry.
      this.#failedOlder = true;
      toast(`Couldn't load older messages: ${failure.message}`, { isError: true });
    } finally {
      this.#loadsOlder = false;
    }
  }

  #edit(message) {
    this.client.outbox.done(message.id);
    this.composer.edit(message.body);
  }

  /** Returns whether the text was accepted. */
  #send(body) {
    if (!this.client.outbox.send(this.conversation.name, body)) {
      toast("Too many unsent messages. Your text is still here.", { isError: true });
      return false;
    }
    if (!this.client.outbox.isKept) {
      toast("This browser can't store unsent messages. Keep this page open until they're sent.", { isError: true });
    }
    this.#marker = null;
    this.update({ end: true });
    return true;
  }

  /** Inserts dropped text. */
  insert(text) {
    if (this.conversation) this.composer.insert(text);
  }

  /** Escape ends the selection, or else the search, or else leaves the conversation. */
  #key(event) {
    if (event.key !== "Escape" || event.defaultPrevented || isComposing(event)) return;
    if (!this.conversation || document.querySelector("dialog[open]")) return;
    if (this.picks.active) return this.bar.end();
    if (this.find.active) return this.find.close();
    // The focus then moves to the list.
    document.activeElement?.blur();
    $("back").click();
  }

  /** Emits "midnight" when the date changes, because day names depend on it. */
  #tellOfMidnight() {
    const day = dayOf(Date.now());
    if (day !== this.#day) this.client.emit("midnight");
    this.#day = day;
  }

  /** Shows the state of the connection, unless the trouble is shorter than `QUIET_MS`. */
  status() {
    const { client } = this;
    this.#tellOfMidnight();
    // The stream of a hidden tab may be stopped.
    const status = client.isAsleep ? "online" : client.status;
    if (status === "online") this.#troubleSince = 0;
    else this.#troubleSince ||= Date.now();
    const isQuiet = status === "online" || Date.now() - this.#troubleSince < QUIET_MS;
    if (client.status === "online" && this.conversation && !this.conversation.loaded && !this.#isHopeless) this.#loadFirst();
    const { age } = client;
    const known = age === null ? "These messages may be out of date." : `Showing messages as of ${duration(age)} ago.`;
    const sending = "New messages will be sent automatically.";
    const words = {
      connecting: "Reconnecting…",
      minority: `Most servers are down. ${known}`,
      offline: `You're offline. ${known}`,
    };
    const text = isQuiet ? "" : words[status];
    const banner = $("banner");
    banner.hidden = isQuiet;
    // The age changes every second, so screen readers announce only changes of the state.
    $("banner-state").textContent = text;
    $("banner-sending").textContent = sending;
    if (banner.dataset.status !== (isQuiet ? "" : status)) {
      banner.dataset.status = isQuiet ? "" : status;
      announce(isQuiet ? "Back online" : `${text} ${sending}`);
    }
  }
}
