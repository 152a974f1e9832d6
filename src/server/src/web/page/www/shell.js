// @ts-check
// Makes the browser keep the page (worker.js), so that it can be loaded while its node is down.
//
// Does not cover: what is kept (worker.js).

import { el } from "./dom.js";

/** Registers the service worker, unless there is one. The browser then checks for new versions by itself. */
export async function keepShell() {
  // Workers need HTTPS or this machine, and some browsers have none in private windows.
  const workers = navigator.serviceWorker;
  if (!workers || (await workers.getRegistration().catch(() => null))) return;
  const frame = el("iframe", { src: "/worker.html", hidden: true, title: "", "aria-hidden": "true" });
  document.body.append(frame);
  await workers.ready;
  frame.remove();
}
