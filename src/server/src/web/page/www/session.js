// @ts-check
// The logged-in account, and its credentials for calls.
//
// If cookies reach all nodes (on any port of the page's host, or behind one address), the token is in a cookie that no
// script can read. No cookie of this page reaches a node on another host, so the page could not continue there when its
// own node dies. If it can reach such nodes, it keeps the token itself. It also does that if the browser refuses
// cookies.
//
// Does not cover: the calls that end the session (client.js).

import { Failure, call, forgetCookie } from "./api.js";
import { Calls, pause } from "./retry.js";
import { keep, tab } from "./storage.js";
import { uuid7 } from "./text.js";

const PROBE_MS = 1500;
/** Time for another tab's note to arrive. */
const NOTE_MS = 1000;
/** @type {import("./api.js").Credentials} */
const NOBODY = { headers: {}, cookies: false };

/** What is kept of a login. The token is `null` if it is in a cookie.
 * @typedef {{ name: string, token: string | null, id: string }} Login */
/** What the tab that ends a session leaves for the others. `isGone` means that the account is deleted.
 * @typedef {{ notice: string, isGone?: boolean }} Note */

export class Session {
  #nodes;
  /** The last attempt to create an account.
   * @type {{ wish: string, requestId: string } | null} */
  #wish = null;
  /** @type {string | null} */
  #id = null;

  /** @param {import("./nodes.js").Nodes} nodes */
  constructor(nodes) {
    this.#nodes = nodes;
    /** @type {string | null} */
    this.name = null;
    /** @type {string | null} */
    this.token = null;
    // A tab keeps its account when another tab logs in to a different one.
    const name = tab.get("account") ?? keep.get("account");
    this.#take(name ? keep.get(`session/${name}`) : null);
  }

  /** @returns {import("./api.js").Credentials} */
  credentials() {
    if (!this.name) return NOBODY;
    if (this.token) return { headers: { Authorization: `Bearer ${this.token}` }, cookies: false };
    return { headers: { "Chat-Session": this.name }, cookies: true };
  }

  /** The rules for creating an account, as far as a node has them. */
  async registration() {
    return new Calls(this.#nodes, () => NOBODY).chat("GetRegistration", {});
  }

  /** Resolves when the account exists, also if an earlier attempt with the same password created it.
   * @param {string} username @param {string} password @param {string} invitation */
  async signUp(username, password, invitation) {
    const wish = JSON.stringify([username, password]);
    if (this.#wish?.wish !== wish) this.#wish = { wish, requestId: uuid7() };
    const { requestId } = this.#wish;
    const account = { username, password, requestId, invitation };
    await new Calls(this.#nodes, () => NOBODY).chat("CreateAccount", account, 15_000);
  }

  /** @param {string} username @param {string} password */
  async logIn(username, password) {
    /** @type {string | undefined} */
    let token;
    const isForCookie = navigator.cookieEnabled !== false && !(await this.#reachesOthers());
    if (!isForCookie || !(await this.#logInWithCookie(username, password))) {
      ({ token } = await new Calls(this.#nodes, () => NOBODY).chat("Login", { username, password }, 15_000));
    }
    this.#wish = null;
    const login = { name: username, token: token ?? null, id: uuid7() };
    this.#take(login);
    keep.remove(`left/${username}`);
    keep.set(`session/${username}`, login);
    keep.set("account", username);
    tab.set("account", username);
  }

  /** Resolves to whether the session is in a cookie. The browser may have refused it, or a proxy removed it. The page
   * cannot see that, but the nodes then do not recognize the session. It stays open until it expires.
   * @param {string} username @param {string} password */
  async #logInWithCookie(username, password) {
    const calls = new Calls(this.#nodes, () => ({ headers: { "Chat-Session": username }, cookies: true }));
    await calls.chat("Login", { username, password }, 15_000);
    try {
      await calls.chat("GetPrivacy", {});
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      return !failure.loggedOut;
    }
    return true;
  }

  /** Notes that the user is ending the session. Other tabs learn from the nodes that it is over, and need to know that
   * this was intended. `null` withdraws the note.
   * @param {Note | null} left */
  leaving(left) {
    if (left === null) keep.remove(`left/${this.name}`);
    else keep.set(`left/${this.name}`, { id: this.#id, ...left });
  }

  /** The note of the tab that ended this session, or `null` if none is known. */
  get #left() {
    /** @type {Note & { id: string } | null} */
    const left = keep.get(`left/${this.name}`);
    return left?.id === this.#id ? left : null;
  }

  /** Resolves to the note of the tab that ended this session, or to `null` if none did. The refusal by a node can
   * overtake the note, because browsers do not promise when a tab sees what another one has stored. */
  async whyLeft() {
    const deadline = performance.now() + NOTE_MS;
    while (!this.#left && performance.now() < deadline) await pause(50);
    return this.#left;
  }

  /** Calls `tell` with the note of another tab that has ended this session. If it reached no node, there is no other
   * sign.
   * @param {(note: Note) => void} tell */
  onLeft(tell) {
    keep.onRemoved((key) => {
      const left = this.#left;
      if (this.name && key === `session/${this.name}` && left) tell(left);
    });
  }

  /** Makes the browser forget the token, although the session is not closed. Resolves to whether it did, because only a
   * node (any of them) can remove a cookie. */
  async forget() {
    if (!this.#nodes.isBound) return true;
    // A late answer must not remove the cookie of a later login.
    const enough = new AbortController();
    const tried = this.#nodes.near.map(async (base) => {
      if (!(await forgetCookie(base, this.credentials(), PROBE_MS, enough.signal))) throw new Error(base);
    });
    return Promise.any(tried).then(() => true, () => false).finally(() => enough.abort());
  }

  /** Forgets the session here. The node has closed it, or will never see it again. */
  end() {
    // It may belong to a later login in another tab.
    /** @type {Login | null} */
    const kept = keep.get(`session/${this.name}`);
    if (kept?.id === this.#id) keep.remove(`session/${this.name}`);
    if (keep.get("account") === this.name) keep.remove("account");
    tab.remove("account");
    this.#take(null);
  }

  /** @param {Login | null} session */
  #take(session) {
    this.name = session?.name ?? null;
    this.token = session?.token ?? null;
    this.#id = session?.id ?? null;
    this.#nodes.isBound = session !== null && !this.token;
  }

  async #reachesOthers() {
    this.#nodes.learn(await new Calls(this.#nodes, () => NOBODY).make("ClusterService/ListNodes", {}));
    const tried = this.#nodes.elsewhere.map((base) => call(base, "ClusterService/GetLeader", {}, NOBODY, PROBE_MS));
    return Promise.any(tried).then(() => true, () => false);
  }
}
