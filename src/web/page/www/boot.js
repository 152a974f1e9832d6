// What the document loads first: brings the page up as soon as all of it can be had.
//
// Document and files may come from nodes of different versions (an update, behind one address), or the node dies between the one and
// the other. Nodes give this file out under the address of every version, all others only under that of their own: so where one of
// them is missing, this one can say so, and load the page again once a node answers. It stands alone and fits every version.
//
// It is also what tells people that their browser is too old, so it is written for browsers that are: nothing in it is
// newer than modules, which are what loads it.
//
// Does not cover: requests that hang (browsers end those themselves), and this file itself when it is missing; the
// document says what to do then.

const ANSWER_MS = 5000;
const PAUSE_MS = 1000;
const PAUSE_MS_MAX = 30000;
/** How often a missing style sheet is waited for. Something on the way may take it away for good. */
const UNSTYLED_TRIES = 5;
const TRIES = "boot-tries";
const TOO_OLD = "This browser is too old for quorum-chat. Please use a newer one.";

/** How often in a row it came to nothing; a browser that keeps nothing always says never. */
const tries = {
  get count() {
    try {
      return Number(sessionStorage.getItem(TRIES));
    } catch (_) {
      return 0;
    }
  },
  set count(count) {
    try {
      if (count) sessionStorage.setItem(TRIES, count);
      else sessionStorage.removeItem(TRIES);
    } catch (_) {
      // The pauses do not grow then.
    }
  },
};

/** The page's files use these without a way around. Browsers have had all of them since 2022. */
function isNewEnough() {
  return [
    window.AbortSignal && AbortSignal.timeout, Promise.any, window.TextDecoderStream, window.ResizeObserver,
    window.HTMLDialogElement && HTMLDialogElement.prototype.showModal, Array.prototype.at, String.prototype.replaceAll,
    window.reportError,
  ].every(Boolean);
}

/** Fails when the style sheet is missing. That it is on its way no more, only the end of all loading tells. */
async function styled() {
  // One that failed is none, or has no rules, as the browser likes.
  const isThere = () => {
    const link = document.querySelector('link[rel=stylesheet][href$="/style.css"]');
    return link && link.sheet && link.sheet.cssRules.length;
  };
  if (!isThere() && document.readyState !== "complete") await new Promise((resolve) => addEventListener("load", resolve));
  if (!isThere() && tries.count < UNSTYLED_TRIES) throw new Error("The style sheet is missing.");
}

async function answers() {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), ANSWER_MS);
  try {
    return (await fetch("/", { cache: "no-store", signal: stop.signal })).ok;
  } catch (_) {
    return false;
  } finally {
    clearTimeout(timer);
  }
}

function say(text) {
  const boot = document.querySelector("#boot");
  boot.querySelector("p").textContent = text;
  const hint = boot.querySelector(".slow");
  if (hint) hint.remove();
}

/** A shell that does not come up must not be kept for the time when no node answers (worker.js). */
async function dropShell() {
  try {
    for (const name of await caches.keys()) if (name.startsWith("shell/")) await caches.delete(name);
  } catch (_) {
    // Nothing is kept without HTTPS.
  }
}

async function again() {
  say("The service can't be reached or is being updated. Trying again…");
  const pause = Math.min(PAUSE_MS * Math.pow(2, tries.count), PAUSE_MS_MAX);
  tries.count += 1;
  do await new Promise((resolve) => setTimeout(resolve, pause));
  while (!(await answers()));
  location.reload();
}

async function load() {
  if (!isNewEnough()) return say(TOO_OLD);
  let main;
  try {
    await styled();
    main = await import("./main.js");
  } catch (cause) {
    console.warn("The page could not be loaded:", cause);
    await dropShell();
    // What cannot be read now will not be readable then.
    if (cause instanceof SyntaxError) return say(TOO_OLD);
    return again();
  }
  tries.count = 0;
  try {
    main.start();
  } catch (bug) {
    await dropShell();
    // Another try would only hide it.
    throw bug;
  }
}

load();
