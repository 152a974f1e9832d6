// @ts-check
// The service worker. Keeps the shell of the page, so that the page can be loaded while its node is down.
//
// The shell is the document with its policy, and the files that it names. Invariants:
// - A node that answers always decides. Its document is used and replaces the kept one. The kept document is used only
//   if no answer comes in time, or the answer is a 5xx. A kept file is used whenever the node does not serve it.
// - At most one version is kept. The first answer of another version removes it before any of the new one is kept.
// - A shell counts once its document is stored, which is last. So half a shell is never used.
// - Only the shell is kept, and no API answer or other data of an account.
//
// The worker also shows notifications where only workers can, and reports a click on one to the page.
//
// Does not cover: the choice of the node (nodes.js), and a shell that does not start (boot.js drops it).

const scope = /** @type {ServiceWorkerGlobalScope} */ (/** @type {unknown} */ (self));
const PREFIX = "shell/";
/** Timeout for the start of an answer, if something else can be shown. */
const ANSWER_MS = 4000;
/** A document that names more files is not ours. */
const FILES_MAX = 100;
const FILE = /\/assets\/([0-9a-f]{16})\/[a-z]+\.[a-z]+/g;

/** Documents are kept one at a time, in the order of their answers.
 * @type {Promise<void>} */
let keeping = Promise.resolve();

const kept = async () => (await caches.keys()).filter((name) => name.startsWith(PREFIX));

/** The kept answer for a path. `vary` is about compression, which the browser has undone. Must not open a cache,
 * because that would recreate one that the page has dropped meanwhile.
 * @param {string} path */
async function find(path) {
  for (const cacheName of await kept()) {
    const isWhole = await caches.match("/", { cacheName, ignoreVary: true });
    const found = isWhole && (await caches.match(path, { cacheName, ignoreVary: true }));
    if (found) return found;
  }
  return null;
}

/** Keeps a document and its files, and nothing of any other version.
 * @param {Response} answer */
async function keep(answer) {
  const found = [...(await answer.clone().text()).matchAll(FILE)];
  const files = new Set(found.map(([path]) => path));
  const versions = new Set(found.map(([, version]) => version));
  if (versions.size !== 1 || files.size > FILES_MAX) return;
  const name = PREFIX + [...versions][0];
  for (const other of await kept()) if (other !== name) await caches.delete(other);
  const shell = await caches.open(name);
  const there = new Set((await shell.keys()).map(({ url }) => new URL(url).pathname));
  await shell.addAll([...files].filter((path) => !there.has(path)));
  await shell.put("/", answer);
}

/** @param {Response} answer */
function keepNext(answer) {
  const isPage = answer.ok && answer.type === "basic" && !answer.redirected;
  if (!isPage) return keeping;
  const copy = answer.clone();
  // The node may die in between, or the storage may be full. The next answer is another try.
  keeping = keeping.then(() => keep(copy)).catch(() => {});
  return keeping;
}

/** Resolves to the answer if it arrives within `ANSWER_MS`, else to `null`.
 * @param {Promise<Response>} answer */
function soon(answer) {
  /** @type {Promise<null>} */
  const tooLate = new Promise((resolve) => setTimeout(resolve, ANSWER_MS, null));
  return Promise.race([answer.catch(() => null), tooLate]);
}

/** @param {FetchEvent} event */
async function page(event) {
  const answer = fetch(event.request);
  event.waitUntil(answer.then(keepNext).catch(() => {}));
  const ofNode = await soon(answer);
  // Proxies answer for nodes that are down.
  if (ofNode && ofNode.status < 500) return ofNode;
  return (await find("/").catch(() => null)) ?? answer;
}

/** @param {Request} request @param {string} path */
async function file(request, path) {
  const answer = fetch(request);
  const ofNode = await soon(answer);
  if (ofNode?.ok) return ofNode;
  return (await find(path).catch(() => null)) ?? answer;
}

/** Opens the conversation of a notification, in an existing tab or a new one.
 * @param {string} from */
async function open(from) {
  const [tab] = await scope.clients.matchAll({ type: "window", includeUncontrolled: true });
  if (!tab) return scope.clients.openWindow(`/#/${encodeURIComponent(from)}`);
  tab.postMessage({ open: from });
  return tab.focus();
}

scope.addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(open(String(event.notification.data?.from ?? "")).catch(() => {}));
});

scope.addEventListener("install", (event) => {
  scope.skipWaiting();
  event.waitUntil(fetch("/", { cache: "no-cache" }).then(keepNext).catch(() => {}));
});

scope.addEventListener("fetch", (event) => {
  const { request } = event;
  const { origin, pathname } = new URL(request.url);
  if (request.method !== "GET" || origin !== location.origin) return;
  if (request.mode === "navigate" && pathname === "/") event.respondWith(page(event));
  else if (pathname.startsWith("/assets/")) event.respondWith(file(request, pathname));
});
