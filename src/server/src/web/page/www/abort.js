// @ts-check
// Combines abort signals, also in browsers without AbortSignal.any (added in Safari 17.4, Firefox 124, Chrome 116).

/** Returns a signal that aborts with the first of `signals`.
 * @param {...AbortSignal} signals */
export function anyOf(...signals) {
  if (window.AbortSignal.any) return window.AbortSignal.any(signals);
  const either = new AbortController();
  // An abort removes all listeners, because a source may outlive many combined signals.
  const abort = () => either.abort();
  for (const signal of signals) {
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true, signal: either.signal });
  }
  return either.signal;
}
