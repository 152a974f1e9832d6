// Account management: the password, open sessions and privacy.

import { show } from "./dialogs.js";
import { passwordProblem } from "./auth.js";
import { $, el } from "./dom.js";
import { duration, when } from "./text.js";
import { toast } from "./toasts.js";

const WORDS = { PASSWORD_WRONG: "Wrong password." };

function told(failure) {
  if (failure.reason === "LOGIN_THROTTLED") return `Too many attempts. Try again in ${duration(Math.max(failure.retryMs, 1000))}.`;
  return WORDS[failure.reason] ?? failure.message;
}

/** Shows the password dialog until a change succeeds or the user closes it. `calls` must act for the account. */
export function changePassword(calls) {
  const [old, fresh, again] = ["password-old", "password-new", "password-again"].map($);
  const [dialog, button, problem] = [$("password"), $("password-yes"), $("password-problem")];
  const clear = () => { for (const field of [old, fresh, again]) field.value = ""; };
  clear();
  problem.textContent = "";
  button.onclick = async () => {
    problem.textContent = passwordProblem(fresh.value) || (fresh.value === again.value ? "" : "Passwords don't match.");
    if (problem.textContent) return fresh.focus();
    button.disabled = true;
    try {
      await calls.chat("ChangePassword", { password: old.value, newPassword: fresh.value }, 15_000);
      dialog.close();
      toast("Password changed.");
    } catch (failure) {
      problem.textContent = told(failure);
      old.select();
    } finally {
      button.disabled = false;
    }
  };
  return show(dialog).then(clear);
}

/** Lists the sessions. Each one except the current can be logged out, and `logOutEverywhere` ends all of them. */
export async function showSessions(calls, logOutEverywhere) {
  const draw = async () => {
    const { sessions = [] } = await calls.chat("ListSessions", {});
    $("sessions-list").replaceChildren(...sessions.map((session) => {
      // The last use is unknown if the account has switched off session activity.
      const ms = Number(session.usedMs ?? 0);
      const used = ms ? `Last used ${when(ms)}` : `Opened ${when(Number(session.createdMs))}`;
      if (session.current) return el("li", {}, `${used} (this session)`);
      const end = async () => {
        try {
          await calls.chat("RevokeSession", { sessionId: session.sessionId });
          await draw();
        } catch (failure) {
          toast(`Something went wrong: ${told(failure)}`, { isError: true });
        }
      };
      return el("li", {}, `${used} `, el("button", { type: "button", on: { click: end } }, "Log out"));
    }));
  };
  try {
    await draw();
  } catch (failure) {
    return toast(`Something went wrong: ${told(failure)}`, { isError: true });
  }
  if ((await show($("sessions"))) === "everywhere") logOutEverywhere();
}

const SETTINGS = [["privacy-reads", "readReceipts"], ["privacy-activity", "sessionActivity"]];

/** Loads the privacy settings into the settings dialog and saves each change. */
export async function drawPrivacy(calls) {
  const [group, problem] = [$("privacy"), $("privacy-problem")];
  problem.textContent = "";
  // The settings cannot be changed until they are loaded.
  group.disabled = true;
  const shown = SETTINGS.map(([id, name]) => [$(id), name]);
  for (const [box, name] of shown) {
    box.onchange = async () => {
      problem.textContent = "";
      box.disabled = true;
      try {
        await calls.chat("SetPrivacy", { [name]: box.checked });
      } catch (failure) {
        box.checked = !box.checked;
        problem.textContent = `Couldn't save: ${told(failure)}`;
      } finally {
        box.disabled = false;
      }
    };
  }
  try {
    const settings = await calls.chat("GetPrivacy", {});
    for (const [box, name] of shown) box.checked = settings[name] ?? false;
    group.disabled = false;
  } catch (failure) {
    problem.textContent = `Couldn't load the privacy settings: ${told(failure)}`;
  }
}
