// One call to one node, as docs/api.md has it: JSON there and back, errors as `Failure`, streams line by line.
//
// Left out: which node (nodes.js), and whether to try again (calls.js).

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

/** What is between the page and the node may have answered, in a language of its own. */
function parsed(line) {
  try {
    return JSON.parse(line);
  } catch {
    throw new Failure({ code: "network", message: "The answer was not one of a node." });
  }
}

function failureOf(error) {
  const details = (error.details ?? []).map((detail) => detail.debug ?? {});
  const violation = details.flatMap((detail) => detail.fieldViolations ?? [])[0];
  const delay = details.find((detail) => detail.retryDelay)?.retryDelay ?? "0s";
  return new Failure({
    code: error.code ?? "unknown",
    message: violation ? `${violation.field}: ${violation.description}` : (error.message ?? "The node did not say why."),
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
    throw new Failure({ code: "network", message: signal.aborted ? "The node did not answer in time." : `The node cannot be reached (${cause.message}).` });
  }
  // What is between the page and the node may answer, too, and in other words.
  const error = await response.json().catch(() => null);
  if (typeof error?.code === "string") throw failureOf(error);
  throw new Failure({ code: response.status >= 500 ? "unavailable" : "unknown", message: `The answer was ${response.status} ${response.statusText}.` });
}

/** One answer, or a `Failure`. Gives up after `timeoutMs`, and tells the node that it will. */
export async function call(node, method, message, credentials, timeoutMs) {
  const signal = AbortSignal.timeout(timeoutMs);
  const response = await open(node, method, message, credentials, { "Connect-Timeout-Ms": String(Math.ceil(timeoutMs)) }, signal);
  try {
    return await response.json();
  } catch {
    throw new Failure({ code: "network", message: "The answer broke off." });
  }
}

/** Has the browser forget the cookie of `credentials`; resolves to whether it has. */
export async function forgetCookie(node, credentials, timeoutMs, stop) {
  const signal = AbortSignal.any([AbortSignal.timeout(timeoutMs), stop]);
  const ask = { method: "DELETE", headers: credentials.headers, credentials: "include", signal };
  // Any other answer is not a node's.
  return fetch(`${node}/session`, ask).then(({ status }) => status === 204, () => false);
}

/** The objects of a stream, for as long as there is one at least every `silenceMs`. Ends with a `Failure`, always. */
export async function* stream(node, method, message, credentials, silenceMs, stop) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), silenceMs);
  const signal = AbortSignal.any([silence.signal, stop]);
  try {
    const response = await open(node, method, message, credentials, {}, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read().catch(() => ({ done: true }));
      if (done) throw new Failure({ code: "network", message: "The stream broke off." });
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
