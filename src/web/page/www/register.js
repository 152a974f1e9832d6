// Registers the service worker (worker.js). In a document of its own, as the page allows no address of a script to be
// made from a text (Trusted Types), not even this one.

// Without a certificate that the browser trusts there is none; the page works without.
navigator.serviceWorker.register("/worker.js", { updateViaCache: "none" }).catch((cause) => {
  console.warn("The page cannot be kept:", cause);
});
