// Which nodes there are, and which one the page talks to.
//
// The page's own node is known; the others are learned from it, and kept for the time when it is down. When the current
// one fails, all are asked at once who leads, and the first that knows becomes the current one. `state` is what the
// page may hope for:
// - "online": the current node knows a leader. Everything works.
// - "minority": nodes answer, and none knows a leader: what is there can be read, nothing can be changed.
// - "offline": no node answers.
// While a new node is looked for, `looking` is set. Nothing here ever gives up: as long as the state is not
// "online", all nodes are asked again, at growing distances.

import { Failure, call } from "./api.js";
import { Events } from "./dom.js";
import { keep } from "./keep.js";

/** How long a node has to say who leads; twice as long each time that none did. Where the way is long, connecting takes most of it. */
const ANSWER_MS = 1500;
const ANSWER_MS_MAX = 12_000;
/** The longest way that calls are given more time for. */
const WAY_MS_MAX = 4000;
const PAUSE_MS = [200, 400, 800, 1500, 3000];
const NOBODY = { headers: {}, cookies: false };
/** Where the browser keeps them, and how many at most. */
const KEPT = "nodes";
const NODES_MAX = 64;
const LOOPBACK = ["localhost", "127.0.0.1", "[::1]"];

/** Where a page of `here` (a location) finds a node that advertises `address`: the names of the own machine are one. */
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

const isNear = (base) => new URL(base).hostname === location.hostname;

export class Nodes extends Events {
  #names = new Map();
  #choosing = null;
  #misses = 0;
  #again = 0;
  #answerMs = ANSWER_MS;
  #wayMs = 0;

  constructor() {
    super();
    this.own = location.origin;
    this.current = this.own;
    this.state = "online";
    this.looking = false;
    this.all = [this.own];
    // The page may be one that was kept, and its node down.
    this.#know(keep.get(KEPT) ?? []);
    /** The session is only known on the page's own host (session.js). */
    this.isBound = false;
    addEventListener("online", () => this.state !== "online" && this.choose());
  }

  /** How much longer an answer may take because the way is long: connecting, and the call. */
  get extraMs() {
    return 2 * this.#wayMs;
  }

  nameOf(base) {
    return this.#names.get(base) ?? new URL(base).host;
  }

  /** Nodes that a cookie of this page reaches. */
  get near() {
    return this.all.filter(isNear);
  }

  /** Those that it does not. */
  get elsewhere() {
    return this.all.filter((base) => !isNear(base));
  }

  /** What ListNodes answered. The page's own address stays, whatever it leads to: it may be that of a load balancer. */
  learn(answer) {
    const listed = (answer.nodes ?? []).slice(0, NODES_MAX);
    const nodes = listed.map(({ webAddress = "", name = "" }) => ({ webAddress, name }));
    this.#know(nodes);
    const isNews = JSON.stringify(nodes) !== JSON.stringify(keep.get(KEPT));
    if (nodes.length && isNews) keep.set(KEPT, nodes);
  }

  #know(nodes) {
    const bases = nodes.map((node) => [baseOf(node.webAddress, location), node.name]).filter(([base]) => base);
    this.#names = new Map(bases);
    this.all = [...new Set([this.own, ...this.#names.keys()])];
  }

  /** Says that a node failed, with what. Resolves when the current one is a better one, or when there is none. */
  async failed(base, failure) {
    // Another one has been chosen, or is being.
    if (base !== this.current) return this.#choosing;
    // Too much to do is not a reason to go away, and would only move the load.
    if (failure instanceof Failure && ["OVERLOADED", "RATE_LIMITED"].includes(failure.reason)) return;
    // One that does not lead knows why; one that fails otherwise would say that all is well.
    await this.choose(failure.reason === "NO_LEADER" ? null : base);
  }

  /** Resolves when all is well. */
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

  /** Asks all nodes, and settles on one; on the one to `avoid` only when there is no other. However often it is called, they are asked
   * once at a time. */
  choose(avoid = null) {
    this.#choosing ??= this.#choose(avoid).finally(() => {
      this.#choosing = null;
    });
    return this.#choosing;
  }

  async #choose(avoid) {
    this.#change({ looking: true });
    const answered = new Set();
    const bases = this.isBound ? this.near : this.all;
    const leaderKnown = new Map(bases.map((base) => [base, this.#knowsLeader(base, answered)]));
    const last = leaderKnown.get(avoid);
    leaderKnown.delete(avoid);
    // It is only asked what it said when nobody else has a better answer.
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

  /** Resolves to the node if it knows a leader. One that answers, and knows none, is `answered`: it can still tell what it has. */
  async #knowsLeader(base, answered) {
    try {
      await call(base, "ClusterService/GetLeader", {}, NOBODY, this.#answerMs);
      return base;
    } catch (failure) {
      if (failure.reason === "NO_LEADER") answered.add(base);
      throw failure;
    }
  }

  #change(to) {
    const moved = to.current !== undefined && to.current !== this.current;
    const news = Object.entries(to).some(([key, value]) => this[key] !== value);
    Object.assign(this, to);
    if (moved) this.emit("moved");
    if (news) this.emit("change");
  }
}
