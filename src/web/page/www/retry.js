// Calls with retries and failover between nodes.
//
// Every call of the API can be repeated (see the protocol files; calls that create something carry an id). A call that
// fails for a temporary reason is retried on the best node at that time, until `patienceMs` is over.

import { Failure, call } from "./api.js";

const TRY_MS = 4000;

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Calls {
  /** `credentials()` identifies the caller for each attempt. `onLoggedOut` is called if the session has ended. */
  constructor(nodes, credentials, onLoggedOut = () => {}) {
    Object.assign(this, { nodes, credentials, onLoggedOut });
  }

  /** Stops retries, because the caller is gone. */
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
        // On a retry, an earlier attempt may have ended the session.
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

  /** Reads the newest data. The read is linearizable with a quorum, and local to a node without one. */
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
