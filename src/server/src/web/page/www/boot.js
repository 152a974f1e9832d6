// @ts-check
// The first file that the document loads. Starts the page as soon as all of its files are available.
//
// The document and its files may come from nodes of different versions (an update behind one address), or the node may
// die in between. Nodes serve this file under the address of every version, and all others only under that of their
// own. If one of those is missing, this file reports that and reloads the page once a node answers. It has no static
// imports and fits every version.
//
// It also reports that a browser is too old. So its syntax is no newer than modules and dynamic import.
//
// Does not cover: hanging requests (browsers end those), and the absence of this file (the document has a hint for
// that).

const ANSWER_MS = 5000;
const PAUSE_MS = 1000;
const PAUSE_MS_MAX = 30000;
/** Reloads for a missing style sheet. Something on the way may remove it permanently. */
const UNSTYLED_TRIES = 5;
const TRIES = "boot-tries";
const TOO_OLD = "This browser is too old for quorum-chat. Please use a newer one.";

/** The number of consecutive failed loads. It is always 0 in a browser without storage. */
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
      if (count) sessionStorage.setItem(TRIES, String(count));
      else sessionStorage.removeItem(TRIES);
    } catch (_) {
      // The pauses do not grow in that case.
    }
  },
};

/** The page's files need these, without a fallback. Browsers have had all of them since 2022. */
function isNewEnough() {
  return [
    window.AbortSignal && window.AbortSignal.timeout, Promise.any, window.TextDecoderStream, window.ResizeObserver,
    window.HTMLDialogElement && HTMLDialogElement.prototype.showModal, Array.prototype.at, String.prototype.replaceAll,
    window.reportError,
  ].every(Boolean);
}

/** Fails if the style sheet is missing. Only the load event shows that it is no longer in flight. */
async function styled() {
  // After a failure, browsers have either no sheet or one without rules.
  const isThere = () => {
    /** @type {HTMLLinkElement | null} */
    const link = document.querySelector('link[rel=stylesheet][href$="/style.css"]');
    return link && link.sheet && link.sheet.cssRules.length;
  };
  if (!isThere() && document.readyState !== "complete") {
    await new Promise((resolve) => addEventListener("load", resolve));
  }
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

/** @param {string} text */
function say(text) {
  const status = document.querySelector("#boot p");
  if (status) status.textContent = text;
  const hint = document.querySelector("#boot .slow");
  if (hint) hint.remove();
}

/** A shell that does not start must not be kept for times when no node answers (worker.js). */
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
    // A reload cannot fix a syntax error.
    if (cause instanceof SyntaxError) return say(TOO_OLD);
    return again();
  }
  tries.count = 0;
  try {
    main.start();
  } catch (bug) {
    await dropShell();
    // A reload would only hide the bug.
    throw bug;
  }
}

load();
