// One call to one node, as docs/api.md has it: JSON there and back, errors as `Failure`, streams line by line.
//
// Left out: which node (nodes.js), and whether to try again (calls.js).

import { anyOf } from "./abort.js";

/** Why a call was not answered as wished. `code` is Connect's, or "network" when no node answered. */
export class Failure extends Error {
  constructor({ code, message, reason = "", field = "", retryMs = 0 }) {
    super(message);
    Object.assign(this, { code, reason, field, retryMs });
  }

  /** Another node, or the same a little later, may well answer. Whether it did what was asked is not known. */
  get passing() {
    return ["network", "unavailable", "deadline_exceeded", "aborted"].includes(this.code) || ["OVERLOADED", "RATE_LIMITED"].includes(this.reason);
  }

  /** The session is over. */
  get loggedOut() {
    return this.code === "unauthenticated" && this.reason !== "PASSWORD_WRONG";
  }
}

/** What a node's errors have as their code; anything else is one of a proxy. */
const CODES = [
  "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied",
  "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable",
  "data_loss", "unauthenticated",
];
/** Answers of a proxy that are not final: it timed out, did not want to replay early data, or limits the rate. All from
 * 500 on are not final either. */
const PASSING = [408, 425, 429];
/** The longest pause that a proxy may ask for. */
const PROXY_PAUSE_MS_MAX = 30_000;

/** What `Retry-After` says, seconds or a date, in ms. */
export function retryAfterMs(text, now = Date.now()) {
  const ms = /^\s*\d{1,9}\s*$/.test(text ?? "") ? Number(text) * 1000 : Date.parse(text ?? "") - now;
  return Math.min(Math.max(ms || 0, 0), PROXY_PAUSE_MS_MAX);
}

/** What is between the page and the node may have answered, in a language of its own. */
function parsed(line) {
  try {
    return JSON.parse(line);
  } catch {
    throw new Failure({ code: "network", message: "Unexpected response from the server." });
  }
}

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

/** What the fetch came to; `credentials` is what says who calls (session.js). */
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
    const why = signal.aborted ? "The server didn't respond in time." : `Can't reach the server (${cause.message}).`;
    throw new Failure({ code: "network", message: why });
  }
  // What is between the page and the node may answer, too, and in other words.
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

/** One answer, or a `Failure`. Gives up after `timeoutMs`, and tells the node that it will. */
export async function call(node, method, message, credentials, timeoutMs) {
  const signal = AbortSignal.timeout(timeoutMs);
  const response = await open(node, method, message, credentials, { "Connect-Timeout-Ms": String(Math.ceil(timeoutMs)) }, signal);
  try {
    return await response.json();
  } catch {
    throw new Failure({ code: "network", message: "The response was cut off." });
  }
}

/** Has the browser forget the cookie of `credentials`; resolves to whether it has. */
export async function forgetCookie(node, credentials, timeoutMs, stop) {
  const signal = anyOf(AbortSignal.timeout(timeoutMs), stop);
  const ask = { method: "DELETE", headers: credentials.headers, credentials: "include", signal };
  // Any other answer is not a node's.
  return fetch(`${node}/session`, ask).then(({ status }) => status === 204, () => false);
}

/** The objects of a stream, for as long as there is one at least every `silenceMs`. Ends with a `Failure`, always. */
export async function* stream(node, method, message, credentials, silenceMs, stop) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), silenceMs);
  const signal = anyOf(silence.signal, stop);
  try {
    const response = await open(node, method, message, credentials, {}, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read().catch(() => ({ done: true }));
      if (done) throw new Failure({ code: "network", message: "The connection was lost." });
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), silenceMs);
      const lines = (rest + value).split("\n");
      rest = lines.pop();
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
