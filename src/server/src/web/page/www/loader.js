// @ts-check
// The loads of a conversation while it is open: what is in flight, and what has failed.
//
// Does not cover: the calls (sync.js), and what is shown of this (chat.js).

/** @typedef {import("./api.js").Failure} Failure */

export class Loader {
  #sync;
  #loadsOlder = false;
  isLoading = false;
  /** Whether the newest page is shown, and not only what was there before it arrived. */
  isSettled = false;
  /** Whether the shown messages come from a lagging node. */
  isPreview = false;
  /** Whether the last load of the newest page failed in a way that does not pass by itself. */
  isHopeless = false;
  /** Whether the account does not exist. */
  isUnknown = false;
  /** Whether the last load of an older page failed. The next one is made only on request. */
  failedOlder = false;

  /** @param {import("./sync.js").Sync} sync @param {import("./conversation.js").Conversation} conversation */
  constructor(sync, conversation) {
    this.#sync = sync;
    this.conversation = conversation;
  }

  /** Loads the newest page. Resolves to the reason if that fails. */
  async newest() {
    this.isLoading = true;
    try {
      await this.#sync.load(this.conversation);
      this.isHopeless = false;
      this.isUnknown = false;
      this.isPreview = !this.conversation.loaded;
      this.isSettled = this.conversation.loaded;
      return null;
    } catch (cause) {
      const failure = /** @type {Failure} */ (cause);
      this.isHopeless = !failure.passing;
      this.isUnknown = failure.reason === "USER_UNKNOWN";
      return failure;
    } finally {
      this.isLoading = false;
    }
  }

  /** Loads the next older page. Resolves to the reason if that fails. */
  async older() {
    if (this.#loadsOlder) return null;
    this.#loadsOlder = true;
    this.failedOlder = false;
    try {
      await this.#sync.load(this.conversation, true);
      return null;
    } catch (cause) {
      this.failedOlder = true;
      return /** @type {Failure} */ (cause);
    } finally {
      this.#loadsOlder = false;
    }
  }
}
