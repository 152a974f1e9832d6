// @ts-check
// Toasts, announcements for screen readers, and notifications of the system.
//
// Does not cover: which messages are reported (main.js).

import { $, avatar, el } from "./dom.js";
import { keep } from "./storage.js";
import { oneLine } from "./text.js";

const TOASTS_MAX = 3;
const SHOWN_MS = 5000;
const HELD_MS_MAX = 30_000;

/** Shows a toast that disappears by itself, or at once on a click. `from` is the sender of a message.
 * @param {string} text @param {{ from?: string, onClick?: () => void, isError?: boolean }} options */
export function toast(text, { from, onClick, isError = false } = {}) {
  const click = () => {
    note.remove();
    onClick?.();
  };
  const attributes = { class: `toast${isError ? " error" : ""}`, type: "button", "data-from": from, on: { click } };
  const words = el("span", { class: "toast-text" }, from && el("strong", {}, from), el("span", { dir: "auto" }, text));
  const note = el("button", attributes, from && avatar(from), words);
  const toasts = $("toasts");
  while (toasts.children.length >= TOASTS_MAX) toasts.firstElementChild?.remove();
  toasts.append(note);
  announce(from ? `New message from ${from}: ${text}` : text);
  const end = performance.now() + HELD_MS_MAX;
  const go = () => {
    // Stays while the user may be about to click it, but not forever, because the pointer may just rest there.
    if (note.matches(":hover, :focus-visible") && performance.now() < end) setTimeout(go, 1000);
    else note.remove();
  };
  setTimeout(go, SHOWN_MS);
}

/** Removes all toasts. */
export function clearToasts() {
  $("toasts").replaceChildren();
}

/** Removes the toasts of a person whose messages are on screen now.
 * @param {string} from */
export function dismiss(from) {
  for (const note of $("toasts").querySelectorAll(`[data-from="${from}"]`)) note.remove();
}

/** Announces a text to screen readers. It is on the page already.
 * @param {string} text */
export function announce(text) {
  $("announce").textContent = "";
  setTimeout(() => { $("announce").textContent = text; }, 50);
}

export const notifications = {
  /** Whether the browser offers them to this page, which needs TLS or this machine. */
  get possible() {
    return "Notification" in window && window.isSecureContext;
  },

  get on() {
    return this.possible && Notification.permission === "granted" && keep.get("notifications") === true;
  },

  /** Resolves to whether they are on now.
   * @param {boolean} on */
  async turn(on) {
    if (on && this.possible && Notification.permission !== "granted") await Notification.requestPermission();
    keep.set("notifications", on && this.possible && Notification.permission === "granted");
    return this.on;
  },

  /** Calls `open(from)` on a click. Each message alerts, even if it replaces another notification.
   * @param {string} from @param {string} text @param {(from: string) => void} open */
  async show(from, text, open) {
    if (!this.on) return;
    const options = { body: oneLine(text), tag: `quorum-chat/${from}`, renotify: true, data: { from } };
    try {
      const note = new Notification(from, options);
      note.addEventListener("click", () => {
        window.focus();
        note.close();
        open(from);
      });
    } catch {
      await this.showByWorker(from, options);
    }
  },

  /** Phone browsers have them only in service workers. worker.js reports a click.
   * @param {string} from @param {NotificationOptions} options */
  async showByWorker(from, options) {
    try {
      const worker = await navigator.serviceWorker.getRegistration();
      if (!worker) throw new Error("There is no worker.");
      await worker.showNotification(from, options);
    } catch {
      keep.set("notifications", false);
      toast("This browser can't show notifications, so they've been turned off.", { isError: true });
    }
  },

  /** Calls `open` with the person whose notification was clicked, if a worker shows them.
   * @param {(from: string) => void} open */
  onOpened(open) {
    const workers = navigator.serviceWorker;
    workers?.addEventListener("message", ({ data }) => typeof data?.open === "string" && open(data.open));
    workers?.startMessages();
  },
};
