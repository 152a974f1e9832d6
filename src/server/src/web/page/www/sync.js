// @ts-check
// Keeps an account's conversations in step with the cluster. Owns the store, the stream and the receipts.
//
// The list is read first, and the stream starts after the revision of that read. So no event is missed in between, and
// messages in the list count as delivered. If the stream cannot resume, all of this is done again with an empty store.
//
// Does not cover: sending messages (outbox.js), and merging what arrives (store.js).

import { Failure } from "./api.js";
import { Events } from "./dom.js";
import { Feed } from "./feed.js";
import { Receipts } from "./receipts.js";
import { every, pause } from "./retry.js";
import { Store } from "./store.js";

const ROWS = 100;
const NEWEST = 50;
const NEWEST_MAX = 200;
const OLDER = 100;
const DELETE_MAX = 1000;
/** How often the age of the shown data is polled while it grows. */
const AGE_MS = 3000;

/**
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./conversation.js").Message} Message
 * @typedef {import("./store.js").Arrival} Arrival
 */

/** "ready" and "anew": the beginning of the list is there, for the first time or again.
 * @typedef {{ ready: void, anew: void, change: Conversation, arrived: Arrival, confirmed: string, age: void,
 *   trouble: Failure }} SyncEvents */

/** @extends {Events<SyncEvents>} */
export class Sync extends Events {
  #calls;
  #me;
  #stopping = new AbortController();
  /** @type {Set<Conversation>} */
  #refreshing = new Set();
  /** @type {Map<Conversation, Promise<void>>} */
  #loading = new Map();
  /** Resolves when the start revision of the stream is known.
   * @type {Promise<void> | null} */
  #listed = null;

  /** @param {import("./retry.js").Calls} calls @param {string} me */
  constructor(calls, me) {
    super();
    this.#calls = calls;
    this.#me = me;
    this.feed = new Feed(calls);
    this.store = this.#newStore();
    this.receipts = new Receipts(calls, this.store);
    this.ready = false;
    /** Whether the stream is stopped, because the tab is hidden. */
    this.isAsleep = false;
    /** When the shown data was last known to be complete, or `null` if unknown.
     * @type {number | null} */
    this.knownAt = Date.now();
    this.feed.on("event", (event) => {
      if (calls.nodes.state === "online") this.knownAt = Date.now();
      this.store.apply(event);
    });
    this.feed.on("lost", () => this.#load());
    this.feed.on("refused", (failure) => this.emit("trouble", failure));
  }

  get #isOver() {
    return this.#stopping.signal.aborted;
  }

  #newStore() {
    const store = new Store(this.#me);
    store.on("stale", (conversation) => this.#refresh(conversation));
    store.on("confirmed", (clientId) => this.emit("confirmed", clientId));
    store.on("arrived", (arrival) => {
      this.receipts.delivered(arrival.conversation, arrival.message.seq);
      this.emit("arrived", arrival);
    });
    store.on("change", (conversation) => this.emit("change", conversation));
    return store;
  }

  /** Resolves when the list is loaded. */
  async start() {
    const isAging = () => this.ready && this.#calls.nodes.state === "minority";
    every(AGE_MS, async () => isAging() && this.#askAge(), this.#stopping.signal);
    await this.#load();
  }

  stop() {
    this.#stopping.abort();
    this.feed.end();
    this.receipts.stop();
  }

  sleep() {
    this.isAsleep = true;
    this.feed.stop();
  }

  wake() {
    if (this.isAsleep) this.feed.start();
    this.isAsleep = false;
  }

  /** Starts the stream, unless it has to be stopped. */
  resume() {
    if (this.ready && !this.isAsleep && !this.#isOver) this.feed.start();
  }

  async #askAge() {
    const oldest = { pageSize: 1, consistency: { local: true } };
    const answer = await this.#calls.chat("ListChatPartners", oldest).catch(() => null);
    const age = answer?.header?.ageMs;
    // The stream may have delivered more than this node has.
    if (age !== undefined) this.knownAt = Math.max(this.knownAt ?? 0, Date.now() - Number(age));
    this.emit("age");
  }

  /** Reads the list and starts the stream after its revision. */
  async #load() {
    this.feed.stop();
    const isFirst = !this.ready;
    if (!isFirst) {
      this.receipts.stop();
      this.store = this.#newStore();
      this.receipts = new Receipts(this.#calls, this.store);
    }
    const { store } = this;
    let listed = () => {};
    this.#listed = new Promise((resolve) => { listed = resolve; });
    const page = await this.#readRows(store);
    if (!page) return;
    const age = page.header?.ageMs;
    if (this.#calls.nodes.state !== "online") this.knownAt = age === undefined ? null : Date.now() - Number(age);
    this.ready = true;
    this.feed.revision = Number(page.header?.revision ?? 0);
    listed();
    this.resume();
    this.emit(isFirst ? "ready" : "anew");
    let token = page.nextPageToken;
    while (token) token = (await this.#readRows(store, token))?.nextPageToken;
  }

  /** Reads a page of the list. `null` if it is no longer needed.
   * @param {Store} store @param {string} [pageToken] */
  async #readRows(store, pageToken) {
    const rows = { pageSize: ROWS, pageToken };
    const page = await this.#persist(store, () => this.#calls.read("ListChatPartners", rows));
    for (const row of page?.partners ?? []) {
      store.row(row, Number(page?.header?.revision ?? 0));
      this.#acknowledge(store.with(row.username));
    }
    return page;
  }

  /** Messages in a page or the list count as delivered.
   * @param {Conversation} conversation */
  #acknowledge(conversation) {
    const { id, lastSeq, members } = conversation;
    const mine = members.get(this.#me);
    if (id && mine && mine.delivered < lastSeq) this.receipts.delivered(conversation, lastSeq);
  }

  /** Retries until there is an answer. `null` if the session has ended, or this or the store is out of use.
   * @template T @param {Store} store @param {() => Promise<T>} work @returns {Promise<T | null>} */
  async #persist(store, work) {
    const isDone = () => this.#isOver || store !== this.store;
    for (let misses = 0; ; misses += 1) {
      try {
        const answer = await work();
        return isDone() ? null : answer;
      } catch (failure) {
        if (!(failure instanceof Failure)) throw failure;
        if (failure.loggedOut || isDone()) return null;
        if (!failure.passing) this.emit("trouble", failure);
        await pause(failure.passing ? Math.max(failure.retryMs, 1000) : Math.min(1000 * 2 ** misses, 30_000));
        if (isDone()) return null;
      }
    }
  }

  /** Reads the counters of a conversation until they are exact again.
   * @param {Conversation} conversation */
  async #refresh(conversation) {
    if (!conversation.id || this.#refreshing.has(conversation)) return;
    this.#refreshing.add(conversation);
    const { store } = this;
    const newest = { conversationId: conversation.id, limit: 1 };
    try {
      while (conversation.stale && !this.#isOver && store === this.store) {
        await pause(100);
        const answer = await this.#persist(store, () => this.#calls.read("ReadConversation", newest));
        if (answer) store.refresh(conversation, answer);
        if (conversation.stale) await Promise.all([pause(900), this.#calls.nodes.online()]);
      }
    } finally {
      this.#refreshing.delete(conversation);
    }
  }

  /** Loads the newest page of a conversation unless it is loaded, or the next older one. One load runs at a time.
   * @param {Conversation} conversation @returns {Promise<void>} */
  load(conversation, older = false) {
    if (older ? !conversation.hasOlder : conversation.loaded) return Promise.resolve();
    const running = this.#loading.get(conversation);
    if (running) return running;
    const work = this.#loadPage(conversation, older).finally(() => this.#loading.delete(conversation));
    this.#loading.set(conversation, work);
    return work;
  }

  /** @param {Conversation} conversation @param {boolean} older */
  async #loadPage(conversation, older) {
    const { store } = this;
    // Messages between the page and the start of the stream would never arrive.
    await this.#listed;
    if (store !== this.store) return;
    const since = this.feed.revision;
    const before = older ? conversation.floor : 0;
    // Includes all unread messages, up to the maximum.
    const limit = older ? OLDER : Math.min(Math.max(NEWEST, conversation.unread + 10), NEWEST_MAX);
    if (!older) conversation.early = [];
    const page = { partner: conversation.name, limit, beforeSeq: String(before) };
    let answer;
    try {
      answer = await this.#calls.read("ReadConversation", page);
    } catch (failure) {
      conversation.early = null;
      throw failure;
    }
    if (store !== this.store) return;
    if (!store.page(conversation, answer, before, since)) {
      throw new Failure({ code: "unavailable", message: "This server is behind the others." });
    }
    this.#acknowledge(conversation);
  }

  /** Deletes messages in batches. Yields the number of deleted ones after each.
   * @param {Conversation} conversation @param {Pick<Message, "id" | "seq">[]} messages @param {boolean} forEveryone */
  async *delete(conversation, messages, forEveryone) {
    for (let start = 0; start < messages.length; start += DELETE_MAX) {
      const some = messages.slice(start, start + DELETE_MAX);
      const messageIds = some.map((message) => message.id);
      const answer = await this.#calls.chat("DeleteMessages", { messageIds, forEveryone });
      const seqs = some.map((message) => message.seq);
      this.store.delete(conversation, seqs, forEveryone, Number(answer.revision ?? 0));
      yield answer.deletedCount ?? 0;
    }
  }
}
