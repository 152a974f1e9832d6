// What the document loads first: brings the page up, however the nodes are at that moment.
//
// Document and files may come from nodes of different versions (an update, behind one address), or the node dies between the one and
// the other. Nodes give this file out under the address of every version, all others only under that of their own: so where one of
// them is missing, this one can say so, and load the page again once a node answers. It stands alone and fits every version.

const ANSWER_MS = 5000;
const PAUSE_MS = 1000;
const PAUSE_MS_MAX = 30_000;
const TRIES = "boot-tries";

/** How often in a row it came to nothing; a browser that keeps nothing always says never. */
const tries = {
  get count() {
    try {
      return Number(sessionStorage.getItem(TRIES));
    } catch {
      return 0;
    }
  },
  set count(count) {
    try {
      if (count) sessionStorage.setItem(TRIES, count);
      else sessionStorage.removeItem(TRIES);
    } catch {
      // The pauses do not grow then.
    }
  },
};

/** Fails when the style sheet is missing. That it is on its way no more, only the end of all loading tells. */
async function styled() {
  // One that failed is none, or has no rules, as the browser likes.
  const isThere = () => document.querySelector("link[rel=stylesheet]").sheet?.cssRules.length;
  if (!isThere() && document.readyState !== "complete") await new Promise((resolve) => addEventListener("load", resolve));
  if (!isThere()) throw new Error("The style sheet is missing.");
}

async function answers() {
  try {
    return (await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) })).ok;
  } catch {
    return false;
  }
}

async function again(cause) {
  console.warn("The page could not be loaded:", cause);
  const boot = document.querySelector("#boot p");
  if (boot) boot.textContent = "The nodes cannot be reached, or are being updated. Trying again…";
  const pause = Math.min(PAUSE_MS * 2 ** tries.count, PAUSE_MS_MAX);
  tries.count += 1;
  do await new Promise((resolve) => setTimeout(resolve, pause));
  while (!(await answers()));
  location.reload();
}

try {
  await styled();
  await import("./main.js");
  tries.count = 0;
} catch (cause) {
  await again(cause);
}
