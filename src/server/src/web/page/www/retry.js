// @ts-check
// Calls with retries and failover between nodes.
//
// Every call of the API can be repeated (see the protocol files; calls that create something carry an id). A call that
// fails for a temporary reason is retried on the best node at that time, until `patienceMs` is over.
//
// Does not cover: the choice of the node (nodes.js).

import { Failure, call } from "./api.js";

const TRY_MS = 4000;

/** @param {number} ms @returns {Promise<void>} */
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Repeats `work` until `signal` aborts, `ms` after the end of each run.
 * @param {number} ms @param {() => Promise<unknown>} work @param {AbortSignal} signal */
export async function every(ms, work, signal) {
  for (;;) {
    await pause(ms);
    if (signal.aborted) return;
    await work();
  }
}

/**
 * @typedef {import("./api.js").Credentials} Credentials
 * @typedef {import("./nodes.js").Nodes} Nodes
 */

export class Calls {
  #over = false;

  /** `credentials()` identifies the caller for each attempt. `onLoggedOut` is called if the session has ended.
   * @param {Nodes} nodes @param {() => Credentials} credentials @param {(failure: Failure) => void} onLoggedOut */
  constructor(nodes, credentials, onLoggedOut = () => {}) {
    this.nodes = nodes;
    this.credentials = credentials;
    this.onLoggedOut = onLoggedOut;
  }

  /** Stops retries, because the caller is gone. */
  stop() {
    this.#over = true;
  }

  /** Makes a call of any service. Throws a `Failure` if no attempt within `patienceMs` succeeds.
   * @template {keyof Api.AllAnswers} M @param {M} method @param {object} message
   * @returns {Promise<Api.AllAnswers[M]>} */
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
        if (!failure.passing || this.#over) throw failure;
        await this.nodes.failed(current, failure);
        const wait = Math.max(failure.retryMs, Math.min(100 * 2 ** tries, 1000));
        if (performance.now() + wait > deadline) throw failure;
        await pause(wait);
        if (this.#over) throw failure;
      }
    }
  }

  /** Makes a call of the ChatService.
   * @template {keyof Api.Answers} M @param {M} method @param {object} message @param {number} [patienceMs]
   * @returns {Promise<Api.AllAnswers[`ChatService/${M}`]>} */
  chat(method, message, patienceMs) {
    return this.make(`ChatService/${method}`, message, patienceMs);
  }

  /** Reads the newest data. The read is linearizable with a quorum, and local to a node without one.
   * @template {keyof Api.Answers} M @param {M} method @param {object} message
   * @returns {Promise<Api.AllAnswers[`ChatService/${M}`]>} */
  async read(method, message, patienceMs = 4000) {
    const isOnline = this.nodes.state === "online";
    if (isOnline) {
      try {
        return await this.chat(method, message, patienceMs);
      } catch (failure) {
        if (!(failure instanceof Failure) || !failure.passing || this.nodes.state === "offline") throw failure;
      }
    }
    return this.chat(method, { ...message, consistency: { local: true } }, patienceMs);
  }
}
