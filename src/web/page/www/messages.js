// The rows of a conversation and their elements.

import { el, icon } from "./dom.js";
import { mark } from "./people.js";
import { dayName, dayOf, exactly, head, linked, timeOf } from "./text.js";

/** Messages of one person within this time belong together. */
const TOGETHER_MS = 5 * 60_000;
/** Browsers select text a little earlier. */
const LONG_PRESS_MS = 600;
/** A finger is never quite still. */
const STILL_PX = 10;

/** The rows in order: days, the mark of new messages, messages, and unsent messages. `marker` is the seq before the
 * first new message (null if there is none). */
export function rowsOf(conversation, waiting, marker, picks, me) {
  const rows = [];
  let [day, latest, previous] = [0, 0, null];
  // Its position may not be loaded yet.
  let isMarked = marker === null || (conversation.hasOlder && marker + 1 < conversation.floor);
  if (conversation.hasOlder) rows.push({ key: "older", version: "", kind: "older", isLoose: true });
  const add = (message, row) => {
    // The local clock may be behind the cluster's, and days must not go backwards.
    const time = Math.max(message.time, latest);
    latest = time;
    if (dayOf(time) !== day) {
      day = dayOf(time);
      rows.push({ key: `day/${day}`, version: dayName(time), kind: "day", isLoose: true, name: dayName(time) });
      previous = null;
    }
    if (!isMarked && message.seq > marker && message.sender !== me) {
      isMarked = true;
      rows.push({ key: "new", version: "", kind: "new", isLoose: true });
      previous = null;
    }
    const isFirst = previous?.sender !== message.sender || message.time - previous.time > TOGETHER_MS;
    const picked = { isPicked: picks.has(row.key), isPicking: picks.active, isLeaving: picks.isLeaving(message) };
    rows.push({ ...row, ...picked, kind: "message", message, isFirst });
    previous = message;
  };
  for (const message of conversation.messages) {
    const isMine = message.sender === me;
    add(message, { key: message.clientId || `seq/${message.seq}`, isMine, state: isMine ? conversation.reached(message, me) : "" });
  }
  // The stream may deliver a message before the answer to its send call arrives. It must appear once.
  const saved = new Set(waiting.length ? conversation.messages.map((message) => message.clientId) : []);
  for (const entry of waiting) {
    if (saved.has(entry.id)) continue;
    add({ ...entry, sender: me, seq: Infinity, deleted: false }, { key: entry.id, isMine: true, state: "pending", problem: entry.problem });
  }
  for (const row of rows) {
    if (row.kind !== "message") continue;
    const { state, message, isFirst, isPicked, isPicking, isLeaving, problem } = row;
    row.version = [state, message.deleted, isFirst, isPicked, isPicking, isLeaving, problem?.message].join();
  }
  return rows;
}

/** The estimated height of a row in pixels, before it is drawn. */
export function heightOf(row, width) {
  if (row.kind !== "message") return 44;
  const perLine = Math.max(12, Math.min(width * 0.75, 620) / 7.6);
  const lines = row.message.body.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / perLine)), 0);
  return 42 + 21 * (lines - 1) + (row.isFirst ? 8 : 0);
}

/** Returns the element of a row, which may be `shown`. `on` holds the actions pick, retry, edit, discard and older. */
export function draw(row, on, shown = null) {
  if (row.kind === "day") return el("li", { class: "day" }, el("span", {}, row.name));
  if (row.kind === "new") return el("li", { class: "new" }, el("span", {}, "New messages"));
  if (row.kind === "older") {
    const load = el("button", { type: "button", class: "quiet", on: { click: on.older } }, "Load older messages");
    return el("li", { class: "older" }, load);
  }
  const was = drawn.get(shown);
  const isSame = was?.body === row.message.body && was.isDeleted === row.message.deleted;
  const parts = isSame ? was : begin(row, on);
  parts.row = row;
  finish(parts, on);
  return parts.item;
}

/** The parts of a message, by element. They are updated in place, which keeps a selection or a touch. */
const drawn = new WeakMap();

function begin({ message, isMine }, on) {
  const body = message.deleted
    ? el("p", { class: "body gone" }, "This message was deleted")
    : el("p", { class: "body" }, ...linked(message.body));
  const meta = el("span", { class: "meta" });
  const bubble = el("div", { class: "bubble" },
    el("span", { class: "vh" }, isMine ? "You: " : `${message.sender}: `),
    el("div", { class: "text", dir: message.deleted ? false : "auto" }, body, meta));
  const kept = { body: message.body, isDeleted: message.deleted };
  const parts = { ...kept, item: el("li", {}, bubble), meta, box: null, problem: null, trouble: null };
  drawn.set(parts.item, parts);
  bubble.addEventListener("click", (event) => {
    if (parts.row.isPicking && canPick(parts.row) && !event.target.closest("a")) on.pick(parts.row);
  });
  longPress(bubble, () => !parts.row.isPicking && canPick(parts.row) && on.pick(parts.row));
  return parts;
}

/** A message that is not saved yet, or is being deleted, cannot be picked. */
const canPick = (row) => row.state !== "pending" && !row.isLeaving;

function finish(parts, on) {
  const { item, meta, row } = parts;
  const { message, isMine, isFirst, state, problem, isPicked, isPicking, isLeaving } = row;
  const time = timeOf(message.time);
  const classes = { mine: isMine, first: isFirst, picked: isPicked, leaving: isLeaving, [row.found ?? ""]: row.found };
  item.className = ["message", ...Object.keys(classes).filter((name) => classes[name])].join(" ");
  const moment = { datetime: new Date(message.time).toISOString(), title: exactly(message.time) };
  const marks = state && !message.deleted && !problem ? [mark(state)] : [];
  meta.replaceChildren(...(isLeaving ? ["Deleting…"] : []), el("time", moment, time), ...marks);
  if (!canPick(row)) {
    parts.box?.remove();
    parts.box = null;
  } else {
    parts.box ??= pickBox(parts, on);
    parts.box.checked = isPicked;
    const words = message.deleted ? "deleted" : head(message.body, 60);
    parts.box.setAttribute("aria-label", `Select message: ${words}, ${time}`);
    // Screen readers find each text once, except during picking.
    parts.box.tabIndex = isPicking ? 0 : -1;
    if (isPicking) parts.box.removeAttribute("aria-hidden");
    else parts.box.setAttribute("aria-hidden", "true");
  }
  if (parts.problem === problem) return;
  parts.trouble?.remove();
  Object.assign(parts, { problem, trouble: problem ? trouble(row, on) : null });
  if (problem) item.append(parts.trouble);
}

function pickBox(parts, on) {
  const box = el("input", { type: "checkbox", class: "pick", on: { change: () => on.pick(parts.row) } });
  parts.item.children[0].after(box);
  return box;
}

function trouble({ message, problem }, on) {
  const words = {
    USER_DELETED: `${message.to}'s account was deleted.`,
    USER_UNKNOWN: `no account named ${message.to}.`,
  };
  const button = (text, action) => el("button", { type: "button", class: "quiet", on: { click: () => action(message) } }, text);
  return el("div", { class: "trouble" }, icon("alert"), el("span", {}, `Not sent: ${words[problem.reason] ?? problem.message}`),
    button("Try again", on.retry), button("Edit", on.edit), button("Discard", on.discard));
}

/** Detects a long press, unless the browser selects text by it. */
function longPress(element, action) {
  let [timer, start] = [0, null];
  const stop = () => clearTimeout(timer);
  const press = () => {
    const selection = getSelection();
    if (!selection.isCollapsed && selection.containsNode(element, true)) return;
    // Another message may be under the finger by the time it is lifted.
    addEventListener("click", swallow, { capture: true });
    const stopSwallowing = () => removeEventListener("click", swallow, { capture: true });
    addEventListener("pointerdown", stopSwallowing, { capture: true, once: true });
    action();
  };
  element.addEventListener("pointerdown", (event) => {
    start = event;
    stop();
    if (event.pointerType !== "touch" || !event.isPrimary || event.target.closest("a")) return;
    timer = setTimeout(press, LONG_PRESS_MS);
  });
  element.addEventListener("pointermove", (event) => Math.hypot(event.x - start?.x, event.y - start?.y) > STILL_PX && stop());
  for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, stop);
}

function swallow(event) {
  event.preventDefault();
  event.stopPropagation();
}
