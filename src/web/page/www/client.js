// Everything between a logged-in account and the cluster. Owns the loaded data, the stream and the outgoing messages.
// Views use its methods and read `store`, `outbox` and `status`. Of them, only account.js calls a node itself (with
// `calls`).
//
// The list is read first, and the stream starts after the revision of that read. So no event is missed in between, and
// messages in the list count as delivered.

import { Failure } from "./api.js";
import { Calls, pause } from "./retry.js";
import { Events } from "./dom.js";
import { Feed } from "./feed.js";
import { keep } from "./storage.js";
import { Outbox } from "./outbox.js";
import { Receipts } from "./receipts.js";
import { Store } from "./store.js";
import { Tabs } from "./tabs.js";
import { distance } from "./text.js";

const ROWS = 100;
const NEWEST = 50;
const NEWEST_MAX = 200;
const OLDER = 100;
const DELETE_MAX = 1000;
/** Limits of a search: people shown, accounts per call, and calls. */
const FOUND = 20;
const FOUND_ROWS = 100;
const SEARCH_PAGES_MAX = 5;
/** How often the cluster is polled, and how often while its panel is open. */
const LOOK_MS = 30_000;
const WATCH_MS = 2000;
/** How often the age of the shown data is polled while it grows. */
const AGE_MS = 3000;

export class Client extends Events {
  #over = false;
  #leaving = false;
  #timers = new Set();
  #refreshing = new Set();
  #loading = new Map();
  /** Resolves when the start revision of the stream is known. */
  #listed = null;

  constructor(nodes, session, onLoggedOut) {
    super();
    Object.assign(this, { nodes, session, me: session.name });
    // Fixed, because the next account to log in must not send this account's messages.
    const credentials = session.credentials();
    this.calls = new Calls(nodes, () => credentials, (failure) => this.#over || this.#leaving || onLoggedOut(failure));
    this.feed = new Feed(this.calls);
    this.outbox = new Outbox(this.calls, this.me);
    /** The last answer of ListNodes. */
    this.cluster = null;
    this.watched = null;
    /** When the shown data was last known to be complete, or `null` if unknown. */
    this.knownAt = Date.now();
    this.ready = false;
    this.#newStore();
    this.isAsleep = false;
    this.feed.on("event", (event) => this.#onEvent(event));
    this.feed.on("lost", () => this.#load());
    this.feed.on("refused", (failure) => this.emit("trouble", failure));
    this.feed.on("change", () => this.#onStatus());
    this.outbox.on("saved", ({ entry, answer }) => this.store.sent(this.store.with(entry.to), answer, entry.body, entry.id));
    this.offNodes = nodes.on("change", () => this.#onStatus());
  }

  #newStore() {
    this.receipts?.stop();
    this.store = new Store(this.me);
    this.receipts = new Receipts(this.calls, this.store);
    this.store.on("stale", (conversation) => this.#refresh(conversation));
    this.store.on("confirmed", (clientId) => this.outbox.done(clientId));
    this.store.on("arrived", (arrival) => {
      this.receipts.delivered(arrival.conversation, arrival.message.seq);
      this.emit("arrived", arrival);
    });
    this.store.on("change", (conversation) => this.emit("change", conversation));
  }

  /** Resolves when the list is loaded. */
  async start() {
    this.#every(LOOK_MS, () => !document.hidden && this.look());
    this.#every(AGE_MS, () => this.ready && this.nodes.state === "minority" && this.#askAge());
    await this.#load();
  }

  /** Whether the account has left. If so, nothing may be kept for it. */
  get isOver() {
    return this.#over;
  }

  #sleep() {
    this.isAsleep = true;
    this.feed.stop();
  }

  #wake() {
    if (this.isAsleep) this.feed.start();
    this.isAsleep = false;
  }

  stop() {
    this.#over = true;
    this.tabs?.stop();
    this.calls.stop();
    this.feed.end();
    this.outbox.stop();
    this.receipts.stop();
    this.offNodes();
    for (const timer of this.#timers) clearTimeout(timer);
  }

  #every(delay, work) {
    const again = () => {
      const timer = setTimeout(async () => {
        this.#timers.delete(timer);
        await work();
        if (!this.#over) again();
      }, delay);
      this.#timers.add(timer);
    };
    again();
  }

  /** The state of the connection: "online", "connecting", "minority" or "offline". */
  get status() {
    if (this.nodes.state !== "online") return this.nodes.state;
    return this.feed.open && !this.nodes.looking ? "online" : "connecting";
  }

  /** The maximum age of the shown data in ms, or `null` if unknown. */
  get age() {
    if (this.status === "online") return 0;
    return this.knownAt === null ? null : Date.now() - this.knownAt;
  }

  /** The conversations to list, newest first, including those whose first message is still unsent. */
  get list() {
    const waiting = this.outbox.names.map((name) => this.store.with(name)).filter((conversation) => conversation.lastSeq === 0);
    return [...waiting, ...this.store.list];
  }

  #onStatus() {
    if (this.status === "online") this.outbox.adopt();
    this.emit("status");
  }

  async #askAge() {
    const answer = await this.calls.chat("ListChatPartners", { pageSize: 1, consistency: { local: true } }).catch(() => null);
    // The stream may have delivered more than this node has.
    if (answer?.header?.ageMs !== undefined) this.knownAt = Math.max(this.knownAt ?? 0, Date.now() - Number(answer.header.ageMs));
    this.emit("status");
  }

  #onEvent(event) {
    if (this.nodes.state === "online") this.knownAt = Date.now();
    this.store.apply(event);
  }

  /** Reads the list and starts the stream after its revision. */
  async #load() {
    this.feed.stop();
    const first = this.ready;
    if (first) this.#newStore();
    const { store } = this;
    let listed;
    this.#listed = new Promise((resolve) => { listed = resolve; });
    const page = await this.#persist(store, () => this.calls.read("ListChatPartners", { pageSize: ROWS }));
    if (!page) return;
    this.#rows(page);
    const age = page.header?.ageMs;
    if (this.nodes.state !== "online") this.knownAt = age === undefined ? null : Date.now() - Number(age);
    this.ready = true;
    this.feed.revision = Number(page.header?.revision ?? 0);
    listed();
    if (!this.isAsleep) this.feed.start();
    this.tabs ??= new Tabs(this.me, () => this.#sleep(), () => this.#wake());
    this.outbox.adopt();
    this.emit(first ? "anew" : "ready");
    this.look();
    for (let token = page.nextPageToken; token; ) {
      const next = await this.#persist(store, () => this.calls.read("ListChatPartners", { pageSize: ROWS, pageToken: token }));
      if (!next) return;
      this.#rows(next);
      token = next.nextPageToken;
    }
  }

  #rows(page) {
    for (const row of page.partners ?? []) {
      this.store.row(row, Number(page.header?.revision ?? 0));
      this.#acknowledge(this.store.with(row.username));
    }
  }

  /** Messages in a page or the list count as delivered. */
  #acknowledge(conversation) {
    const mine = conversation.members.get(this.me);
    if (conversation.id && mine && mine.delivered < conversation.lastSeq) this.receipts.delivered(conversation, conversation.lastSeq);
  }

  /** Retries until there is an answer. `null` if the session has ended, or the client or the store is out of use. */
  async #persist(store, work) {
    for (let misses = 0; ; misses += 1) {
      try {
        const answer = await work();
        return this.#over || store !== this.store ? null : answer;
      } catch (failure) {
        if (!(failure instanceof Failure)) throw failure;
        const isDone = () => this.#over || store !== this.store;
        if (failure.loggedOut || isDone()) return null;
        if (!failure.passing) this.emit("trouble", failure);
        await pause(failure.passing ? Math.max(failure.retryMs, 1000) : Math.min(1000 * 2 ** misses, 30_000));
        if (isDone()) return null;
      }
    }
  }

  async #refresh(conversation) {
    if (!conversation.id || this.#refreshing.has(conversation)) return;
    this.#refreshing.add(conversation);
    const { store } = this;
    try {
      while (conversation.stale && !this.#over && store === this.store) {
        await pause(100);
        const answer = await this.#persist(store, () => this.calls.read("ReadConversation", { conversationId: conversation.id, limit: 1 }));
        if (answer) store.refresh(conversation, answer);
        if (conversation.stale) await Promise.all([pause(900), this.nodes.online()]);
      }
    } finally {
      this.#refreshing.delete(conversation);
    }
  }

  /** Loads the newest page of a conversation unless it is loaded, or the next older one. One load runs at a time. */
  load(conversation, older = false) {
    if (older ? !conversation.hasOlder : conversation.loaded) return Promise.resolve();
    const running = this.#loading.get(conversation);
    if (running) return running;
    const work = this.#loadPage(conversation, older).finally(() => this.#loading.delete(conversation));
    this.#loading.set(conversation, work);
    return work;
  }

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
    let answer;
    try {
      answer = await this.calls.read("ReadConversation", { partner: conversation.name, limit, beforeSeq: String(before) });
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

  /** Deletes messages in batches. Yields the number of deleted ones after each. */
  async *delete(conversation, messages, forEveryone) {
    for (let start = 0; start < messages.length; start += DELETE_MAX) {
      const some = messages.slice(start, start + DELETE_MAX);
      const answer = await this.calls.chat("DeleteMessages", { messageIds: some.map((message) => message.id), forEveryone });
      this.store.delete(conversation, some.map((message) => message.seq), forEveryone, Number(answer.revision ?? 0));
      yield answer.deletedCount ?? 0;
    }
  }

  /** Finds people whose names contain `query`, and whether there are more. */
  async search(query) {
    const people = [];
    let pageToken = "";
    // The answers include deleted accounts. There may be many.
    for (let pages = 0; pages < SEARCH_PAGES_MAX && people.length < FOUND && (pages === 0 || pageToken); pages += 1) {
      const answer = await this.calls.read("ListAccounts", { query, pageSize: FOUND_ROWS, pageToken });
      people.push(...(answer.accounts ?? []).filter((account) => !account.deleted));
      pageToken = answer.nextPageToken ?? "";
    }
    people.sort((a, b) => distance(a.username, query) - distance(b.username, query));
    return { people: people.slice(0, FOUND), hasMore: pageToken !== "" || people.length > FOUND };
  }

  /** Updates the state of the cluster. */
  async look() {
    const answer = await this.calls.make("ClusterService/ListNodes", {}, 4000).catch(() => null);
    if (this.#over) return;
    if (answer) {
      this.cluster = answer;
      this.nodes.learn(answer);
      // A node that cannot reach a leader may be cut off, although its stream is open.
      if (this.nodes.state === "online" && answer.failuresTolerated === undefined) this.nodes.choose();
    }
    this.emit("cluster");
  }

  /** Polls the cluster until `unwatch`. */
  async watch() {
    const watch = {};
    this.watched = watch;
    while (this.watched === watch && !this.#over) {
      await this.look();
      await pause(WATCH_MS);
    }
  }

  unwatch() {
    this.watched = null;
  }

  async logOut(everywhere) {
    await this.#leave("Logout", { allSessions: everywhere });
  }

  async deleteAccount(password) {
    await this.#leave("DeleteAccount", { password });
  }

  async #leave(method, message) {
    this.#leaving = true;
    try {
      await this.calls.chat(method, message);
    } catch (failure) {
      // A retry finds no session if an earlier attempt succeeded. If the first attempt finds none, nothing was deleted.
      if (!failure.loggedOut || (method === "DeleteAccount" && failure.isOfFirstTry)) {
        // The stream may have stopped at the end of the session, which is not reported during a logout.
        if (this.ready && !this.isAsleep && !this.#over) this.feed.start();
        throw failure;
      }
    } finally {
      this.#leaving = false;
    }
    this.forget();
  }

  /** Where this account's unsent messages and drafts are kept. */
  get #unsent() {
    return [`outbox/${this.me}/`, `draft/${this.me}/`];
  }

  /** Whether the browser keeps them after the page is closed. */
  get isKept() {
    return !this.#unsent.some(keep.isFleeting);
  }

  /** Counts the unsent messages and the drafts of all tabs. */
  countUnsent() {
    this.outbox.adopt();
    return this.#unsent.map((prefix) => keep.keys(prefix).length);
  }

  /** Stops, and removes unsent messages and drafts. */
  forget() {
    this.stop();
    for (const prefix of this.#unsent) keep.clear(prefix);
  }
}
