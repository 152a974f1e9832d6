// Modal dialogs. A <dialog> keeps the focus, closes on Escape, and restores the focus.

import { $, el } from "./dom.js";

/** Shows a dialog. Resolves to its return value, which is "" if it was dismissed. */
export function show(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("[data-close]");
    // A click on the backdrop has the dialog itself as its target.
    if (button || event.target === dialog) dialog.close(button?.dataset.close ?? "");
  });
}

/** Asks for confirmation of an irreversible action. The user must first type the text `type`, if any. With `password`,
 * it resolves to the typed password. */
export async function confirm({ title, text, action, type = null, password = false }) {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  const button = $("ask-yes");
  button.textContent = action;
  const typed = el("input", { id: "ask-typed", autocomplete: password ? "current-password" : "off", autocapitalize: "off", spellcheck: "false", type: password ? "password" : "text" });
  const check = () => { button.disabled = password ? !typed.value : type !== null && typed.value !== type; };
  typed.addEventListener("input", check);
  typed.addEventListener("keydown", (event) => event.key === "Enter" && !button.disabled && button.click());
  $("ask-field").replaceChildren(...(type === null && !password ? [] : [el("label", { for: "ask-typed" }, password ? "Your password" : `Type ${type} to confirm`), typed]));
  check();
  const sure = (await show($("ask"))) === "yes";
  $("ask-field").replaceChildren();
  return sure && password ? typed.value : sure;
}
