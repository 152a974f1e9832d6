// The messages of a conversation: what is shown of them, and which are picked.

import { el, icon } from "./dom.js";
import { mark } from "./people.js";
import { dayName, dayOf, exactly, linked, timeOf } from "./text.js";

/** Messages of one person that are closer than this belong together. */
const TOGETHER_MS = 5 * 60_000;
const LONG_PRESS_MS = 500;
/** A finger is never quite still. */
const STILL_PX = 10;

/** What is to be seen, in order: days, the mark of what is new, messages, and what is not sent yet. `marker` is the seq after which the new
 * ones begin (null: none are). */
export function rowsOf(conversation, waiting, marker, picks, me) {
  const rows = [];
  let [day, latest, previous] = [0, 0, null];
  // Where it belongs may not be loaded yet.
  let isMarked = marker === null || (conversation.hasOlder && marker + 1 < conversation.floor);
  if (conversation.hasOlder) rows.push({ key: "older", version: "", kind: "older", isLoose: true });
  const add = (message, row) => {
    // The clock here may be behind that of the cluster, and there is no way back to yesterday.
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
    rows.push({ ...row, kind: "message", message, isFirst, isPicked: picks.has(row.key), isPicking: picks.active });
    previous = message;
  };
  for (const message of conversation.messages) {
    const isMine = message.sender === me;
    add(message, { key: message.clientId || `seq/${message.seq}`, isMine, state: isMine ? conversation.reached(message, me) : "" });
  }
  // A message is in one place, even while the stream knows of it and the answer to its sending is still under way.
  const saved = new Set(waiting.length ? conversation.messages.map((message) => message.clientId) : []);
  for (const entry of waiting) {
    if (saved.has(entry.id)) continue;
    add({ ...entry, sender: me, seq: Infinity, deleted: false }, { key: entry.id, isMine: true, state: "pending", problem: entry.problem });
  }
  for (const row of rows) {
    if (row.kind === "message") row.version = [row.state, row.message.deleted, row.isFirst, row.isPicked, row.isPicking, row.problem?.message].join();
  }
  return rows;
}

/** About how high a row will be, in pixels, before it was drawn. */
export function heightOf(row, width) {
  if (row.kind !== "message") return 44;
  const perLine = Math.max(12, Math.min(width * 0.75, 620) / 7.6);
  const lines = row.message.body.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / perLine)), 0);
  return 42 + 21 * (lines - 1) + (row.isFirst ? 8 : 0);
}

/** The messages that are picked, to be deleted. */
export class Picks {
  #keys = new Map();

  constructor(onChange) {
    this.onChange = onChange;
    this.active = false;
  }

  has(key) {
    return this.#keys.has(key);
  }

  get messages() {
    return [...this.#keys.values()];
  }

  toggle(key, message) {
    this.active = true;
    if (!this.#keys.delete(key)) this.#keys.set(key, message);
    this.onChange();
  }

  start() {
    this.active = true;
    this.onChange();
  }

  /** Forgets those that are not there any more. */
  keepOnly(keys) {
    for (const key of this.#keys.keys()) if (!keys.has(key)) this.#keys.delete(key);
  }

  end() {
    this.active = false;
    this.#keys.clear();
    this.onChange();
  }
}

/** The element of a row. `on` has what its buttons do: pick, retry, edit, discard, older. */
export function draw(row, on) {
  if (row.kind === "day") return el("li", { class: "day" }, el("span", {}, row.name));
  if (row.kind === "new") return el("li", { class: "new" }, el("span", {}, "New messages"));
  if (row.kind === "older") return el("li", { class: "older" }, el("button", { type: "button", class: "quiet", on: { click: on.older } }, "Load older messages"));
  const { message, isMine, isFirst, state, problem, isPicked, isPicking } = row;
  const canPick = state !== "pending";
  const time = timeOf(message.time);
  const body = message.deleted
    ? el("p", { class: "body gone" }, "This message was deleted")
    : el("p", { class: "body", dir: "auto" }, ...linked(message.body));
  const bubble = el("div", { class: "bubble" },
    el("span", { class: "vh" }, isMine ? "You: " : `${message.sender}: `), body,
    el("span", { class: "meta" }, el("time", { datetime: new Date(message.time).toISOString(), title: exactly(message.time) }, time), state && !message.deleted && !problem ? mark(state) : null));
  const item = el("li", { class: `message${isMine ? " mine" : ""}${isFirst ? " first" : ""}${isPicked ? " picked" : ""}` });
  if (canPick) {
    const label = `Select message: ${message.deleted ? "deleted" : message.body.slice(0, 60)}, ${time}`;
    const box = el("input", { type: "checkbox", class: "pick", "aria-label": label, tabindex: isPicking ? false : -1, on: { change: () => on.pick(row) } });
    box.checked = isPicked;
    item.append(bubble, box);
    if (isPicking) bubble.addEventListener("click", (event) => event.target.closest("a") || on.pick(row));
    else longPress(bubble, () => on.pick(row));
  } else item.append(bubble);
  if (problem) item.append(trouble(row, on));
  return item;
}

function trouble({ message, problem }, on) {
  const words = { USER_DELETED: `${message.to}’s account was deleted.`, USER_UNKNOWN: `Nobody is called ${message.to}.` };
  const button = (text, action) => el("button", { type: "button", class: "quiet", on: { click: () => action(message) } }, text);
  return el("div", { class: "trouble" }, icon("alert"), el("span", {}, `Not sent: ${words[problem.reason] ?? problem.message}`),
    button("Try again", on.retry), button("Edit", on.edit), button("Discard", on.discard));
}

function longPress(element, action) {
  let [timer, start] = [0, null];
  const stop = () => clearTimeout(timer);
  element.addEventListener("pointerdown", (event) => {
    start = event;
    if (event.pointerType === "touch") timer = setTimeout(action, LONG_PRESS_MS);
  });
  element.addEventListener("pointermove", (event) => Math.hypot(event.x - start?.x, event.y - start?.y) > STILL_PX && stop());
  for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, stop);
}
