// @ts-check
// Modal dialogs. A <dialog> keeps the focus, closes on Escape, and restores the focus.
//
// Does not cover: the other contents of the dialogs (account.js, cluster.js, main.js).

import { $, el, targetOf } from "./dom.js";

/** Shows a dialog. Resolves to its return value, which is "" if it was dismissed.
 * @param {HTMLDialogElement} dialog @returns {Promise<string>} */
export function show(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    /** @type {HTMLElement | null} */
    const button = targetOf(event).closest("[data-close]");
    // A click on the backdrop has the dialog itself as its target.
    if (button || event.target === dialog) dialog.close(button?.dataset.close ?? "");
  });
}

/** Asks for confirmation of an irreversible action.
 * @param {{ title: string, text: string, action: string }} words */
export async function confirm({ title, text, action }) {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = action;
  return (await show($("ask", HTMLDialogElement))) === "yes";
}

/** Asks for confirmation with the password. Resolves to it, or to "" if the dialog was dismissed.
 * @param {{ title: string, text: string, action: string }} words */
export async function confirmWithPassword(words) {
  const button = $("ask-yes", HTMLButtonElement);
  const attributes = { autocomplete: "current-password", autocapitalize: "off", spellcheck: "false" };
  const typed = el("input", { id: "ask-typed", type: "password", ...attributes });
  const check = () => { button.disabled = !typed.value; };
  typed.addEventListener("input", check);
  typed.addEventListener("keydown", (event) => event.key === "Enter" && !button.disabled && button.click());
  $("ask-field").replaceChildren(el("label", { for: "ask-typed" }, "Your password"), typed);
  check();
  const isSure = await confirm(words);
  $("ask-field").replaceChildren();
  button.disabled = false;
  return isSure ? typed.value : "";
}
