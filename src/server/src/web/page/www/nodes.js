// @ts-check
// The known nodes, and the one that the page uses.
//
// The page's own node is known. The others are learned from it, and kept for times when it is down. When the current
// node fails, all are asked for the leader at once, and the first that knows one becomes the current node. `state` is
// one of:
// - "online": the current node knows a leader. Everything works.
// - "minority": nodes answer, but none knows a leader. Data can be read, but not changed.
// - "offline": no node answers.
// `looking` is set while a new node is being chosen. While the state is not "online", all nodes are asked again at
// growing intervals, without a limit.
//
// Does not cover: retries (retry.js), and the health of the nodes (watch.js).

import { Failure, call } from "./api.js";
import { Events } from "./dom.js";
import { keep } from "./storage.js";

/** Timeout of a node for naming the leader. It doubles when a round times out. On a slow path, connecting takes most of
 * it. */
const ANSWER_MS = 1500;
const ANSWER_MS_MAX = 12_000;
/** The longest latency that extends the timeouts of calls. */
const WAY_MS_MAX = 4000;
const PAUSE_MS = [200, 400, 800, 1500, 3000];
const NOBODY = { headers: {}, cookies: false };
/** The storage key of the nodes, and their maximum number. */
const KEPT = "nodes";
const NODES_MAX = 64;
const LOOPBACK = ["localhost", "127.0.0.1", "[::1]"];

/** @typedef {{ webAddress: string, name: string }} KeptNode */

/** The origin of a node that advertises `address`, for a page at the location `here`. Loopback names are one host.
 * @param {string | undefined} address @param {{ protocol: string, hostname: string }} here */
export function baseOf(address, here) {
  if (!address) return null;
  let url;
  try {
    url = new URL(`${here.protocol}//${address}`);
  } catch {
    return null;
  }
  if (LOOPBACK.includes(url.hostname) && LOOPBACK.includes(here.hostname)) url.hostname = here.hostname;
  return url.origin;
}

/** @param {string} base */
const isNear = (base) => new URL(base).hostname === location.hostname;

/** @extends {Events<{ moved: void, change: void }>} */
export class Nodes extends Events {
  /** @type {Map<string, string>} */
  #names = new Map();
  /** @type {Promise<void> | null} */
  #choosing = null;
  #misses = 0;
  #again = 0;
  #answerMs = ANSWER_MS;
  #wayMs = 0;

  constructor() {
    super();
    this.own = location.origin;
    this.current = this.own;
    /** @type {"online" | "minority" | "offline"} */
    this.state = "online";
    this.looking = false;
    this.all = [this.own];
    // The page may be a kept one whose node is down.
    this.#know(keep.get(KEPT) ?? []);
    /** Whether the session is limited to the page's own host (session.js). */
    this.isBound = false;
    addEventListener("online", () => this.state !== "online" && this.choose());
  }

  /** Extra time for an answer over a slow path, for connecting and for the call. */
  get extraMs() {
    return 2 * this.#wayMs;
  }

  /** @param {string} base */
  nameOf(base) {
    return this.#names.get(base) ?? new URL(base).host;
  }

  /** Nodes that a cookie of this page reaches. */
  get near() {
    return this.all.filter(isNear);
  }

  /** Nodes that it does not reach. */
  get elsewhere() {
    return this.all.filter((base) => !isNear(base));
  }

  /** Takes an answer of ListNodes. The page's own address stays, because it may be that of a load balancer.
   * @param {Api.Cluster} answer */
  learn(answer) {
    const listed = (answer.nodes ?? []).slice(0, NODES_MAX);
    const nodes = listed.map(({ webAddress = "", name = "" }) => ({ webAddress, name }));
    this.#know(nodes);
    const isNews = JSON.stringify(nodes) !== JSON.stringify(keep.get(KEPT));
    if (nodes.length && isNews) keep.set(KEPT, nodes);
  }

  /** @param {KeptNode[]} nodes */
  #know(nodes) {
    this.#names = new Map();
    for (const { webAddress, name } of nodes) {
      const base = baseOf(webAddress, location);
      if (base) this.#names.set(base, name);
    }
    this.all = [...new Set([this.own, ...this.#names.keys()])];
  }

  /** Reports that a node failed. Resolves once a better one is the current node, or if there is none.
   * @param {string} base @param {Failure} failure */
  async failed(base, failure) {
    // Another one has been chosen, or is being chosen.
    if (base !== this.current) return this.#choosing;
    // Leaving an overloaded node would only move the load.
    if (["OVERLOADED", "RATE_LIMITED"].includes(failure.reason)) return;
    // A node that reports NO_LEADER can be asked again. One that fails otherwise might still name a leader, so it is
    // avoided.
    await this.choose(failure.reason === "NO_LEADER" ? null : base);
  }

  /** Resolves when the state is "online".
   * @returns {Promise<void>} */
  online() {
    if (this.state === "online" && !this.looking) return Promise.resolve();
    return new Promise((resolve) => {
      const off = this.on("change", () => {
        if (this.state !== "online" || this.looking) return;
        off();
        resolve();
      });
    });
  }

  /** Asks all nodes and chooses one. It is the one to `avoid` only if there is no other. Concurrent calls share one
   * round.
   * @param {string | null} avoid */
  choose(avoid = null) {
    this.#choosing ??= this.#choose(avoid).finally(() => {
      this.#choosing = null;
    });
    return this.#choosing;
  }

  /** @param {string | null} avoid */
  async #choose(avoid) {
    this.#change({ looking: true });
    /** @type {Set<string>} */
    const answered = new Set();
    const bases = this.isBound ? this.near : this.all;
    const leaderKnown = new Map(bases.map((base) => [base, this.#knowsLeader(base, answered)]));
    const last = leaderKnown.get(avoid ?? "");
    leaderKnown.delete(avoid ?? "");
    // Its answer counts only if no other node has a better one.
    last?.catch(() => {});
    const began = performance.now();
    const best = await Promise.any(leaderKnown.values()).catch(() => last ?? null).catch(() => null);
    this.#misses = best ? 0 : this.#misses + 1;
    const tookMs = performance.now() - began;
    if (best) this.#wayMs = Math.min(tookMs, WAY_MS_MAX);
    if (best) this.#answerMs = ANSWER_MS + this.extraMs;
    else if (tookMs >= this.#answerMs) this.#answerMs = Math.min(2 * this.#answerMs, ANSWER_MS_MAX);
    if (best) {
      this.#change({ state: "online", current: best, looking: false });
      return;
    }
    const current = answered.has(this.current) ? this.current : ([...answered][0] ?? this.current);
    this.#change({ state: answered.size ? "minority" : "offline", current, looking: false });
    clearTimeout(this.#again);
    this.#again = setTimeout(() => this.choose(), PAUSE_MS[Math.min(this.#misses, PAUSE_MS.length) - 1]);
  }

  /** Resolves to the node if it knows a leader. One without a leader is added to `answered`, because it can still be
   * read.
   * @param {string} base @param {Set<string>} answered */
  async #knowsLeader(base, answered) {
    try {
      await call(base, "ClusterService/GetLeader", {}, NOBODY, this.#answerMs);
      return base;
    } catch (failure) {
      if (failure instanceof Failure && failure.reason === "NO_LEADER") answered.add(base);
      throw failure;
    }
  }

  /** @param {Partial<Pick<Nodes, "state" | "current" | "looking">>} to */
  #change({ state = this.state, current = this.current, looking = this.looking }) {
    const moved = current !== this.current;
    const news = moved || state !== this.state || looking !== this.looking;
    Object.assign(this, { state, current, looking });
    if (moved) this.emit("moved");
    if (news) this.emit("change");
  }
}
