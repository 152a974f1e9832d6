// @ts-check
// The login and sign-up forms. Input that a node would reject is reported without a call.
//
// Does not cover: the session (session.js).

import { Failure } from "./api.js";
import { $ } from "./dom.js";
import { bytesOf, charactersLeft, count, duration } from "./text.js";

const NAME = /^[a-z0-9_.-]{1,32}$/;
const NAME_RULE = "Use 1-32 characters: a-z, 0-9, dot, hyphen, underscore.";
const PASSWORD_BYTES = [8, 256];
const WORDS = [
  "password", "passwort", "qwerty", "qwertz", "letmein", "welcome", "iloveyou", "admin", "dragon", "abc", "123",
];
const STRENGTHS = ["Too short", "Weak", "Fair", "Good", "Strong"];

/** Rates a password from 0 (too short) to 4 with a rough estimate of its bits. Repetitions, consecutive characters and
 * common words count little.
 * @param {string} password @param {string} name */
export function strength(password, name) {
  if (bytesOf(password) < PASSWORD_BYTES[0]) return 0;
  let text = password.toLowerCase();
  for (const word of [...WORDS, name].filter(Boolean)) text = text.replaceAll(word, "\u0000");
  const letters = Array.from(text, (char) => char.codePointAt(0) ?? 0);
  const counting = letters.filter((char, at) => at === 0 || Math.abs(char - letters[at - 1]) > 1);
  /** @type {[RegExp, number][]} */
  const kinds = [[/[a-z]/, 26], [/[A-Z]/, 26], [/[0-9]/, 10], [/[^a-zA-Z0-9]/, 33]];
  const pool = kinds.reduce((sum, [kind, size]) => sum + (kind.test(password) ? size : 0), 0);
  const bits = counting.length * Math.log2(pool) * (new Set(counting).size < 5 ? 0.5 : 1);
  return bits < 36 ? 1 : bits < 52 ? 2 : bits < 72 ? 3 : 4;
}

/** Returns the problem with a name, or "".
 * @param {string} name */
export function nameProblem(name) {
  if (!name) return "Enter a username.";
  return NAME.test(name) ? "" : NAME_RULE;
}

/** Returns the problem with a new password, or "".
 * @param {string} password */
export function passwordProblem(password) {
  const [min, max] = PASSWORD_BYTES;
  if (bytesOf(password) < min) return `Use at least ${min} characters.`;
  const left = charactersLeft(password, max);
  return left < 0 ? `Too long by ${count(-left, "character")}.` : "";
}

export class Auth {
  #signingUp = false;
  #busy = false;
  /** Whether the form was submitted. Problems are shown only after that, until they are fixed. */
  #tried = false;

  /** `onLoggedIn` is called when `session` has an account.
   * @param {import("./session.js").Session} session @param {() => void} onLoggedIn */
  constructor(session, onLoggedIn) {
    this.session = session;
    this.onLoggedIn = onLoggedIn;
    this.name = $("auth-name", HTMLInputElement);
    this.password = $("auth-password", HTMLInputElement);
    this.again = $("auth-again", HTMLInputElement);
    this.invitation = $("auth-invitation", HTMLInputElement);
    $("auth-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    $("auth-switch").addEventListener("click", () => this.#turn(!this.#signingUp));
    // An input method would insert its text again if the value changed during a composition.
    this.name.addEventListener("input", (event) => /** @type {InputEvent} */ (event).isComposing || this.#cleanName());
    this.name.addEventListener("compositionend", () => this.#cleanName());
    for (const field of [this.name, this.password, this.again]) field.addEventListener("input", () => this.#hint());
  }

  /** Fills in `name`. With `null`, a name that the browser filled in stays.
   * @param {string} notice @param {string | null} name */
  show(notice = "", name = null) {
    $("auth").hidden = false;
    this.#notice(notice);
    if (name !== null) this.name.value = name;
    for (const field of [this.password, this.again]) field.value = "";
    this.#turn(false, notice);
    (this.name.value ? this.password : this.name).focus();
  }

  hide() {
    $("auth").hidden = true;
  }

  /** Phone keyboards begin with a capital and end with a space. */
  #cleanName() {
    const { selectionStart: at, value } = this.name;
    const clean = value.trim().toLowerCase();
    if (clean === value) return;
    this.name.value = clean;
    this.name.setSelectionRange(at, at);
  }

  /** @param {string} text */
  #notice(text, isError = false) {
    $("auth-notice").textContent = text;
    $("auth-notice").classList.toggle("error", isError);
  }

  /** @param {boolean} signingUp */
  #turn(signingUp, notice = "") {
    this.#signingUp = signingUp;
    this.#tried = false;
    this.#notice(notice);
    const words = signingUp
      ? ["Create an account", "Create account", "Already have an account?", "Log in"]
      : ["Log in", "Log in", "New here?", "Create an account"];
    ["auth-title", "auth-submit", "auth-other", "auth-switch"].forEach((id, at) => { $(id).textContent = words[at]; });
    $("auth-again-field").hidden = !signingUp;
    $("auth-invitation-field").hidden = true;
    if (signingUp) this.#askWhoMay();
    this.password.autocomplete = signingUp ? "new-password" : "current-password";
    this.#hint();
  }

  /** Shows the invitation field if one is required. The rule is enforced when the account is created. */
  async #askWhoMay() {
    try {
      const { open = false, invitationNeeded = false } = await this.session.registration();
      if (!this.#signingUp) return;
      $("auth-invitation-field").hidden = !invitationNeeded;
      if (!open) this.#notice("New accounts can't be created here.", true);
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
    }
  }

  #problems() {
    const [name, password] = [this.name.value, this.password.value];
    if (!this.#signingUp) {
      return [name ? nameProblem(name) : "Enter your username.", password ? "" : "Enter your password.", ""];
    }
    const differs = password === this.again.value ? "" : "Passwords don't match.";
    return [nameProblem(name), passwordProblem(password), differs];
  }

  #hint() {
    const problems = this.#problems();
    const hints = [NAME_RULE, `At least ${PASSWORD_BYTES[0]} characters. A few random words work well.`, ""];
    [this.name, this.password, this.again].forEach((field, at) => {
      const wrong = this.#tried && problems[at];
      field.setAttribute("aria-invalid", wrong ? "true" : "false");
      $(`${field.id}-hint`).textContent = wrong || (this.#signingUp ? hints[at] : "");
    });
    const score = strength(this.password.value, this.name.value);
    $("auth-strength").hidden = !this.#signingUp || !this.password.value;
    $("auth-strength").dataset.score = String(score);
    $("auth-strength-text").textContent = STRENGTHS[score];
  }

  async #submit() {
    if (this.#busy) return;
    this.#tried = true;
    this.#cleanName();
    this.#hint();
    const wrong = this.#problems().findIndex(Boolean);
    if (wrong >= 0) return [this.name, this.password, this.again][wrong].focus();
    const [name, password] = [this.name.value, this.password.value];
    this.#working(true);
    try {
      if (this.#signingUp) await this.session.signUp(name, password, this.invitation.value.trim());
      await this.session.logIn(name, password);
      for (const field of [this.password, this.again]) field.value = "";
      this.onLoggedIn();
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      this.#refused(failure, name);
    } finally {
      this.#working(false);
    }
  }

  /** @param {boolean} busy */
  #working(busy) {
    this.#busy = busy;
    $("auth-submit", HTMLButtonElement).disabled = busy;
    $("auth-form").setAttribute("aria-busy", String(busy));
  }

  /** @param {Failure} failure @param {string} name */
  #refused(failure, name) {
    if (failure.reason === "USER_UNKNOWN") {
      this.#notice(`No account named ${name}. Check the spelling, or create an account.`, true);
      return this.name.focus();
    }
    /** @type {Record<string, string>} */
    const words = {
      PASSWORD_WRONG: "Wrong password.",
      USERNAME_TAKEN: `The name ${name} is already taken. Choose another one.`,
      LOGIN_THROTTLED: `Too many attempts. Try again in ${duration(Math.max(failure.retryMs, 1000))}.`,
      REGISTRATION_CLOSED: "New accounts can't be created here.",
      INVITATION_NEEDED: "You need an invitation to create an account here.",
      INVITATION_INVALID: "This invitation is no longer valid.",
      REGISTRATION_THROTTLED: `Too many new accounts. Try again in ${duration(Math.max(failure.retryMs, 1000))}.`,
      ACCOUNT_DISABLED: "This account has been disabled.",
      NO_LEADER: "The service is unavailable: most servers are down. Try again soon.",
    };
    const text = failure.code === "network"
      ? "Can't reach the servers. Check your connection and try again."
      : (words[failure.reason] ?? failure.message);
    this.#notice(text, true);
    if (failure.reason === "INVITATION_NEEDED" || failure.reason === "INVITATION_INVALID") {
      $("auth-invitation-field").hidden = false;
      return this.invitation.select();
    }
    (failure.reason === "USERNAME_TAKEN" ? this.name : this.password).select();
  }
}
