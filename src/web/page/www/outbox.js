// Messages that are not known to be saved.
//
// A message gets its id here and is kept by the browser until a node has said that it is saved (or that it never will be): over the
// death of nodes, of the page and of the browser. It is sent again with the same id, so it is stored once. Messages to
// one person are sent one after the other, in the order in which they were written.

import { Failure } from "./api.js";
import { pause } from "./calls.js";
import { Events } from "./dom.js";
import { keep } from "./keep.js";
import { bytesOf, uuid7 } from "./text.js";

/** What browsers let a page keep is about 5 MB, and drafts need some of it. */
export const WAITING_BYTES_MAX = 2_000_000;
const PAUSE_MS = [300, 600, 1200, 2500, 5000];
/** The cluster remembers that it refused a message for such a reason, and answers the same to its id for ever. */
const REFUSED = ["not_found", "failed_precondition"];

export class Outbox extends Events {
  #calls;
  #prefix;
  #entries = new Map();
  #busy = new Set();
  #stopping = new AbortController();
  #lastTime = 0;

  constructor(calls, account) {
    super();
    this.#calls = calls;
    this.#prefix = `outbox/${account}/`;
    // What was refused, another tab has discarded, or sent in another way. What waits, both send, and the stream tells both.
    keep.onRemoved((key) => {
      const id = key.slice(this.#prefix.length);
      if (key.startsWith(this.#prefix) && this.#entries.get(id)?.problem) this.done(id);
    }, this.#stopping.signal);
  }

  get #over() {
    return this.#stopping.signal.aborted;
  }

  /** The browser keeps what waits, also when the page is closed. */
  get isKept() {
    return !keep.isFleeting(this.#prefix);
  }

  /** Takes over what was left by an earlier page, or by a tab that was closed. */
  adopt() {
    for (const key of keep.keys(this.#prefix)) {
      const entry = keep.get(key);
      if (!entry || this.#entries.has(entry.id)) continue;
      this.#lastTime = Math.max(this.#lastTime, entry.time);
      this.#entries.set(entry.id, { ...entry, problem: null });
      this.emit("change", entry.to);
    }
    for (const name of this.names) this.#pump(name);
  }

  /** Those to somebody, oldest first. */
  to(name) {
    return [...this.#entries.values()].filter((entry) => entry.to === name).sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  /** To whom. */
  get names() {
    return [...new Set([...this.#entries.values()].map((entry) => entry.to))];
  }

  /** False when too much is waiting already. */
  send(to, body) {
    const waiting = [...this.#entries.values()].reduce((sum, entry) => sum + bytesOf(entry.body), 0);
    if (waiting + bytesOf(body) > WAITING_BYTES_MAX) return false;
    this.#add(to, body);
    return true;
  }

  #add(to, body) {
    // In the order in which they were written, whatever is done to the clock.
    const time = Math.max(Date.now(), this.#lastTime + 1);
    this.#lastTime = time;
    const entry = { id: uuid7(time), to, body, time };
    keep.set(this.#prefix + entry.id, entry);
    this.#entries.set(entry.id, { ...entry, problem: null });
    this.emit("change", to);
    this.#pump(to);
  }

  /** Keeps what waits once more: something else may have removed it. */
  keepAll() {
    for (const { id, to, body, time } of this.#entries.values()) keep.set(this.#prefix + id, { id, to, body, time });
  }

  /** Tries one again that a node refused. */
  retry(id) {
    const entry = this.#entries.get(id);
    if (!entry) return;
    if (REFUSED.includes(entry.problem?.code) || entry.problem?.reason === "QUOTA_EXCEEDED") {
      this.done(id);
      this.#add(entry.to, entry.body);
      return;
    }
    entry.problem = null;
    this.emit("change", entry.to);
    this.#pump(entry.to);
  }

  /** It is saved, or not wanted any more. */
  done(id) {
    const entry = this.#entries.get(id);
    keep.remove(this.#prefix + id);
    if (!entry) return;
    this.#entries.delete(id);
    this.emit("change", entry.to);
  }

  /** Sends nothing more; what waits stays kept. */
  stop() {
    this.#stopping.abort();
  }

  async #pump(name) {
    if (this.#busy.has(name)) return;
    this.#busy.add(name);
    try {
      await this.#sendAll(name);
    } finally {
      this.#busy.delete(name);
    }
  }

  async #sendAll(name) {
    for (let misses = 0; !this.#over; ) {
      const entry = this.to(name).find((waiting) => !waiting.problem);
      if (!entry) return;
      try {
        const answer = await this.#calls.chat("SendMessage", { recipient: name, body: entry.body, clientMessageId: entry.id });
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
