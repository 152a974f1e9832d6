// Who is logged in, and how a node is told.
//
// Where cookies reach all nodes (they are on the page's own host, on whatever port, or behind one address), the token is in a cookie that
// no script can read. Where nodes on other hosts can be reached, no cookie of this page would get there, and the page could not go on
// with them when its own node dies: then it keeps the token itself. So it does where the browser refuses cookies.

import { Failure, call, forgetCookie } from "./api.js";
import { Calls } from "./calls.js";
import { keep, tab } from "./keep.js";
import { uuid7 } from "./text.js";

const PROBE_MS = 1500;
const NOBODY = { headers: {}, cookies: false };

export class Session {
  #nodes;
  #wish = null;
  #id = null;

  constructor(nodes) {
    this.#nodes = nodes;
    // A tab stays with its account, whoever logs in in another one.
    const name = tab.get("account") ?? keep.get("account");
    this.#take(name ? keep.get(`session/${name}`) : null);
  }

  /** Says who calls; for api.js. */
  credentials() {
    if (!this.name) return NOBODY;
    if (this.token) return { headers: { Authorization: `Bearer ${this.token}` }, cookies: false };
    return { headers: { "Chat-Session": this.name }, cookies: true };
  }

  /** Who may create an account, as far as a node knows. */
  async registration() {
    return new Calls(this.#nodes, () => NOBODY).chat("GetRegistration", {});
  }

  /** Resolves when the account is there; also when an earlier try, with the same password, made it. */
  async signUp(username, password, invitation) {
    const wish = JSON.stringify([username, password]);
    if (this.#wish?.wish !== wish) this.#wish = { wish, requestId: uuid7() };
    const { requestId } = this.#wish;
    await new Calls(this.#nodes, () => NOBODY).chat("CreateAccount", { username, password, requestId, invitation }, 15_000);
  }

  async logIn(username, password) {
    let token = null;
    const isForCookie = navigator.cookieEnabled !== false && !(await this.#reachesOthers());
    if (!isForCookie || !(await this.#logInWithCookie(username, password))) {
      ({ token } = await new Calls(this.#nodes, () => NOBODY).chat("Login", { username, password }, 15_000));
    }
    this.#wish = null;
    this.#take({ name: username, token, id: uuid7() });
    keep.remove(`left/${username}`);
    keep.set(`session/${username}`, { name: username, token: this.token, id: this.#id });
    keep.set("account", username);
    tab.set("account", username);
  }

  /** Resolves to whether the session is in a cookie. The browser may have refused it, or a proxy taken it away: the
   * page cannot see that, but the nodes do not know the session then. It stays open until it expires. */
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

  /** Whoever is logged in is about to end the session: other tabs will hear from the nodes that it is over, and have to know that it
   * was meant so. `null`: it came to nothing. */
  leaving(left) {
    if (left === null) keep.remove(`left/${this.name}`);
    else keep.set(`left/${this.name}`, { id: this.#id, ...left });
  }

  /** What the tab that ended this session says of it (`notice`, `isGone`); `null` when it was none. */
  get left() {
    const left = keep.get(`left/${this.name}`);
    return left?.id === this.#id ? left : null;
  }

  /** Calls with what another tab says that has ended this session. Where no node could be told, nobody else will say so. */
  onLeft(tell) {
    keep.onRemoved((key) => this.name && key === `session/${this.name}` && this.left !== null && tell(this.left));
  }

  /** Has the browser forget the token, though the session is not closed. Resolves to whether it has: a cookie goes only when a node says
   * so, whichever. */
  async forget() {
    if (!this.#nodes.isBound) return true;
    // Who answers later must not remove the cookie of a later login.
    const enough = new AbortController();
    const tried = this.#nodes.near.map(async (base) => (await forgetCookie(base, this.credentials(), PROBE_MS, enough.signal)) || Promise.reject());
    return Promise.any(tried).then(() => true, () => false).finally(() => enough.abort());
  }

  /** Forgets the session here; the node has closed it, or will never know it again. */
  end() {
    // It may be that of a later login, in another tab.
    if (keep.get(`session/${this.name}`)?.id === this.#id) keep.remove(`session/${this.name}`);
    if (keep.get("account") === this.name) keep.remove("account");
    tab.remove("account");
    this.#take(null);
  }

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
