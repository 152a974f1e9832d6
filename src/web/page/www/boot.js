// What the document loads first: brings the page up as soon as all of it can be had.
//
// Document and files may come from nodes of different versions (an update, behind one address), or the node dies between the one and
// the other. Nodes give this file out under the address of every version, all others only under that of their own: so where one of
// them is missing, this one can say so, and load the page again once a node answers. It stands alone and fits every version.
//
// Left out: what hangs (browsers end that themselves), and this file itself when it is missing; the document says what to do then.

const ANSWER_MS = 5000;
const PAUSE_MS = 1000;
const PAUSE_MS_MAX = 30_000;
/** So often a missing style sheet is waited for. Something on the way may take it away for good. */
const UNSTYLED_TRIES = 5;
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
  const isThere = () => document.querySelector('link[rel=stylesheet][href$="/style.css"]')?.sheet?.cssRules.length;
  if (!isThere() && document.readyState !== "complete") await new Promise((resolve) => addEventListener("load", resolve));
  if (!isThere() && tries.count < UNSTYLED_TRIES) throw new Error("The style sheet is missing.");
}

async function answers() {
  try {
    return (await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) })).ok;
  } catch {
    return false;
  }
}

function say(text) {
  document.querySelector("#boot p").textContent = text;
}

async function again() {
  say("The nodes cannot be reached, or are being updated. Trying again…");
  const pause = Math.min(PAUSE_MS * 2 ** tries.count, PAUSE_MS_MAX);
  tries.count += 1;
  do await new Promise((resolve) => setTimeout(resolve, pause));
  while (!(await answers()));
  location.reload();
}

async function load() {
  try {
    await styled();
    return await import("./main.js");
  } catch (cause) {
    console.warn("The page could not be loaded:", cause);
    // What cannot be read now will not be readable then.
    if (cause instanceof SyntaxError) say("This browser is too old for the page. Please use a newer one.");
    else await again();
    return null;
  }
}

const main = await load();
if (main) {
  tries.count = 0;
  // What fails in there is a bug, which another try would only hide.
  main.start();
}
