// @ts-check
// Registers the service worker (worker.js) from a separate document. The page's policy (Trusted Types) forbids every
// script address that is made from a string, even this one.

// Without a certificate that the browser trusts, there is no worker. The page works without one.
navigator.serviceWorker.register("/worker.js", { updateViaCache: "none" }).catch((cause) => {
  console.warn("The page cannot be kept:", cause);
});
