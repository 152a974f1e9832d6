// @ts-check
// Account management: the password, open sessions and privacy.
//
// Does not cover: logout, and the deletion of the account (main.js).

import { Failure } from "./api.js";
import { passwordProblem } from "./auth.js";
import { show } from "./dialogs.js";
import { $, el } from "./dom.js";
import { duration, when } from "./text.js";
import { toast } from "./toasts.js";

/** @typedef {import("./retry.js").Calls} Calls Calls that act for the account. */

/** The words for a failure.
 * @param {unknown} failure */
function wordsFor(failure) {
  const { reason, retryMs, message } = /** @type {Failure} */ (failure);
  if (reason === "LOGIN_THROTTLED") return `Too many attempts. Try again in ${duration(Math.max(retryMs, 1000))}.`;
  return reason === "PASSWORD_WRONG" ? "Wrong password." : message;
}

/** Shows the password dialog until a change succeeds or the user closes it.
 * @param {Calls} calls */
export function changePassword(calls) {
  const ids = ["password-old", "password-new", "password-again"];
  const [old, fresh, again] = ids.map((id) => $(id, HTMLInputElement));
  const dialog = $("password", HTMLDialogElement);
  const [button, problem] = [$("password-yes", HTMLButtonElement), $("password-problem")];
  const clear = () => { for (const field of [old, fresh, again]) field.value = ""; };
  clear();
  problem.textContent = "";
  button.onclick = async () => {
    const differs = fresh.value === again.value ? "" : "Passwords don't match.";
    problem.textContent = passwordProblem(fresh.value) || differs;
    if (problem.textContent) return fresh.focus();
    button.disabled = true;
    try {
      await calls.chat("ChangePassword", { password: old.value, newPassword: fresh.value }, 15_000);
      dialog.close();
      toast("Password changed.");
    } catch (failure) {
      problem.textContent = wordsFor(failure);
      old.select();
    } finally {
      button.disabled = false;
    }
  };
  return show(dialog).then(clear);
}

/** Lists the sessions. Each one except the current can be logged out, and `logOutEverywhere` ends all of them.
 * @param {Calls} calls @param {() => void} logOutEverywhere */
export async function showSessions(calls, logOutEverywhere) {
  const draw = async () => {
    const { sessions } = await calls.chat("ListSessions", {});
    $("sessions-list").replaceChildren(...(sessions ?? []).map((session) => {
      // The last use is unknown if the account has switched off session activity.
      const ms = Number(session.usedMs ?? 0);
      const used = ms ? `Last used ${when(ms)}` : `Opened ${when(Number(session.createdMs))}`;
      if (session.current) return el("li", {}, `${used} (this session)`);
      const end = async () => {
        try {
          await calls.chat("RevokeSession", { sessionId: session.sessionId });
          await draw();
        } catch (failure) {
          toast(`Something went wrong: ${wordsFor(failure)}`, { isError: true });
        }
      };
      return el("li", {}, `${used} `, el("button", { type: "button", on: { click: end } }, "Log out"));
    }));
  };
  try {
    await draw();
  } catch (failure) {
    return toast(`Something went wrong: ${wordsFor(failure)}`, { isError: true });
  }
  if ((await show($("sessions", HTMLDialogElement))) === "everywhere") logOutEverywhere();
}

/** Loads the privacy settings into the settings dialog and saves each change.
 * @param {Calls} calls */
export async function drawPrivacy(calls) {
  const [group, problem] = [$("privacy", HTMLFieldSetElement), $("privacy-problem")];
  const boxes = {
    readReceipts: $("privacy-reads", HTMLInputElement),
    sessionActivity: $("privacy-activity", HTMLInputElement),
  };
  problem.textContent = "";
  // The settings cannot be changed until they are loaded.
  group.disabled = true;
  for (const [name, box] of Object.entries(boxes)) {
    box.onchange = async () => {
      problem.textContent = "";
      box.disabled = true;
      try {
        await calls.chat("SetPrivacy", { [name]: box.checked });
      } catch (failure) {
        box.checked = !box.checked;
        problem.textContent = `Couldn't save: ${wordsFor(failure)}`;
      } finally {
        box.disabled = false;
      }
    };
  }
  try {
    const settings = await calls.chat("GetPrivacy", {});
    boxes.readReceipts.checked = settings.readReceipts ?? false;
    boxes.sessionActivity.checked = settings.sessionActivity ?? false;
    group.disabled = false;
  } catch (failure) {
    problem.textContent = `Couldn't load the privacy settings: ${wordsFor(failure)}`;
  }
}
