// @ts-check
// An account while it is logged in. Owns its parts (the data, the unsent messages, the state of the cluster), the state
// of the connection, and the end of the session.
//
// Views use the parts. Of the views, only account.js and people.js make calls of their own (with `calls`).

import { Failure } from "./api.js";
import { Events } from "./dom.js";
import { Outbox } from "./outbox.js";
import { Calls } from "./retry.js";
import { keep } from "./storage.js";
import { Sync } from "./sync.js";
import { Tabs } from "./tabs.js";
import { Watch } from "./watch.js";

/** @extends {Events<{ status: void, midnight: void }>} */
export class Client extends Events {
  #over = false;
  #leaving = false;
  /** @type {Tabs | null} */
  #tabs = null;
  #offNodes;

  /** @param {import("./nodes.js").Nodes} nodes @param {import("./session.js").Session} session
   * @param {() => void} onLoggedOut */
  constructor(nodes, session, onLoggedOut) {
    super();
    this.nodes = nodes;
    this.me = session.name ?? "";
    // Fixed, because the next account to log in must not send this account's messages.
    const credentials = session.credentials();
    this.calls = new Calls(nodes, () => credentials, () => this.#over || this.#leaving || onLoggedOut());
    this.sync = new Sync(this.calls, this.me);
    this.outbox = new Outbox(this.calls, this.me);
    this.watch = new Watch(this.calls);
    this.sync.on("ready", () => this.#onListed());
    this.sync.on("anew", () => this.#onListed());
    this.sync.on("confirmed", (clientId) => this.outbox.done(clientId));
    this.sync.on("age", () => this.emit("status"));
    this.sync.feed.on("change", () => this.#onStatus());
    this.outbox.on("saved", ({ entry: { to, body, id }, answer }) => {
      this.store.sent(this.store.with(to), answer, body, id);
    });
    this.#offNodes = nodes.on("change", () => this.#onStatus());
  }

  get store() {
    return this.sync.store;
  }

  start() {
    this.watch.start();
    this.sync.start();
  }

  #onListed() {
    this.#tabs ??= new Tabs(this.me, () => this.sync.sleep(), () => this.sync.wake());
    this.outbox.adopt();
    this.watch.look();
  }

  /** Whether the account has left. If so, nothing may be kept for it. */
  get isOver() {
    return this.#over;
  }

  stop() {
    this.#over = true;
    this.#tabs?.stop();
    this.calls.stop();
    this.sync.stop();
    this.outbox.stop();
    this.watch.stop();
    this.#offNodes();
  }

  /** The state of the connection. */
  get status() {
    if (this.nodes.state !== "online") return this.nodes.state;
    return this.sync.feed.open && !this.nodes.looking ? "online" : "connecting";
  }

  /** The maximum age of the shown data in ms, or `null` if unknown. */
  get age() {
    if (this.status === "online") return 0;
    const { knownAt } = this.sync;
    return knownAt === null ? null : Date.now() - knownAt;
  }

  #onStatus() {
    if (this.status === "online") this.outbox.adopt();
    this.emit("status");
  }

  /** The conversations to list, newest first, including those whose first message is still unsent. */
  get list() {
    const waiting = this.outbox.names.map((name) => this.store.with(name));
    return [...waiting.filter(({ lastSeq }) => lastSeq === 0), ...this.store.list];
  }

  /** @param {boolean} everywhere */
  async logOut(everywhere) {
    await this.#leave("Logout", { allSessions: everywhere });
  }

  /** @param {string} password */
  async deleteAccount(password) {
    await this.#leave("DeleteAccount", { password });
  }

  /** @param {"Logout" | "DeleteAccount"} method @param {object} message */
  async #leave(method, message) {
    this.#leaving = true;
    try {
      await this.calls.chat(method, message);
    } catch (failure) {
      // A retry finds no session if an earlier attempt succeeded. If the first attempt finds none, nothing was deleted.
      const isGone = failure instanceof Failure && failure.loggedOut;
      if (!isGone || (method === "DeleteAccount" && failure.isOfFirstTry)) {
        // The stream may have stopped at the end of the session, which is not reported during a logout.
        this.sync.resume();
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
