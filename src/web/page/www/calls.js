// Calls that find a node by themselves.
//
// Every call of the API may be repeated (see the protocol files; those that make something carry an id), so one that fails for a
// passing reason is made again on whichever node is the best by then, until its patience ends.

import { Failure, call } from "./api.js";

const TRY_MS = 4000;

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Calls {
  /** `credentials` says who calls, at the time of each try. `onLoggedOut` is told when a session turns out to be over. */
  constructor(nodes, credentials, onLoggedOut = () => {}) {
    Object.assign(this, { nodes, credentials, onLoggedOut });
  }

  /** Makes no call again: whoever called is gone. */
  stop() {
    this.over = true;
  }

  async make(method, message, patienceMs = 8000) {
    const deadline = performance.now() + patienceMs + this.nodes.extraMs;
    for (let tries = 0; ; tries += 1) {
      const { current } = this.nodes;
      try {
        const tryMs = Math.min(TRY_MS + this.nodes.extraMs, Math.max(deadline - performance.now(), 100));
        return await call(current, method, message, this.credentials(), tryMs);
      } catch (failure) {
        if (!(failure instanceof Failure)) throw failure;
        // Else an earlier try may have been what ended the session.
        failure.isOfFirstTry = tries === 0;
        if (failure.loggedOut) this.onLoggedOut(failure);
        if (!failure.passing || this.over) throw failure;
        await this.nodes.failed(current, failure);
        const wait = Math.max(failure.retryMs, Math.min(100 * 2 ** tries, 1000));
        if (performance.now() + wait > deadline) throw failure;
        await pause(wait);
        if (this.over) throw failure;
      }
    }
  }

  chat(method, message, patienceMs) {
    return this.make(`ChatService/${method}`, message, patienceMs);
  }

  /** A read of the newest there is: with a majority, what everybody has; without one, what a node has. */
  async read(method, message, patienceMs = 4000) {
    if (this.nodes.state === "online") {
      try {
        return await this.chat(method, message, patienceMs);
      } catch (failure) {
        if (!failure.passing || this.nodes.state === "offline") throw failure;
      }
    }
    return this.chat(method, { ...message, consistency: { local: true } }, patienceMs);
  }
}
