// The open conversation.
//
// A message counts as read when it could be seen: the page has the focus, and the message is on the screen.
// What is typed is in composer.js, what is picked in picks.js, what is searched for in find.js.

import { $, avatar, eachFrame, isComposing } from "./dom.js";
import { Composer } from "./composer.js";
import { copyTexts } from "./copy.js";
import { Find } from "./find.js";
import { List } from "./list.js";
import { draw, heightOf, rowsOf } from "./messages.js";
import { PickBar } from "./picks.js";
import { announce, toast } from "./toasts.js";
import { dayOf, duration, oneLine } from "./text.js";

/** Rows before the first visible one that there have to be; else more are loaded. */
const AHEAD = 30;
/** A short break is not worth a word. */
const QUIET_MS = 1500;

export class Chat {
  #marker = null;
  /** What is shown is what the person is meant to see: not just the end of what was there before the first page came. */
  #isSettled = false;
  /** What is shown is what a node had that lags behind. */
  #isPreview = false;
  #loading = null;
  #loadsOlder = false;
  #failedOlder = false;
  #troubleSince = 0;
  #day = dayOf(Date.now());
  #missed = 0;
  #isHopeless = false;
  /** There is no such account. */
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
      // The button is about to hide.
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

  /** Shows what there is of the conversation, and then its newest page; where the new messages begin, if there are some. */
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
    // Meanwhile another one may have been opened.
    if (this.#loading !== conversation) return;
    this.#loading = null;
    if (problem) {
      if (!conversation.messages.length) this.#empty(`Couldn't load messages: ${problem.message}`);
      // When the cluster is there again, `status` tries again.
      this.#isHopeless = !problem.passing;
      this.#isUnknown = problem.reason === "USER_UNKNOWN";
      this.#head();
      return;
    }
    this.#isHopeless = false;
    this.#isUnknown = false;
    // Nothing moves under somebody who has begun to read.
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

  /** Everything was read anew: what is open is another object now. */
  reopen() {
    const name = this.conversation?.name;
    if (!name) return;
    this.conversation = null;
    this.open(name);
  }

  /** A message of somebody else came. */
  arrived({ conversation, message }) {
    if (conversation !== this.conversation) return false;
    announce(`${message.sender}: ${oneLine(message.body)}`);
    if (!this.#looking || !this.list.atEnd) this.#missed += 1;
    // All before it was read: then it is the first of the new ones.
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
    // What waits may have been written before that was known, and a first message may have come since.
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
    // It did not have to be loaded: its first message came.
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
    // By where it is: a list that follows its end may not have arrived there yet.
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
      // The button at the top stays, to try again.
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

  /** Whether the text was taken. */
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

  /** A text was dropped here. */
  insert(text) {
    if (this.conversation) this.composer.insert(text);
  }

  /** Escape leaves what was begun last: picking, then the conversation. */
  #key(event) {
    if (event.key !== "Escape" || event.defaultPrevented || isComposing(event)) return;
    if (!this.conversation || document.querySelector("dialog[open]")) return;
    if (this.picks.active) return this.bar.end();
    if (this.find.active) return this.find.close();
    // Then it goes to the list.
    document.activeElement?.blur();
    $("back").click();
  }

  /** What was today is yesterday. */
  #tellOfMidnight() {
    const day = dayOf(Date.now());
    if (day !== this.#day) this.client.emit("midnight");
    this.#day = day;
  }

  /** Says how the page stands with the cluster, once it is worth a word. */
  status() {
    const { client } = this;
    this.#tellOfMidnight();
    // While nobody looks the stream may rest.
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
    // The age ticks for the eye only: a screen reader hears of changes of the state.
    $("banner-state").textContent = text;
    $("banner-sending").textContent = sending;
    if (banner.dataset.status !== (isQuiet ? "" : status)) {
      banner.dataset.status = isQuiet ? "" : status;
      announce(isQuiet ? "Back online" : `${text} ${sending}`);
    }
  }
}
