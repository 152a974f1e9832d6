// The stream of events, over the deaths of nodes.
//
// It is read from the current node and moves with it. `revision` is how far it was read; each new stream begins after it, so that
// nothing is missed and nothing comes twice. When the cluster does not know that revision any more, there is no going on: "lost"
// is told, and the page has to read everything anew.

import { anyOf } from "./abort.js";
import { Failure, stream } from "./api.js";
import { pause } from "./calls.js";
import { Events } from "./dom.js";

/** The nodes say something at least every 15 s. */
const SILENCE_MS = 22_000;
/** A stream that lasted so long was a good one. */
const STEADY_MS = 5000;
const PAUSE_MS = [0, 200, 500, 1000, 2000, 4000];

export class Feed extends Events {
  #calls;
  #stop = null;
  #moved = null;
  #offs;

  constructor(calls) {
    super();
    this.#calls = calls;
    this.revision = 0;
    this.open = false;
    this.heardAt = 0;
    const onVisible = () => {
      // After a sleep of the machine the connection is dead, and nobody said so.
      if (!document.hidden && this.#stop && Date.now() - this.heardAt > SILENCE_MS) this.#moved?.abort();
    };
    document.addEventListener("visibilitychange", onVisible);
    this.#offs = [calls.nodes.on("moved", () => this.#moved?.abort()), () => document.removeEventListener("visibilitychange", onVisible)];
  }

  /** Reads on after `revision`. */
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

  /** Stops for good. */
  end() {
    this.stop();
    for (const off of this.#offs) off();
  }

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
        // Why it is not going to be better by itself, somebody has to be told.
        if (!failure.passing && failure.reason !== "SLOW_SUBSCRIBER") this.emit("refused", failure);
        // A stream that was too slow says nothing against the node. One too many does: others may have room.
        if (!moved.signal.aborted && failure.reason !== "SLOW_SUBSCRIBER") await nodes.failed(node, failure);
        await pause(Math.max(failure.retryMs, PAUSE_MS[Math.min(misses, PAUSE_MS.length - 1)]));
      } finally {
        // Nothing stays behind on `stop`, which outlives many streams.
        moved.abort();
      }
    }
  }

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

  #set(open) {
    if (this.open === open) return;
    this.open = open;
    this.emit("change");
  }
}
