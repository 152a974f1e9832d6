// @ts-check
// Chooses the tab of an account that keeps its stream open while all tabs are hidden.
//
// Without TLS, a browser opens six connections to a node for all tabs together, and each stream occupies one. So a tab
// that has been hidden for a while closes its stream, unless it was the last visible one. That tab continues to report
// new messages. A tab that becomes visible again resumes its stream.
//
// Does not cover: the stream (feed.js).

import { listening } from "./dom.js";

const PREFIX = "quorum-chat/tab/";
const HIDDEN_MS = 30_000;

export class Tabs {
  #key;
  #id = String(Math.random());
  #timer = 0;
  #stopping = new AbortController();

  /** `sleep` and `wake` stop and resume the stream.
   * @param {string} account @param {() => void} sleep @param {() => void} wake */
  constructor(account, sleep, wake) {
    this.sleep = sleep;
    this.wake = wake;
    this.#key = PREFIX + account;
    const on = listening(this.#stopping.signal);
    on(document, "visibilitychange", () => this.#look());
    on(window, "storage", (event) => event.key === this.#key && this.#settle());
    // Other tabs must know that none reports messages any more.
    on(window, "pagehide", () => this.#last === this.#id && this.#claim(null));
    on(window, "pageshow", () => this.#look());
    this.#look();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#stopping.abort();
  }

  get #last() {
    try {
      return localStorage.getItem(this.#key);
    } catch {
      // Tabs cannot be distinguished, so each is the last one.
      return this.#id;
    }
  }

  /** @param {string | null} id */
  #claim(id) {
    try {
      if (id === null) localStorage.removeItem(this.#key);
      else localStorage.setItem(this.#key, id);
    } catch {
      // See above.
    }
  }

  #look() {
    if (!document.hidden) this.#claim(this.#id);
    this.#settle();
  }

  /** Does not reclaim from another tab, because two visible windows would do that forever. */
  #settle() {
    clearTimeout(this.#timer);
    if (!this.#last) this.#claim(this.#id);
    if (!document.hidden || this.#last === this.#id) this.wake();
    else this.#timer = setTimeout(this.sleep, HIDDEN_MS);
  }
}
