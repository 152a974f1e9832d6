// What a person does with the own account: another password, the sessions that are open, and privacy.

import { show } from "./ask.js";
import { passwordProblem } from "./auth.js";
import { $, el } from "./dom.js";
import { duration, when } from "./text.js";
import { toast } from "./toasts.js";

const WORDS = { PASSWORD_WRONG: "Wrong password." };

function told(failure) {
  if (failure.reason === "LOGIN_THROTTLED") return `Too many attempts. Try again in ${duration(Math.max(failure.retryMs, 1000))}.`;
  return WORDS[failure.reason] ?? failure.message;
}

/** Asks for the passwords until they are good; `calls` are those of the account. */
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

/** Shows the sessions; each but the own one can be logged out, and by `logOutEverywhere` all together. */
export async function showSessions(calls, logOutEverywhere) {
  const draw = async () => {
    const { sessions = [] } = await calls.chat("ListSessions", {});
    $("sessions-list").replaceChildren(...sessions.map((session) => {
      // Nothing is recorded of the use where the account has that switched off.
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

/** Shows the privacy settings in the dialog that opens, and keeps what is changed there. */
export async function drawPrivacy(calls) {
  const [group, problem] = [$("privacy"), $("privacy-problem")];
  problem.textContent = "";
  // Until they are known, nothing can be changed.
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
