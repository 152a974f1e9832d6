// Short notes at the edge, words for screen readers, and notifications of the system.

import { $, avatar, el } from "./dom.js";
import { keep } from "./keep.js";
import { oneLine } from "./text.js";

const TOASTS_MAX = 3;
const SHOWN_MS = 5000;
const HELD_MS_MAX = 30_000;

/** A note that goes away by itself; at once when it is clicked. */
export function toast(text, { from = null, onClick = null, isError = false } = {}) {
  const note = el("button", { class: `toast${isError ? " error" : ""}`, type: "button", "data-from": from, on: { click: () => { note.remove(); onClick?.(); } } },
    from && avatar(from), el("span", { class: "toast-text" }, from && el("strong", {}, from), el("span", { dir: "auto" }, text)));
  const toasts = $("toasts");
  while (toasts.children.length >= TOASTS_MAX) toasts.firstElementChild.remove();
  toasts.append(note);
  announce(from ? `New message of ${from}: ${text}` : text);
  const end = performance.now() + HELD_MS_MAX;
  const go = () => {
    // Not while somebody is about to click it; but a pointer may also just have been left there.
    if (note.matches(":hover, :focus-visible") && performance.now() < end) setTimeout(go, 1000);
    else note.remove();
  };
  setTimeout(go, SHOWN_MS);
}

/** Takes all away. */
export function clearToasts() {
  $("toasts").replaceChildren();
}

/** What somebody wrote is seen now. */
export function dismiss(from) {
  for (const note of $("toasts").querySelectorAll(`[data-from="${from}"]`)) note.remove();
}

/** For screen readers; for people who see, it is on the page already. */
export function announce(text) {
  $("announce").textContent = "";
  setTimeout(() => { $("announce").textContent = text; }, 50);
}

export const notifications = {
  /** The browser has them, and lets this page ask: it must be of this machine, or have come over TLS. */
  get possible() {
    return "Notification" in window && window.isSecureContext;
  },

  get on() {
    return this.possible && Notification.permission === "granted" && keep.get("notifications") === true;
  },

  /** Resolves to whether they are on now. */
  async turn(on) {
    if (on && this.possible && Notification.permission !== "granted") await Notification.requestPermission();
    keep.set("notifications", on && this.possible && Notification.permission === "granted");
    return this.on;
  },

  show(from, text, onClick) {
    if (!this.on) return;
    try {
      const note = new Notification(from, { body: oneLine(text), tag: `quorum-chat/${from}` });
      note.addEventListener("click", () => {
        window.focus();
        note.close();
        onClick();
      });
    } catch {
      // Some browsers only have them in service workers.
    }
  },
};
