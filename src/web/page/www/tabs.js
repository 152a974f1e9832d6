// Which tab of an account keeps its stream open while none is looked at.
//
// Without TLS a browser opens six connections to a node, for all tabs together, and a stream takes one for good. So a tab that has been hidden for
// a while gives its stream up, unless it was the last to be looked at: that one goes on, and tells of what comes. A tab that is
// looked at again goes on where it stopped.

const PREFIX = "quorum-chat/tab/";
const HIDDEN_MS = 30_000;

export class Tabs {
  #key;
  #id = String(Math.random());
  #timer = 0;
  #stopping = new AbortController();

  /** `sleep` and `wake` are called as it is time to. */
  constructor(account, sleep, wake) {
    Object.assign(this, { sleep, wake });
    this.#key = PREFIX + account;
    const on = (target, event, action) => target.addEventListener(event, action, { signal: this.#stopping.signal });
    on(document, "visibilitychange", () => this.#look());
    on(window, "storage", (event) => event.key === this.#key && this.#settle());
    // The others have to know that nobody tells of messages any more.
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
      // Nobody can be told apart: every tab is the last.
      return this.#id;
    }
  }

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

  /** What another tab claims is not claimed back: two windows that are both looked at would go on so for ever. */
  #settle() {
    clearTimeout(this.#timer);
    if (!this.#last) this.#claim(this.#id);
    if (!document.hidden || this.#last === this.#id) this.wake();
    else this.#timer = setTimeout(this.sleep, HIDDEN_MS);
  }
}
