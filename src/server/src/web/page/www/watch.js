// @ts-check
// Polls the state of the cluster, more often while its panel is open.
//
// Does not cover: the choice of the node (nodes.js), and the panel (cluster.js).

import { Events } from "./dom.js";
import { every, pause } from "./retry.js";

const LOOK_MS = 30_000;
const OPEN_MS = 2000;

/** @extends {Events<{ change: void }>} */
export class Watch extends Events {
  #calls;
  #stopping = new AbortController();
  /** Identifies the current `open`. A newer one ends it.
   * @type {object | null} */
  #open = null;

  /** @param {import("./retry.js").Calls} calls */
  constructor(calls) {
    super();
    this.#calls = calls;
    /** The last answer.
     * @type {Api.Cluster | null} */
    this.cluster = null;
  }

  start() {
    every(LOOK_MS, async () => document.hidden || this.look(), this.#stopping.signal);
  }

  stop() {
    this.#stopping.abort();
  }

  async look() {
    const { nodes } = this.#calls;
    const answer = await this.#calls.make("ClusterService/ListNodes", {}, 4000).catch(() => null);
    if (this.#stopping.signal.aborted) return;
    if (answer) {
      this.cluster = answer;
      nodes.learn(answer);
      // A node that cannot reach a leader may be cut off, although its stream is open.
      if (nodes.state === "online" && answer.failuresTolerated === undefined) nodes.choose();
    }
    this.emit("change");
  }

  /** Whether the panel is open. */
  get isOpen() {
    return this.#open !== null;
  }

  /** Polls more often until `close`. */
  async open() {
    const open = {};
    this.#open = open;
    while (this.#open === open && !this.#stopping.signal.aborted) {
      await this.look();
      await pause(OPEN_MS);
    }
  }

  close() {
    this.#open = null;
  }
}
