// The open conversation: its messages, what is being typed, and deleting.
//
// Typing is kept with every key, for each conversation. A message counts as read when it could be seen: the page has the focus, and the message
// is on the screen.

import { $, avatar, eachFrame, isComposing } from "./dom.js";
import { confirm } from "./ask.js";
import { keep } from "./keep.js";
import { List } from "./list.js";
import { Picks, draw, heightOf, rowsOf } from "./messages.js";
import { announce, toast } from "./toasts.js";
import { bytesOf, count, dayOf, duration, oneLine } from "./text.js";

const BODY_BYTES_MAX = 16 * 1024;
/** From how close to the limit on it is spoken of. */
const BODY_NEAR = 0.8;
/** Rows before the first visible one that there have to be; else more are loaded. */
const AHEAD = 30;
/** A short break is not worth a word. */
const QUIET_MS = 1500;
/** Closer to the end than this, all was seen. */
const NEAR_PX = 40;

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

  constructor(client) {
    this.client = client;
    this.conversation = null;
    this.picks = new Picks(() => this.#picked());
    this.box = $("messages");
    const actions = {
      pick: (row) => this.picks.toggle(row.key, row.message),
      retry: (message) => client.outbox.retry(message.id),
      edit: (message) => this.#edit(message),
      discard: (message) => client.outbox.done(message.id),
      older: () => this.#older(),
    };
    this.list = new List(this.box, { draw: (row) => draw(row, actions), estimate: (row) => heightOf(row, this.box.clientWidth), onScroll: () => this.#scrolled(), isLog: true });
    this.soon = eachFrame(() => this.update());
    this.input = $("input");
    this.stopping = new AbortController();
    const { signal } = this.stopping;
    const on = (target, event, action) => target.addEventListener(event, action, { signal });
    on(this.input, "input", () => this.#typed());
    on(this.input, "keydown", (event) => this.#key(event));
    on($("composer"), "submit", (event) => { event.preventDefault(); this.#send(); });
    on($("jump"), "click", () => {
      this.list.show(this.list.rows, { end: true });
      // The button is about to hide.
      this.box.focus();
    });
    on($("pick"), "click", () => (this.picks.active ? this.picks.end() : this.picks.start()));
    on($("pick-cancel"), "click", () => this.#endPicking());
    on($("pick-me"), "click", () => this.#delete(false));
    on($("pick-all"), "click", () => this.#delete(true));
    on(document, "keydown", (event) => event.key === "Escape" && this.picks.active && !document.querySelector("dialog[open]") && this.#endPicking());
    for (const event of ["focus", "blur"]) on(window, event, () => this.soon());
    on(document, "visibilitychange", () => this.soon());
    on(window, "pagehide", () => this.#keepDraft());
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

  #draft(name) {
    return `draft/${this.client.me}/${name}`;
  }

  /** Another tab may have sent what both had, and removed it; here it is still being written. */
  #keepDraft() {
    const isOver = this.client.isOver || !this.conversation;
    if (!isOver && this.input.value) keep.set(this.#draft(this.conversation.name), this.input.value);
  }

  async open(name) {
    if (this.conversation?.name === name) return;
    this.close();
    const conversation = this.client.store.with(name);
    this.conversation = conversation;
    conversation.isOpen = true;
    $("chat").dataset.open = "yes";
    const draft = keep.get(this.#draft(name)) ?? "";
    this.input.value = draft;
    this.#grow();
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
      if (!conversation.messages.length) this.#empty(`The messages cannot be loaded: ${problem.message}`);
      // When the cluster is there again, `status` tries again.
      this.#isHopeless = !problem.passing;
      return;
    }
    this.#isHopeless = false;
    // Nothing moves under somebody who has begun to read.
    const isBeingRead = this.#isPreview && !this.list.atEnd;
    this.#isPreview = !conversation.loaded;
    if (conversation.unread > 0) this.#marker = conversation.readBy(client.me);
    this.#isSettled = conversation.loaded;
    this.update(isBeingRead ? {} : { end: true, reveal: "new" });
  }

  close() {
    this.#keepDraft();
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
    this.picks.end();
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
    // What was typed can still be copied.
    this.input.readOnly = deleted;
    this.input.placeholder = deleted ? "This account was deleted" : isMe ? "Write a note" : `Message ${name}`;
    this.#limits();
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
      this.#pickBar();
    }
    if (rows.length) this.#empty("");
    else if (this.#isHopeless) return;
    else this.#empty(!conversation.loaded ? "Loading…" : conversation.name === client.me ? "What you write here only you can read." : `No messages yet. Say hello to ${conversation.name}.`);
    this.list.show(rows, where);
  }

  #scrolled() {
    const { conversation, list } = this;
    if (!conversation?.loaded || !this.#isSettled) return;
    const [first, last] = list.visible;
    if (conversation.hasOlder && first < AHEAD && !this.#failedOlder) this.#older();
    const isNearEnd = list.fromEnd < NEAR_PX;
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
      toast(`Older messages cannot be loaded: ${failure.message}`, { isError: true });
    } finally {
      this.#loadsOlder = false;
    }
  }

  #typed() {
    const { name } = this.conversation;
    if (this.input.value) keep.set(this.#draft(name), this.input.value);
    else keep.remove(this.#draft(name));
    this.#grow();
    this.#limits();
  }

  #grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${this.input.scrollHeight}px`;
  }

  #limits() {
    const bytes = bytesOf(this.input.value.trimEnd());
    const isTooLong = bytes > BODY_BYTES_MAX;
    $("limit").textContent = bytes > BODY_BYTES_MAX * BODY_NEAR ? `${bytes.toLocaleString()} of ${BODY_BYTES_MAX.toLocaleString()} bytes${isTooLong ? ": too long to send" : ""}` : "";
    this.input.setAttribute("aria-invalid", isTooLong);
    $("send").disabled = isTooLong || !this.input.value.trim() || (this.conversation?.deleted ?? true);
  }

  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
    event.preventDefault();
    this.#send();
  }

  #send() {
    const { name } = this.conversation;
    this.#limits();
    if ($("send").disabled) return;
    if (!this.client.outbox.send(name, this.input.value.trimEnd())) {
      toast("Too much is waiting to be sent. What you typed stays here.", { isError: true });
      return;
    }
    if (!this.client.outbox.isKept) toast("This browser does not keep what waits: do not close the page before it is sent.", { isError: true });
    this.input.value = "";
    this.#typed();
    this.#marker = null;
    this.update({ end: true });
    this.input.focus();
  }

  #edit(message) {
    this.client.outbox.done(message.id);
    this.input.value = [message.body, this.input.value].filter(Boolean).join("\n");
    this.#typed();
    this.input.focus();
  }

  #picked() {
    $("pick-bar").hidden = !this.picks.active;
    $("composer").hidden = this.picks.active;
    $("pick").setAttribute("aria-pressed", this.picks.active);
    this.box.classList.toggle("picking", this.picks.active);
    this.#pickBar();
    this.soon();
  }

  #endPicking() {
    this.picks.end();
    $("pick").focus();
  }

  #pickBar() {
    const { messages } = this.picks;
    const ofOthers = messages.some((message) => message.sender !== this.client.me || message.deleted);
    $("pick-count").textContent = messages.length ? count(messages.length, "message") + " selected" : "Select messages";
    $("pick-me").disabled = !messages.length;
    $("pick-all").disabled = !messages.length || ofOthers;
    $("pick-why").textContent = messages.length && ofOthers ? "Only your own messages can be deleted for everyone." : "";
  }

  async #delete(forEveryone) {
    const { conversation, picks } = this;
    const { messages } = picks;
    const what = count(messages.length, "message");
    const isSure = await confirm({
      title: forEveryone ? `Delete ${what} for everyone?` : `Delete ${what} for you?`,
      text: forEveryone ? `${conversation.name} will see that something was deleted, and not what it was.` : `For you only: ${conversation.name === this.client.me ? "this cannot be undone" : `${conversation.name} still has what you delete`}.`,
      action: "Delete",
    });
    if (!isSure) return;
    let deleted = 0;
    try {
      for await (const some of this.client.delete(conversation, messages, forEveryone)) deleted += some;
      if (this.conversation === conversation) this.#endPicking();
      toast(`${count(deleted, "message")} deleted`);
    } catch (failure) {
      toast(`${deleted ? `Only ${count(deleted, "message")} deleted` : "Nothing was deleted"}: ${failure.message}`, { isError: true });
    }
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
    const known = client.age === null ? "It is not known how old what you see is." : `You see what was known ${duration(client.age)} ago.`;
    const sending = "What you send waits here, and goes out by itself.";
    const words = { connecting: `Reconnecting… ${sending}`, minority: `The cluster has no majority at the moment. ${known} ${sending}`, offline: `No node can be reached. ${known} ${sending}` };
    const text = isQuiet ? "" : words[status];
    const banner = $("banner");
    banner.hidden = isQuiet;
    // The age ticks for the eye only: a screen reader hears of changes of the state.
    $("banner-text").textContent = text;
    if (banner.dataset.status !== (isQuiet ? "" : status)) {
      banner.dataset.status = isQuiet ? "" : status;
      announce(isQuiet ? "Connected again" : text);
    }
  }
}
