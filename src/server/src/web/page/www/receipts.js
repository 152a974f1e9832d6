// @ts-check
// Sends delivery and read receipts until the cluster has acknowledged them.
//
// Both are watermarks, so only the highest of each conversation is kept, and a repeat changes nothing.
//
// Does not cover: receipts of others (store.js).

import { Failure } from "./api.js";
import { pause } from "./retry.js";

const GATHER_MS = 150;
const AGAIN_MS = 1000;
const AGAIN_MS_MAX = 60_000;
/** Limit of one call. */
const RECEIPTS_MAX = 1000;

/** @typedef {import("./conversation.js").Conversation} Conversation */

export class Receipts {
  #calls;
  #store;
  /** @type {Map<Conversation, number>} */
  #delivered = new Map();
  /** @type {Map<Conversation, number>} */
  #read = new Map();
  #running = false;
  #over = false;

  /** @param {import("./retry.js").Calls} calls @param {import("./store.js").Store} store */
  constructor(calls, store) {
    this.#calls = calls;
    this.#store = store;
  }

  /** @param {Conversation} conversation @param {number} seq */
  delivered(conversation, seq) {
    this.#delivered.set(conversation, Math.max(seq, this.#delivered.get(conversation) ?? 0));
    this.#run();
  }

  /** @param {Conversation} conversation @param {number} seq */
  read(conversation, seq) {
    this.#read.set(conversation, Math.max(seq, this.#read.get(conversation) ?? 0));
    // The account's own view changes at once.
    this.#store.read(conversation, seq);
    this.#run();
  }

  stop() {
    this.#over = true;
  }

  async #run() {
    if (this.#running) return;
    this.#running = true;
    try {
      await pause(GATHER_MS);
      await this.#tellAll();
    } finally {
      this.#running = false;
    }
  }

  async #tellAll() {
    for (let misses = 0; !this.#over && this.#delivered.size + this.#read.size; misses += 1) {
      try {
        await this.#tell();
        misses = 0;
      } catch (failure) {
        if (!(failure instanceof Failure)) throw failure;
        if (failure.loggedOut) return;
        const growing = Math.min(AGAIN_MS * 2 ** misses, AGAIN_MS_MAX);
        const wait = failure.passing ? Math.max(failure.retryMs, AGAIN_MS) : growing;
        await Promise.all([pause(wait), this.#calls.nodes.online()]);
      }
    }
  }

  async #tell() {
    for (const [conversation, seq] of this.#read) {
      try {
        const mark = { conversationId: conversation.id, upToSeq: String(seq) };
        const answer = await this.#calls.chat("MarkRead", mark);
        if (!this.#over) this.#store.marked(conversation, answer);
      } catch (failure) {
        // A refused mark belongs to a conversation that no longer exists.
        if (!(failure instanceof Failure) || failure.passing || failure.loggedOut) throw failure;
      }
      if (this.#read.get(conversation) === seq) this.#read.delete(conversation);
      // Read implies delivered.
      if ((this.#delivered.get(conversation) ?? 0) <= seq) this.#delivered.delete(conversation);
    }
    const some = [...this.#delivered].slice(0, RECEIPTS_MAX);
    if (!some.length) return;
    const receipts = some.map(([conversation, seq]) => ({ conversationId: conversation.id, upToSeq: String(seq) }));
    await this.#calls.chat("AcknowledgeDelivery", { receipts });
    for (const [conversation, seq] of some) {
      if (this.#delivered.get(conversation) === seq) this.#delivered.delete(conversation);
    }
  }
}
