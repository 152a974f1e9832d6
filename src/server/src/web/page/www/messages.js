// @ts-check
// The rows of a conversation and their elements.
//
// Does not cover: which rows are in the document (list.js), and the words of a text (text.js).

import { el, icon, targetOf } from "./dom.js";
import { mark } from "./people.js";
import { dayName, dayOf, exactly, head, linked, timeOf } from "./text.js";

/** Messages of one person within this time belong together. */
const TOGETHER_MS = 5 * 60_000;
/** Browsers select text a little earlier. */
const LONG_PRESS_MS = 600;
/** A finger is never quite still. */
const STILL_PX = 10;

/**
 * @typedef {import("./api.js").Failure} Failure
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./conversation.js").Message} Message
 * @typedef {import("./layout.js").Row} ListRow
 * @typedef {import("./people.js").State} State
 */
/** A message as it is shown. One that waits has a recipient, and `Infinity` as its seq.
 * @typedef {Omit<Message, "clientId"> & { to?: string }} Shown */
/** @typedef {object} Facts What only the row of a message has.
 * @property {"message"} kind
 * @property {Shown} message
 * @property {boolean} isMine
 * @property {boolean} isFirst Whether another person's message, or a pause, is before it.
 * @property {State | ""} state
 * @property {Failure | null} problem
 * @property {boolean} isPicked
 * @property {boolean} isPicking Whether messages are being picked.
 * @property {boolean} isLeaving Whether it is being deleted.
 * @property {"found" | "current"} [found] */
/** @typedef {ListRow & Facts} MessageRow */
/** @typedef {ListRow & ({ kind: "older" } | { kind: "new" } | { kind: "day", name: string } | Facts)} Row */
/** What the buttons do.
 * @typedef {object} Actions
 * @property {(row: MessageRow) => void} pick
 * @property {(message: Shown) => void} retry
 * @property {(message: Shown) => void} edit
 * @property {(message: Shown) => void} discard
 * @property {() => void} older */

/** The rows in order: days, the mark of new messages, messages, and unsent messages. `marker` is the seq before the
 * first new message (null if there is none).
 * @param {Conversation} conversation @param {import("./outbox.js").Entry[]} waiting @param {number | null} marker
 * @param {import("./picks.js").Picks} picks @param {string} me */
export function rowsOf(conversation, waiting, marker, picks, me) {
  /** @type {Row[]} */
  const rows = [];
  let [day, latest] = [0, 0];
  /** @type {Shown | null} */
  let previous = null;
  // Its position may not be loaded yet.
  let isMarked = marker === null || (conversation.hasOlder && marker + 1 < conversation.floor);
  if (conversation.hasOlder) rows.push({ key: "older", version: "", kind: "older", isLoose: true });
  /** @param {Shown} message @param {string} key @param {State | ""} state @param {Failure | null} problem */
  const add = (message, key, state, problem = null) => {
    // The local clock may be behind the cluster's, and days must not go backwards.
    const time = Math.max(message.time, latest);
    latest = time;
    if (dayOf(time) !== day) {
      day = dayOf(time);
      rows.push({ key: `day/${day}`, version: dayName(time), kind: "day", isLoose: true, name: dayName(time) });
      previous = null;
    }
    if (!isMarked && message.seq > Number(marker) && message.sender !== me) {
      isMarked = true;
      rows.push({ key: "new", version: "", kind: "new", isLoose: true });
      previous = null;
    }
    const isMine = message.sender === me;
    const isFirst = previous?.sender !== message.sender || message.time - previous.time > TOGETHER_MS;
    const [isPicked, isPicking, isLeaving] = [picks.has(key), picks.active, picks.isLeaving(message)];
    const version = [state, message.deleted, isFirst, isPicked, isPicking, isLeaving, problem?.message].join();
    const flags = { isMine, isFirst, isPicked, isPicking, isLeaving };
    rows.push({ key, version, kind: "message", message, state, problem, ...flags });
    previous = message;
  };
  for (const message of conversation.messages) {
    const state = message.sender === me ? conversation.reached(message, me) : "";
    add(message, message.clientId || `seq/${message.seq}`, state);
  }
  // The stream may deliver a message before the answer to its send call arrives. It must appear once.
  const saved = new Set(waiting.length ? conversation.messages.map((message) => message.clientId) : []);
  for (const entry of waiting) {
    if (saved.has(entry.id)) continue;
    add({ ...entry, sender: me, seq: Infinity, deleted: false }, entry.id, "pending", entry.problem);
  }
  return rows;
}

/** The estimated height of a row in pixels, before it is drawn.
 * @param {Row} row @param {number} width */
export function heightOf(row, width) {
  if (row.kind !== "message") return 44;
  const perLine = Math.max(12, Math.min(width * 0.75, 620) / 7.6);
  let lines = 0;
  for (const line of row.message.body.split("\n")) lines += Math.max(1, Math.ceil(line.length / perLine));
  return 42 + 21 * (lines - 1) + (row.isFirst ? 8 : 0);
}

/** Returns the element of a row, which may be `shown`.
 * @param {Row} row @param {Actions} on @param {HTMLElement} [shown] */
export function draw(row, on, shown) {
  if (row.kind === "day") return el("li", { class: "day" }, el("span", {}, row.name));
  if (row.kind === "new") return el("li", { class: "new" }, el("span", {}, "New messages"));
  if (row.kind === "older") {
    const load = el("button", { type: "button", class: "quiet", on: { click: on.older } }, "Load older messages");
    return el("li", { class: "older" }, load);
  }
  let parts = shown && drawn.get(shown);
  if (!parts || parts.body !== row.message.body || parts.isDeleted !== row.message.deleted) parts = begin(row, on);
  parts.row = row;
  finish(parts, on);
  return parts.item;
}

/** @typedef {object} Parts The parts of a message, and what they show.
 * @property {MessageRow} row
 * @property {string} body
 * @property {boolean} isDeleted
 * @property {HTMLElement} item
 * @property {HTMLElement} meta
 * @property {HTMLInputElement | null} box
 * @property {Failure | null} problem
 * @property {HTMLElement | null} trouble */

/** The parts of a message, by element. They are updated in place, which keeps a selection or a touch.
 * @type {WeakMap<HTMLElement, Parts>} */
const drawn = new WeakMap();

/** @param {MessageRow} row @param {Actions} on */
function begin(row, on) {
  const { message, isMine } = row;
  const body = message.deleted
    ? el("p", { class: "body gone" }, "This message was deleted")
    : el("p", { class: "body" }, ...linked(message.body));
  const meta = el("span", { class: "meta" });
  const bubble = el("div", { class: "bubble" },
    el("span", { class: "vh" }, isMine ? "You: " : `${message.sender}: `),
    el("div", { class: "text", dir: message.deleted ? false : "auto" }, body, meta));
  const kept = { body: message.body, isDeleted: message.deleted };
  /** @type {Parts} */
  const parts = { ...kept, row, item: el("li", {}, bubble), meta, box: null, problem: null, trouble: null };
  drawn.set(parts.item, parts);
  bubble.addEventListener("click", (event) => {
    if (parts.row.isPicking && canPick(parts.row) && !targetOf(event).closest("a")) on.pick(parts.row);
  });
  longPress(bubble, () => !parts.row.isPicking && canPick(parts.row) && on.pick(parts.row));
  return parts;
}

/** A message that is not saved yet, or is being deleted, cannot be picked.
 * @param {MessageRow} row */
const canPick = (row) => row.state !== "pending" && !row.isLeaving;

/** @param {Parts} parts @param {Actions} on */
function finish(parts, on) {
  const { item, meta, row } = parts;
  const { message, isMine, isFirst, state, problem, isPicked, isPicking, isLeaving } = row;
  const time = timeOf(message.time);
  const classes = [isMine && "mine", isFirst && "first", isPicked && "picked", isLeaving && "leaving", row.found];
  item.className = ["message", ...classes.filter(Boolean)].join(" ");
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
  parts.problem = problem;
  parts.trouble = problem && trouble(message, problem, on);
  if (parts.trouble) item.append(parts.trouble);
}

/** @param {Parts} parts @param {Actions} on */
function pickBox(parts, on) {
  const box = el("input", { type: "checkbox", class: "pick", on: { change: () => on.pick(parts.row) } });
  parts.item.children[0].after(box);
  return box;
}

/** @param {Shown} message @param {Failure} problem @param {Actions} on */
function trouble(message, problem, on) {
  /** @type {Record<string, string>} */
  const words = {
    USER_DELETED: `${message.to}'s account was deleted.`,
    USER_UNKNOWN: `no account named ${message.to}.`,
  };
  /** @param {string} text @param {(message: Shown) => void} action */
  const button = (text, action) =>
    el("button", { type: "button", class: "quiet", on: { click: () => action(message) } }, text);
  return el("div", { class: "trouble" },
    icon("alert"), el("span", {}, `Not sent: ${words[problem.reason] ?? problem.message}`),
    button("Try again", on.retry), button("Edit", on.edit), button("Discard", on.discard));
}

/** Detects a long press, unless the browser selects text by it.
 * @param {HTMLElement} element @param {() => void} action */
function longPress(element, action) {
  let timer = 0;
  /** @type {PointerEvent | null} */
  let start = null;
  const stop = () => clearTimeout(timer);
  const press = () => {
    const selection = getSelection();
    if (selection && !selection.isCollapsed && selection.containsNode(element, true)) return;
    // Another message may be under the finger by the time it is lifted.
    addEventListener("click", swallow, { capture: true });
    const stopSwallowing = () => removeEventListener("click", swallow, { capture: true });
    addEventListener("pointerdown", stopSwallowing, { capture: true, once: true });
    action();
  };
  element.addEventListener("pointerdown", (event) => {
    start = event;
    stop();
    if (event.pointerType !== "touch" || !event.isPrimary || targetOf(event).closest("a")) return;
    timer = setTimeout(press, LONG_PRESS_MS);
  });
  element.addEventListener("pointermove", ({ x, y }) => {
    if (start && Math.hypot(x - start.x, y - start.y) > STILL_PX) stop();
  });
  for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, stop);
}

/** @param {Event} event */
function swallow(event) {
  event.preventDefault();
  event.stopPropagation();
}
