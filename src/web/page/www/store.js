// The account's conversations, as far as the page knows them. Sends no requests.
//
// The input is pages (of the list, of a conversation), stream events, and answers to sent messages. They may overlap
// and arrive in any order. Invariants:
// - A message exists once, at the position of its seq.
// - A deleted message stays deleted, even if an older answer still has it.
// - Watermarks (delivered, read) only grow.
// - There are no gaps: `messages` has everything from `floor` on. Before it is `loaded`, it may come from a lagging
//   node. It is then only shown, and replaced by the first page that is not older than the position of the stream.
// - `base` is the revision of a conversation's counters. An event that is not newer is not counted again. An event that
//   is not exact (an older message deleted, read on another device) makes the conversation "stale", so that it is read
//   again. An answer from before `changedAt` lacks such an event, and does not count.
// 64-bit numbers are strings in JSON. Revisions and seqs are far below 2^53 and become numbers here. Ids stay strings.

import { Events } from "./dom.js";

const number = (text) => Number(text ?? 0);

function messageOf(json) {
  return {
    id: json.messageId,
    seq: number(json.seq),
    sender: json.sender,
    body: json.body ?? "",
    time: number(json.timeMs),
    deleted: json.deleted ?? false,
    clientId: json.clientMessageId ?? "",
  };
}

class Conversation {
  constructor(name) {
    Object.assign(this, { name, id: null, deleted: false, lastSeq: 0, unread: 0, last: null, base: 0 });
    /** The watermarks of each member, by name. */
    this.members = new Map();
    /** The loaded messages, by seq. */
    this.messages = [];
    this.loaded = false;
    /** Whether it is on screen, and so not trimmed. */
    this.isOpen = false;
    this.floor = 0;
    this.hasOlder = false;
    /** Messages that arrive while the first page is in flight. */
    this.early = null;
    /** Deletions while this page is open, for this account, for everyone, and with the accounts of senders. */
    this.hidden = new Set();
    this.tombstones = new Set();
    this.gone = new Set();
    this.stale = false;
    this.changedAt = 0;
  }

  find(seq) {
    let [low, high] = [0, this.messages.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.messages[middle].seq < seq) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Inserts a message in its place. Known deletions persist. */
  put(message) {
    if (this.hidden.has(message.seq)) return;
    this.settle(message);
    const place = this.find(message.seq);
    const there = this.messages[place];
    if (there?.seq !== message.seq) this.messages.splice(place, 0, message);
    else if (!there.deleted) this.messages[place] = { ...message, clientId: message.clientId || there.clientId };
  }

  /** Applies known deletions to a message. */
  settle(message) {
    if (this.tombstones.has(message.seq) || this.gone.has(message.sender)) Object.assign(message, { deleted: true, body: "" });
    return message;
  }

  /** Applies known deletions to all messages. */
  settleAll() {
    for (const message of this.messages) this.settle(message);
    if (this.last && this.hidden.has(this.last.seq)) this.last = this.messages.at(-1) ?? null;
    if (this.last) this.settle(this.last);
  }

  /** Adds a message that is not part of a page. It would leave a gap unless all before it is loaded, or there is
   * none. */
  join(message) {
    if (this.loaded) this.put(message);
    else if (message.seq === 1 && this.lastSeq <= 1) {
      this.put(message);
      Object.assign(this, { loaded: true, floor: 1 });
    } else this.early?.push(message);
  }

  /** Notes a change that older answers lack. */
  changedAs(revision) {
    this.changedAt = Math.max(this.changedAt, revision);
  }

  /** Whether an answer of this revision has everything that is known here. */
  isNews(revision) {
    return revision >= Math.max(this.base, this.changedAt);
  }

  /** Notes a message, which may be the newest. */
  raise(message) {
    this.lastSeq = Math.max(this.lastSeq, message.seq);
    if (message.seq >= (this.last?.seq ?? 0) && !this.hidden.has(message.seq)) this.last = this.settle(message);
  }

  /** Drops messages that can be loaded again. */
  trim(keep = 200) {
    if (this.isOpen || this.messages.length <= 2 * keep) return;
    this.messages.splice(0, this.messages.length - keep);
    Object.assign(this, { hasOlder: true, floor: this.messages[0].seq });
  }

  watermark(name, delivered, read) {
    const member = this.members.get(name) ?? { delivered: 0, read: 0 };
    this.members.set(name, { delivered: Math.max(member.delivered, delivered, read), read: Math.max(member.read, read) });
  }

  readBy(name) {
    return this.members.get(name)?.read ?? 0;
  }

  /** The state of one of the account's own messages: "saved", "delivered" or "read" by all others. */
  reached(message, me) {
    const others = [...this.members].filter(([name]) => name !== me).map(([, member]) => member);
    if (others.length && others.every((member) => member.read >= message.seq)) return "read";
    return others.length && others.every((member) => member.delivered >= message.seq) ? "delivered" : "saved";
  }
}

export class Store extends Events {
  #byName = new Map();
  #byId = new Map();

  constructor(me) {
    super();
    this.me = me;
  }

  /** All conversations with messages, newest first. */
  get list() {
    const there = [...this.#byName.values()].filter((conversation) => conversation.lastSeq > 0);
    return there.sort((a, b) => (b.last?.time ?? 0) - (a.last?.time ?? 0) || b.base - a.base);
  }

  get unread() {
    return this.list.reduce((sum, conversation) => sum + conversation.unread, 0);
  }

  get(name) {
    return this.#byName.get(name) ?? null;
  }

  /** The conversation with a person, which is created if there is none yet. */
  with(name) {
    let conversation = this.#byName.get(name);
    if (!conversation) {
      conversation = new Conversation(name);
      this.#byName.set(name, conversation);
    }
    return conversation;
  }

  #identify(conversation, id) {
    if (!id || id === "0") return;
    conversation.id = id;
    this.#byId.set(id, conversation);
  }

  /** Applies a row of the list as of `revision`. */
  row(json, revision) {
    const conversation = this.with(json.username);
    this.#identify(conversation, json.conversationId);
    // Permanent, even if an older answer differs.
    conversation.deleted ||= json.deleted ?? false;
    this.#counters(conversation, json, revision);
    if (json.lastMessage) conversation.raise(messageOf(json.lastMessage));
    this.#changed(conversation);
  }

  /** Applies a page of a conversation. `before` is the seq that limits it, or 0 for the newest page. `since` is the
   * position of the stream at the request. Messages that an older answer lacks would never arrive. Returns false if the
   * page is unusable for that reason. */
  page(conversation, json, before, since = 0) {
    this.#identify(conversation, json.conversationId);
    const revision = number(json.header?.revision);
    const messages = (json.messages ?? []).map(messageOf);
    // The conversation may have been trimmed since the request.
    if (before && before !== conversation.floor) return true;
    if (revision < since && before) return false;
    if (!conversation.loaded) conversation.messages = [];
    if (revision < since) return this.#preview(conversation, json, messages);
    for (const message of [...messages, ...(conversation.early ?? [])]) conversation.put(message);
    if (before || !conversation.loaded) {
      conversation.floor = messages.at(-1)?.seq ?? before;
      conversation.hasOlder = json.hasMore ?? false;
    }
    conversation.early = null;
    conversation.loaded = true;
    if (!before) this.#newest(conversation, json, messages, revision);
    this.#changed(conversation);
    return true;
  }

  #preview(conversation, json, messages) {
    conversation.early = null;
    if (conversation.loaded) return true;
    for (const message of messages) conversation.put(message);
    this.#watermarks(conversation, json);
    this.#changed(conversation);
    return true;
  }

  #watermarks(conversation, json) {
    for (const member of json.members ?? []) conversation.watermark(member.username, number(member.deliveredSeq), number(member.readSeq));
  }

  /** Corrects the counters of a conversation with its newest page. Its messages stay as they are. */
  refresh(conversation, json) {
    const revision = number(json.header?.revision);
    if (conversation.isNews(revision)) conversation.stale = false;
    this.#newest(conversation, json, (json.messages ?? []).map(messageOf), revision);
    this.#changed(conversation);
  }

  #newest(conversation, json, messages, revision) {
    for (const member of json.members ?? []) if (member.username === conversation.name) conversation.deleted ||= member.deleted ?? false;
    const isNews = conversation.isNews(revision);
    this.#counters(conversation, json, revision);
    if (isNews) conversation.last = messages[0] ?? null;
    conversation.settleAll();
  }

  #counters(conversation, json, revision) {
    this.#watermarks(conversation, json);
    if (!conversation.isNews(revision)) return;
    conversation.base = revision;
    conversation.lastSeq = Math.max(conversation.lastSeq, number(json.lastSeq));
    // Another device may have read more since.
    conversation.unread = conversation.readBy(this.me) >= conversation.lastSeq ? 0 : number(json.unreadCount);
  }

  /** Applies a stream event. Emits "arrived" for a message from another person. */
  apply(event) {
    if (event.message) this.#arrived(event.message, event.revision);
    else if (event.receipt) this.#receipt(event.receipt, event.revision);
    else if (event.deletion) this.#deletion(event.deletion, event.revision);
    else if (event.accountDeleted) this.#accountDeleted(event.accountDeleted, event.revision);
  }

  #arrived({ message: json, members }, revision) {
    const message = messageOf(json);
    const name = members.find((member) => member !== this.me) ?? this.me;
    const conversation = this.#byId.get(json.conversationId) ?? this.with(name);
    const isNew = conversation.lastSeq === 0 && message.seq > 1;
    this.#identify(conversation, json.conversationId);
    for (const member of members) conversation.watermark(member, 0, 0);
    conversation.join(message);
    if (message.sender === this.me) this.emit("confirmed", message.clientId);
    const isOfOther = message.sender !== this.me && !message.deleted;
    conversation.raise(message);
    if (revision > conversation.base) {
      conversation.base = revision;
      if (isOfOther && message.seq > conversation.readBy(this.me)) conversation.unread += 1;
      // The messages before it are unknown.
      if (isNew) this.#stale(conversation, revision);
    }
    conversation.trim();
    if (isOfOther) this.emit("arrived", { conversation, message });
    this.#changed(conversation);
  }

  #receipt(json, revision) {
    const conversation = this.#byId.get(json.conversationId);
    if (!conversation) return;
    const before = conversation.readBy(this.me);
    conversation.watermark(json.member, number(json.deliveredSeq), number(json.readSeq));
    const read = conversation.readBy(this.me);
    if (read > before && revision > conversation.base) {
      conversation.changedAs(revision);
      if (read >= conversation.lastSeq) conversation.unread = 0;
      else this.#stale(conversation, revision);
    }
    this.#changed(conversation);
  }

  #deletion(json, revision) {
    const conversation = this.#byId.get(json.conversationId);
    if (conversation) this.delete(conversation, json.seqs.map(number), json.forEveryone ?? false, revision);
  }

  #accountDeleted(json, revision) {
    const conversation = this.#byId.get(json.conversationId);
    if (!conversation) return;
    if (json.member === conversation.name) conversation.deleted = true;
    conversation.gone.add(json.member);
    conversation.settleAll();
    this.#stale(conversation, revision);
    this.#changed(conversation);
  }

  /** Deletes messages as of `revision`. They become tombstones for everyone, or vanish for this account. */
  delete(conversation, seqs, forEveryone, revision) {
    for (const seq of seqs) (forEveryone ? conversation.tombstones : conversation.hidden).add(seq);
    if (!forEveryone) conversation.messages = conversation.messages.filter((message) => !conversation.hidden.has(message.seq));
    conversation.settleAll();
    this.#stale(conversation, revision);
    this.#changed(conversation);
  }

  /** Applies the answer to a sent message. The stream may deliver the message later. */
  sent(conversation, json, body, clientId) {
    this.#identify(conversation, json.conversationId);
    const message = messageOf({ ...json, sender: this.me, body, clientMessageId: clientId });
    // A message stored long ago may have changed, so its conversation is read again.
    if (json.repeated && message.seq <= (conversation.last?.seq ?? 0)) this.#stale(conversation, number(json.revision));
    else {
      conversation.join(message);
      conversation.raise(message);
      conversation.watermark(this.me, 0, 0);
    }
    this.#changed(conversation);
  }

  /** The account has read up to here, so the list must not draw attention to it any more. */
  read(conversation, seq) {
    conversation.watermark(this.me, seq, seq);
    if (seq >= conversation.lastSeq) conversation.unread = 0;
    this.#changed(conversation);
  }

  /** Applies the answer to MarkRead. Its count is slightly newer than its revision, and may include messages that the
   * stream has yet to deliver. */
  marked(conversation, json) {
    const revision = number(json.revision);
    conversation.changedAs(revision);
    // Everything known was read, and new messages are counted on arrival.
    if (conversation.readBy(this.me) >= conversation.lastSeq) return;
    if (number(json.unreadCount) > 0 || !conversation.isNews(revision)) return this.#stale(conversation, revision);
    conversation.base = revision;
    conversation.unread = 0;
    this.#changed(conversation);
  }

  #stale(conversation, revision) {
    conversation.stale = true;
    conversation.changedAs(revision);
    this.emit("stale", conversation);
  }

  #changed(conversation) {
    this.emit("change", conversation);
  }
}
