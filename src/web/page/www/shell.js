// Has the browser keep the page itself (worker.js), so that it can be loaded while its node is down.

import { el } from "./dom.js";

/** Registers the service worker, unless there is one: the browser then looks for new versions of it by itself. */
export async function keepShell() {
  // Only pages that came over HTTPS or from this machine may have one, and no private windows of some browsers.
  const workers = navigator.serviceWorker;
  if (!workers || (await workers.getRegistration().catch(() => null))) return;
  const frame = el("iframe", { src: "/worker.html", hidden: true, title: "", "aria-hidden": "true" });
  document.body.append(frame);
  await workers.ready;
  frame.remove();
}
