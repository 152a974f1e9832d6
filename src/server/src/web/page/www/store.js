// @ts-check
// The account's conversations (conversation.js), as far as the page knows them. Sends no requests.
//
// The input is pages (of the list, of a conversation), stream events, and answers to sent messages. They may overlap
// and arrive in any order. Invariants, in addition to those of a conversation:
// - An event that is not newer than `base` is not counted again.
// - An event that is not exact (an older message deleted, read on another device) makes the conversation "stale", so
//   that it is read again. An answer from before `changedAt` lacks such an event.
// 64-bit numbers are strings in JSON. Revisions and seqs are far below 2^53 and become numbers here. Ids stay strings.

import { Conversation, messageOf, number } from "./conversation.js";
import { Events } from "./dom.js";

/** @typedef {import("./conversation.js").Message} Message */
/** A message from another person.
 * @typedef {{ conversation: Conversation, message: Message }} Arrival */

/** "confirmed" has the client id of one of the account's own messages.
 * @extends {Events<{ change: Conversation, stale: Conversation, confirmed: string, arrived: Arrival }>} */
export class Store extends Events {
  /** @type {Map<string, Conversation>} */
  #byName = new Map();
  /** @type {Map<string, Conversation>} */
  #byId = new Map();

  /** @param {string} me The name of the account. */
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

  /** The conversation with a person, which is created if there is none yet.
   * @param {string} name */
  with(name) {
    let conversation = this.#byName.get(name);
    if (!conversation) {
      conversation = new Conversation(name);
      this.#byName.set(name, conversation);
    }
    return conversation;
  }

  /** @param {Conversation} conversation @param {string | undefined} id */
  #identify(conversation, id) {
    if (!id || id === "0") return;
    conversation.id = id;
    this.#byId.set(id, conversation);
  }

  /** Applies a row of the list as of `revision`.
   * @param {Api.Partner} json @param {number} revision */
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
   * page is unusable for that reason.
   * @param {Conversation} conversation @param {Api.Page} json @param {number} before */
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

  /** @param {Conversation} conversation @param {Api.Page} json @param {Message[]} messages */
  #preview(conversation, json, messages) {
    conversation.early = null;
    if (conversation.loaded) return true;
    for (const message of messages) conversation.put(message);
    this.#watermarks(conversation, json);
    this.#changed(conversation);
    return true;
  }

  /** @param {Conversation} conversation @param {Api.Counters} json */
  #watermarks(conversation, json) {
    for (const { username, deliveredSeq, readSeq } of json.members ?? []) {
      conversation.watermark(username, number(deliveredSeq), number(readSeq));
    }
  }

  /** Corrects the counters of a conversation with its newest page. Its messages stay as they are.
   * @param {Conversation} conversation @param {Api.Page} json */
  refresh(conversation, json) {
    const revision = number(json.header?.revision);
    if (conversation.isNews(revision)) conversation.stale = false;
    this.#newest(conversation, json, (json.messages ?? []).map(messageOf), revision);
    this.#changed(conversation);
  }

  /** @param {Conversation} conversation @param {Api.Page} json @param {Message[]} messages @param {number} revision */
  #newest(conversation, json, messages, revision) {
    const other = (json.members ?? []).find(({ username }) => username === conversation.name);
    conversation.deleted ||= other?.deleted ?? false;
    const isNews = conversation.isNews(revision);
    this.#counters(conversation, json, revision);
    if (isNews) conversation.last = messages[0] ?? null;
    conversation.settleAll();
  }

  /** @param {Conversation} conversation @param {Api.Counters} json @param {number} revision */
  #counters(conversation, json, revision) {
    this.#watermarks(conversation, json);
    if (!conversation.isNews(revision)) return;
    conversation.base = revision;
    conversation.lastSeq = Math.max(conversation.lastSeq, number(json.lastSeq));
    // Another device may have read more since.
    conversation.unread = conversation.readBy(this.me) >= conversation.lastSeq ? 0 : number(json.unreadCount);
  }

  /** Applies a stream event. Emits "arrived" for a message from another person.
   * @param {import("./feed.js").StreamEvent} event */
  apply(event) {
    if (event.message) this.#arrived(event.message, event.revision);
    else if (event.receipt) this.#receipt(event.receipt, event.revision);
    else if (event.deletion) this.#deletion(event.deletion, event.revision);
    else if (event.accountDeleted) this.#accountDeleted(event.accountDeleted, event.revision);
  }

  /** @param {{ message: Api.Message, members: string[] }} event @param {number} revision */
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

  /** @param {Api.Receipt} json @param {number} revision */
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

  /** @param {Api.Deletion} json @param {number} revision */
  #deletion({ conversationId, seqs, forEveryone = false }, revision) {
    const conversation = this.#byId.get(conversationId);
    if (conversation) this.delete(conversation, seqs.map(number), forEveryone, revision);
  }

  /** @param {Api.AccountDeleted} json @param {number} revision */
  #accountDeleted(json, revision) {
    const conversation = this.#byId.get(json.conversationId);
    if (!conversation) return;
    if (json.member === conversation.name) conversation.deleted = true;
    conversation.gone.add(json.member);
    conversation.settleAll();
    this.#stale(conversation, revision);
    this.#changed(conversation);
  }

  /** Deletes messages as of `revision`. They become tombstones for everyone, or vanish for this account.
   * @param {Conversation} conversation @param {number[]} seqs @param {boolean} forEveryone @param {number} revision */
  delete(conversation, seqs, forEveryone, revision) {
    for (const seq of seqs) (forEveryone ? conversation.tombstones : conversation.hidden).add(seq);
    if (!forEveryone) conversation.messages = conversation.messages.filter(({ seq }) => !conversation.hidden.has(seq));
    conversation.settleAll();
    this.#stale(conversation, revision);
    this.#changed(conversation);
  }

  /** Applies the answer to a sent message. The stream may deliver the message later.
   * @param {Conversation} conversation @param {Api.Sent} json @param {string} body @param {string} clientId */
  sent(conversation, json, body, clientId) {
    this.#identify(conversation, json.conversationId);
    const message = messageOf({ ...json, sender: this.me, body, clientMessageId: clientId });
    // A message stored long ago may have changed, so its conversation is read again.
    if (json.repeated && message.seq <= (conversation.last?.seq ?? 0)) {
      this.#stale(conversation, number(json.revision));
    } else {
      conversation.join(message);
      conversation.raise(message);
      conversation.watermark(this.me, 0, 0);
    }
    this.#changed(conversation);
  }

  /** The account has read up to here, so the list must not draw attention to it any more.
   * @param {Conversation} conversation @param {number} seq */
  read(conversation, seq) {
    conversation.watermark(this.me, seq, seq);
    if (seq >= conversation.lastSeq) conversation.unread = 0;
    this.#changed(conversation);
  }

  /** Applies the answer to MarkRead. Its count is slightly newer than its revision, and may include messages that the
   * stream has yet to deliver.
   * @param {Conversation} conversation @param {Api.Marked} json */
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

  /** @param {Conversation} conversation @param {number} revision */
  #stale(conversation, revision) {
    conversation.stale = true;
    conversation.changedAs(revision);
    this.emit("stale", conversation);
  }

  /** @param {Conversation} conversation */
  #changed(conversation) {
    this.emit("change", conversation);
  }
}
