// @ts-check
// Messages that are not confirmed as saved.
//
// A message gets its id here. The browser keeps it until a node answers that it is saved, or never will be. So it
// survives the death of nodes, of the page and of the browser. A retry uses the same id, so the message is stored once.
// Messages to one person are sent one at a time, in the order in which they were written.
//
// Does not cover: drafts (composer.js), and messages that are saved (store.js).

import { Failure } from "./api.js";
import { pause } from "./retry.js";
import { Events } from "./dom.js";
import { keep } from "./storage.js";
import { bytesOf, uuid7 } from "./text.js";

/** Browsers let a page keep about 5 MB, and drafts need some of that. */
export const WAITING_BYTES_MAX = 2_000_000;
const PAUSE_MS = [300, 600, 1200, 2500, 5000];
/** The cluster remembers a refusal with these codes, and repeats it for the same id forever. */
const REFUSED = ["not_found", "failed_precondition"];

/** What is kept of a message.
 * @typedef {{ id: string, to: string, body: string, time: number }} Kept */
/** A message that waits, and why a node has refused it.
 * @typedef {Kept & { problem: Failure | null }} Entry */

/** "change" has the name of the recipient.
 * @extends {Events<{ change: string, saved: { entry: Entry, answer: Api.Sent } }>} */
export class Outbox extends Events {
  #calls;
  #prefix;
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  /** @type {Set<string>} */
  #busy = new Set();
  #stopping = new AbortController();
  #lastTime = 0;

  /** @param {import("./retry.js").Calls} calls @param {string} account */
  constructor(calls, account) {
    super();
    this.#calls = calls;
    this.#prefix = `outbox/${account}/`;
    // Another tab has discarded a refused message, or sent it in another way. Both tabs send waiting ones, and the
    // stream confirms them to both.
    keep.onRemoved((key) => {
      const id = key.slice(this.#prefix.length);
      if (key.startsWith(this.#prefix) && this.#entries.get(id)?.problem) this.done(id);
    }, this.#stopping.signal);
  }

  get #over() {
    return this.#stopping.signal.aborted;
  }

  /** Whether the browser keeps unsent messages after the page is closed. */
  get isKept() {
    return !keep.isFleeting(this.#prefix);
  }

  /** Takes over messages of an earlier page or of a closed tab. */
  adopt() {
    for (const key of keep.keys(this.#prefix)) {
      /** @type {Kept | null} */
      const entry = keep.get(key);
      if (!entry || this.#entries.has(entry.id)) continue;
      this.#lastTime = Math.max(this.#lastTime, entry.time);
      this.#entries.set(entry.id, { ...entry, problem: null });
      this.emit("change", entry.to);
    }
    for (const name of this.names) this.#pump(name);
  }

  /** Messages to a person, oldest first.
   * @param {string} name */
  to(name) {
    const entries = [...this.#entries.values()].filter((entry) => entry.to === name);
    return entries.sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  /** The recipients. */
  get names() {
    return [...new Set([...this.#entries.values()].map((entry) => entry.to))];
  }

  /** Returns false if too much is waiting already.
   * @param {string} to @param {string} body */
  send(to, body) {
    const waiting = [...this.#entries.values()].reduce((sum, entry) => sum + bytesOf(entry.body), 0);
    if (waiting + bytesOf(body) > WAITING_BYTES_MAX) return false;
    this.#add(to, body);
    return true;
  }

  /** @param {string} to @param {string} body */
  #add(to, body) {
    // Keeps the order of writing, whatever happens to the clock.
    const time = Math.max(Date.now(), this.#lastTime + 1);
    this.#lastTime = time;
    const entry = { id: uuid7(time), to, body, time };
    keep.set(this.#prefix + entry.id, entry);
    this.#entries.set(entry.id, { ...entry, problem: null });
    this.emit("change", to);
    this.#pump(to);
  }

  /** Stores all messages again, because something else may have removed them. */
  keepAll() {
    for (const { id, to, body, time } of this.#entries.values()) keep.set(this.#prefix + id, { id, to, body, time });
  }

  /** Retries a message that a node refused.
   * @param {string} id */
  retry(id) {
    const entry = this.#entries.get(id);
    if (!entry) return;
    if (REFUSED.includes(entry.problem?.code ?? "") || entry.problem?.reason === "QUOTA_EXCEEDED") {
      this.done(id);
      this.#add(entry.to, entry.body);
      return;
    }
    entry.problem = null;
    this.emit("change", entry.to);
    this.#pump(entry.to);
  }

  /** Removes a message that is saved or no longer wanted.
   * @param {string} id */
  done(id) {
    const entry = this.#entries.get(id);
    keep.remove(this.#prefix + id);
    if (!entry) return;
    this.#entries.delete(id);
    this.emit("change", entry.to);
  }

  /** Stops sending. Unsent messages are kept. */
  stop() {
    this.#stopping.abort();
  }

  /** @param {string} name */
  async #pump(name) {
    if (this.#busy.has(name)) return;
    this.#busy.add(name);
    try {
      await this.#sendAll(name);
    } finally {
      this.#busy.delete(name);
    }
  }

  /** @param {string} name */
  async #sendAll(name) {
    for (let misses = 0; !this.#over; ) {
      const entry = this.to(name).find((waiting) => !waiting.problem);
      if (!entry) return;
      try {
        const message = { recipient: name, body: entry.body, clientMessageId: entry.id };
        const answer = await this.#calls.chat("SendMessage", message);
        misses = 0;
        if (!this.#over) this.emit("saved", { entry, answer });
        this.done(entry.id);
      } catch (failure) {
        if (!(failure instanceof Failure)) throw failure;
        if (failure.loggedOut || this.#over) return;
        if (failure.passing || failure.reason === "STORAGE_LOW") {
          const wait = pause(Math.max(failure.retryMs, PAUSE_MS[Math.min(misses, PAUSE_MS.length - 1)]));
          misses += 1;
          await Promise.all([wait, this.#calls.nodes.online()]);
        } else {
          entry.problem = failure;
          this.emit("change", name);
        }
      }
    }
  }
}
