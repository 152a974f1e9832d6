// Signals that end a fetch, also in browsers that cannot combine them (AbortSignal.any: Safari 17.4, Firefox 124,
// Chrome 116).

/** Aborts with the first of `signals`. */
export function anyOf(...signals) {
  if (AbortSignal.any) return AbortSignal.any(signals);
  const either = new AbortController();
  // A signal may outlive many that were made of it: nothing stays behind on it.
  const abort = () => either.abort();
  for (const signal of signals) {
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true, signal: either.signal });
  }
  return either.signal;
}
