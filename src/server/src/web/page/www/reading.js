// @ts-check
// What the user has seen of the open conversation: the read receipts, the mark of new messages, and the button that
// leads to the newest one.
//
// A message counts as read once it is on the screen while the page has the focus.
//
// Does not cover: sending the receipts (receipts.js).

import { $ } from "./dom.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */

export class Reading {
  #client;
  #list;
  /** Messages that arrived below the visible part. */
  #missed = 0;
  /** The seq before the first new message.
   * @type {number | null} */
  marker = null;

  /** @param {import("./client.js").Client} client
   * @param {import("./list.js").List<import("./messages.js").Row>} list */
  constructor(client, list) {
    this.#client = client;
    this.#list = list;
  }

  get #isLooking() {
    return !document.hidden && document.hasFocus();
  }

  /** Forgets the conversation. */
  end() {
    this.marker = null;
    this.#missed = 0;
  }

  /** Puts the mark before the first unread message, if there is one.
   * @param {Conversation} conversation */
  mark(conversation) {
    if (conversation.unread > 0) this.marker = conversation.readBy(this.#client.me);
  }

  /** Notes an incoming message. Returns whether the user is looking at it.
   * @param {import("./store.js").Arrival} arrival */
  arrived({ conversation, message }) {
    const isLooking = this.#isLooking;
    if (!isLooking || !this.#list.atEnd) this.#missed += 1;
    // Everything before it is read, so it is the first new message.
    if (!isLooking && conversation.unread <= 1) this.marker = message.seq - 1;
    return isLooking;
  }

  /** Notes the visible part of the conversation.
   * @param {Conversation} conversation */
  scrolled(conversation) {
    const { rows, visible: [first, last], isNearEnd } = this.#list;
    // Uses the position, because a list that follows its end may not have reached it yet.
    if (isNearEnd) this.#missed = 0;
    $("jump").hidden = isNearEnd;
    $("jump-count").textContent = this.#missed ? String(this.#missed) : "";
    if (!this.#isLooking) return;
    let upTo = isNearEnd ? (conversation.messages.at(-1)?.seq ?? 0) : 0;
    for (const row of rows.slice(first, last + 1)) {
      if (row.kind === "message" && row.message.seq !== Infinity) upTo = Math.max(upTo, row.message.seq);
    }
    if (conversation.id && upTo > conversation.readBy(this.#client.me) && conversation.unread > 0) {
      this.#client.sync.receipts.read(conversation, upTo);
    }
  }
}
