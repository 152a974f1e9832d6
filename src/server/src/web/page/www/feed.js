// @ts-check
// The event stream, which survives the death of nodes.
//
// It is read from the current node and follows a change of node. `revision` is the last revision that was read. Each
// new stream starts after it, so no event is missed or repeated. If the cluster no longer has that revision, the stream
// cannot resume. Then "lost" is emitted, and the page must read everything again.
//
// Does not cover: the meaning of the events (store.js).

import { anyOf } from "./abort.js";
import { Failure, stream } from "./api.js";
import { pause } from "./retry.js";
import { Events } from "./dom.js";

/** Nodes send a heartbeat at least every 15 s. */
const SILENCE_MS = 22_000;
/** A stream that lasts this long resets the backoff. */
const STEADY_MS = 5000;
const PAUSE_MS = [0, 200, 500, 1000, 2000, 4000];

/** An event as the stream reports it. Its revision may be 0.
 * @typedef {Omit<Api.Event, "revision"> & { revision: number }} StreamEvent */

/** @extends {Events<{ event: StreamEvent, change: void, lost: Failure, refused: Failure }>} */
export class Feed extends Events {
  #calls;
  /** @type {AbortController | null} */
  #stop = null;
  /** @type {AbortController | null} */
  #moved = null;
  #offs;

  /** @param {import("./retry.js").Calls} calls */
  constructor(calls) {
    super();
    this.#calls = calls;
    this.revision = 0;
    this.open = false;
    this.heardAt = 0;
    const onVisible = () => {
      // A sleep of the machine kills the connection without an error.
      if (!document.hidden && this.#stop && Date.now() - this.heardAt > SILENCE_MS) this.#moved?.abort();
    };
    document.addEventListener("visibilitychange", onVisible);
    this.#offs = [
      calls.nodes.on("moved", () => this.#moved?.abort()),
      () => document.removeEventListener("visibilitychange", onVisible),
    ];
  }

  /** Resumes after `revision`. */
  start() {
    this.stop();
    this.#stop = new AbortController();
    this.#run(this.#stop.signal);
  }

  stop() {
    this.#stop?.abort();
    this.#stop = null;
    this.#set(false);
  }

  /** Stops permanently. */
  end() {
    this.stop();
    for (const off of this.#offs) off();
  }

  /** @param {AbortSignal} stop */
  async #run(stop) {
    const { nodes } = this.#calls;
    for (let misses = 0; !stop.aborted; misses += 1) {
      const start = Date.now();
      const node = nodes.current;
      const moved = new AbortController();
      this.#moved = moved;
      try {
        await this.#read(node, anyOf(stop, moved.signal));
      } catch (failure) {
        if (stop.aborted) return;
        this.#set(false);
        if (Date.now() - start > STEADY_MS) misses = 0;
        if (!(failure instanceof Failure)) throw failure;
        if (failure.loggedOut) return this.#calls.onLoggedOut(failure);
        if (failure.code === "out_of_range") return this.emit("lost", failure);
        // The user must see a failure that does not pass by itself.
        if (!failure.passing && failure.reason !== "SLOW_SUBSCRIBER") this.emit("refused", failure);
        // A slow reader is not the node's fault. If the node has too many streams, another one may have room.
        if (!moved.signal.aborted && failure.reason !== "SLOW_SUBSCRIBER") await nodes.failed(node, failure);
        await pause(Math.max(failure.retryMs, PAUSE_MS[Math.min(misses, PAUSE_MS.length - 1)]));
      } finally {
        // Removes the listener from `stop`, which outlives many streams.
        moved.abort();
      }
    }
  }

  /** @param {string} node @param {AbortSignal} stop */
  async #read(node, stop) {
    const credentials = this.#calls.credentials();
    const after = { afterRevision: String(this.revision) };
    for await (const event of stream(node, "ChatService/Subscribe", after, credentials, SILENCE_MS, stop)) {
      if (stop.aborted) return;
      this.heardAt = Date.now();
      this.#set(true);
      const revision = Number(event.revision ?? 0);
      this.emit("event", { ...event, revision });
      this.revision = Math.max(this.revision, revision);
    }
  }

  /** @param {boolean} open */
  #set(open) {
    if (this.open === open) return;
    this.open = open;
    this.emit("change");
  }
}
