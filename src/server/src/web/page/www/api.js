// @ts-check
// A single call to a single node, as described in docs/api.md. Requests and answers are JSON, errors become `Failure`,
// and streams are read line by line.
//
// Does not cover: the choice of the node (nodes.js) and retries (retry.js).

import { anyOf } from "./abort.js";

/** What identifies the caller (session.js).
 * @typedef {{ headers: Record<string, string>, cookies: boolean }} Credentials */

/** The reason why a call failed. `code` is a Connect code, or "network" without a complete answer from a node. */
export class Failure extends Error {
  /** Whether the call failed at the first attempt (retry.js). */
  isOfFirstTry = false;

  /** @param {{ code: string, message: string, reason?: string, field?: string, retryMs?: number }} facts */
  constructor({ code, message, reason = "", field = "", retryMs = 0 }) {
    super(message);
    this.code = code;
    this.reason = reason;
    this.field = field;
    this.retryMs = retryMs;
  }

  /** Whether a retry may succeed, on another node or later. The outcome of the failed call is unknown. */
  get passing() {
    return ["network", "unavailable", "deadline_exceeded", "aborted"].includes(this.code)
      || ["OVERLOADED", "RATE_LIMITED"].includes(this.reason);
  }

  /** Whether the session has ended. */
  get loggedOut() {
    return this.code === "unauthenticated" && this.reason !== "PASSWORD_WRONG";
  }
}

/** The error codes of nodes. An error with any other code comes from a proxy. */
const CODES = [
  "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied",
  "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable",
  "data_loss", "unauthenticated",
];
/** Proxy answers that permit a retry: a timeout, rejected early data, and a rate limit. So do all from 500 up. */
const PASSING = [408, 425, 429];
/** Upper bound for a delay that a proxy requests. */
const PROXY_PAUSE_MS_MAX = 30_000;

/** Parses `Retry-After`, which has seconds or a date, into ms.
 * @param {string | null} text @param {number} now */
export function retryAfterMs(text, now = Date.now()) {
  const ms = /^\s*\d{1,9}\s*$/.test(text ?? "") ? Number(text) * 1000 : Date.parse(text ?? "") - now;
  return Math.min(Math.max(ms || 0, 0), PROXY_PAUSE_MS_MAX);
}

/** A proxy may have answered instead of the node, in another format.
 * @param {string} line @returns {Api.Line} */
function parsed(line) {
  try {
    return JSON.parse(line);
  } catch {
    throw new Failure({ code: "network", message: "Unexpected response from the server." });
  }
}

/** @param {Api.Failure} error */
function failureOf(error) {
  const details = (error.details ?? []).map((detail) => detail.debug ?? {});
  const violation = details.flatMap((detail) => detail.fieldViolations ?? [])[0];
  const delay = details.find((detail) => detail.retryDelay)?.retryDelay ?? "0s";
  return new Failure({
    code: error.code ?? "unknown",
    message: violation
      ? `${violation.field}: ${violation.description}`
      : (error.message ?? "The server gave no reason."),
    reason: details.find((detail) => detail.reason)?.reason,
    field: violation?.field,
    retryMs: Number.parseFloat(delay) * 1000,
  });
}

/** Sends a request and returns a successful response.
 * @param {string} node @param {string} method @param {object} message @param {Credentials} credentials
 * @param {Record<string, string>} headers @param {AbortSignal} signal */
async function open(node, method, message, credentials, headers, signal) {
  let response;
  try {
    response = await fetch(`${node}/chat.v1.${method}`, {
      method: "POST",
      body: JSON.stringify(message),
      headers: { "Content-Type": "application/json", ...headers, ...credentials.headers },
      credentials: credentials.cookies ? "include" : "omit",
      signal,
    });
    if (response.ok) return response;
  } catch (cause) {
    const why = signal.aborted
      ? "The server didn't respond in time."
      : `Can't reach the server (${/** @type {Error} */ (cause).message}).`;
    throw new Failure({ code: "network", message: why });
  }
  // A proxy may have answered instead of the node, with another kind of error.
  const error = await response.json().catch(() => null);
  if (CODES.includes(error?.code)) throw failureOf(error);
  const { status, statusText, headers: answered } = response;
  const isPassing = status >= 500 || PASSING.includes(status);
  throw new Failure({
    code: isPassing ? "unavailable" : "unknown",
    message: `The server responded with ${`${status} ${statusText}`.trim()}.`,
    reason: status === 429 ? "RATE_LIMITED" : "",
    retryMs: isPassing ? retryAfterMs(answered.get("Retry-After")) : 0,
  });
}

/** Returns the answer or throws a `Failure`. The node receives `timeoutMs` as its deadline, too.
 * @template {keyof Api.AllAnswers} M
 * @param {string} node @param {M} method @param {object} message @param {Credentials} credentials
 * @param {number} timeoutMs @returns {Promise<Api.AllAnswers[M]>} */
export async function call(node, method, message, credentials, timeoutMs) {
  const signal = window.AbortSignal.timeout(timeoutMs);
  const headers = { "Connect-Timeout-Ms": String(Math.ceil(timeoutMs)) };
  const response = await open(node, method, message, credentials, headers, signal);
  try {
    return await response.json();
  } catch {
    throw new Failure({ code: "network", message: "The response was cut off." });
  }
}

/** Makes the browser delete the cookie of `credentials`. Resolves to whether that succeeded.
 * @param {string} node @param {Credentials} credentials @param {number} timeoutMs @param {AbortSignal} stop
 * @returns {Promise<boolean>} */
export async function forgetCookie(node, credentials, timeoutMs, stop) {
  const response = fetch(`${node}/session`, {
    method: "DELETE",
    headers: credentials.headers,
    credentials: "include",
    signal: anyOf(window.AbortSignal.timeout(timeoutMs), stop),
  });
  // Only a node answers with this status.
  return response.then(({ status }) => status === 204, () => false);
}

/** Yields the objects of a stream until none arrives for `silenceMs`. Always ends with a `Failure`.
 * @param {string} node @param {string} method @param {object} message @param {Credentials} credentials
 * @param {number} silenceMs @param {AbortSignal} stop @returns {AsyncGenerator<Api.Event>} */
export async function* stream(node, method, message, credentials, silenceMs, stop) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), silenceMs);
  const signal = anyOf(silence.signal, stop);
  try {
    const { body } = await open(node, method, message, credentials, {}, signal);
    const reader = body?.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value } = (await reader?.read().catch(() => null)) ?? {};
      if (value === undefined) throw new Failure({ code: "network", message: "The connection was lost." });
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), silenceMs);
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const object = parsed(line);
        if (object?.error) throw failureOf(object.error);
        yield object;
      }
    }
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}
