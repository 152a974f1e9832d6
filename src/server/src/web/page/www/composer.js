// @ts-check
// The message input. The draft of a conversation is kept on each key stroke.
//
// The work per key stroke is bounded, whatever was pasted. A text that fills the field anyway is not measured. One that
// is too long to send is kept less often, and one that is much too long is rejected.
//
// Does not cover: sending (outbox.js).

import { $, isComposing, listening, targetOf } from "./dom.js";
import { keep } from "./storage.js";
import { toast } from "./toasts.js";
import { charactersLeft, count } from "./text.js";

const BODY_BYTES_MAX = 16 * 1024;
/** The remaining room is shown once it is less than this fraction of the text. */
const BODY_NEAR = 0.25;
/** The most characters that the field accepts: more than can be sent, but few enough to lay out on each key stroke. */
const TEXT_MAX = 8 * BODY_BYTES_MAX;
/** This many characters fill the field at any width. */
const FULL_CHARS = 4096;
/** How often a text that is too long to send is kept. */
const KEEP_MS = 500;

/** Phone keyboards have no Shift+Enter. */
const isTouch = () => matchMedia("(pointer: coarse)").matches;

export class Composer {
  #timer = 0;

  /** `send` returns whether it accepted the text.
   * @param {import("./client.js").Client} client @param {(body: string) => boolean} send
   * @param {AbortSignal} signal */
  constructor(client, send, signal) {
    this.client = client;
    this.send = send;
    /** The recipient of the text, or "" if no conversation is open. */
    this.name = "";
    this.isClosed = true;
    this.input = $("input", HTMLTextAreaElement);
    this.button = $("send", HTMLButtonElement);
    const on = listening(signal);
    on(this.input, "input", () => this.#typed());
    on(this.input, "beforeinput", (event) => this.#bound(event));
    on(this.input, "keydown", (event) => this.#key(event));
    on(this.input, "paste", (event) => this.#paste(event));
    on($("composer"), "submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    on(window, "pagehide", () => this.keep());
    on(document, "visibilitychange", () => this.#timer && this.keep());
  }

  get #draft() {
    return `draft/${this.client.me}/${this.name}`;
  }

  /** Keeps the draft, even if another tab has sent and removed it, because it is still being written here. */
  keep() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (!this.client.isOver && this.name && this.input.value) keep.set(this.#draft, this.input.value);
  }

  /** @param {string} name */
  open(name) {
    this.name = name;
    this.input.value = keep.get(this.#draft) ?? "";
    this.input.enterKeyHint = isTouch() ? "enter" : "send";
    this.#grow();
  }

  close() {
    this.keep();
    this.name = "";
  }

  /** A closed field is read-only, so its text can still be copied.
   * @param {string} placeholder @param {boolean} isClosed */
  head(placeholder, isClosed) {
    this.isClosed = isClosed;
    this.input.readOnly = isClosed;
    this.input.placeholder = placeholder;
    this.#limits();
  }

  /** Inserts a text before the draft, for editing.
   * @param {string} text */
  edit(text) {
    this.input.value = [text, this.input.value].filter(Boolean).join("\n");
    this.#typed();
    this.input.focus();
  }

  /** Inserts a text at the cursor like a paste, so it can be undone.
   * @param {string} text */
  insert(text) {
    if (this.isClosed || !text) return;
    this.input.focus();
    if (this.#isTooMuch(text.length)) return;
    if (!document.execCommand("insertText", false, text)) {
      this.input.setRangeText(text, this.input.selectionStart, this.input.selectionEnd, "end");
      this.#typed();
    }
  }

  #typed() {
    if (!this.input.value) {
      clearTimeout(this.#timer);
      this.#timer = 0;
      keep.remove(this.#draft);
    } else if (this.input.value.length <= BODY_BYTES_MAX) this.keep();
    else this.#timer ||= setTimeout(() => this.keep(), KEEP_MS);
    this.#grow();
    this.#limits();
  }

  #grow() {
    const { style } = this.input;
    if (this.input.value.length > FULL_CHARS) {
      style.height = "100vh";
      return;
    }
    // Without this, the composer would be small for a moment, and browsers would move the content above it.
    const composer = $("composer");
    composer.style.minHeight = `${composer.offsetHeight}px`;
    style.height = "auto";
    style.height = `${this.input.scrollHeight}px`;
    composer.style.minHeight = "";
  }

  #limits() {
    const text = this.input.value.trimEnd();
    const left = charactersLeft(text, BODY_BYTES_MAX);
    const isTooLong = left < 0;
    const room = left < text.length * BODY_NEAR ? `${count(left, "character")} left` : "";
    $("limit").textContent = isTooLong ? `Message too long by ${count(-left, "character")}` : room;
    $("limit").classList.toggle("over", isTooLong);
    this.input.setAttribute("aria-invalid", String(isTooLong));
    this.button.disabled = isTooLong || !this.input.value.trim() || this.isClosed;
  }

  /** Returns whether `added` more characters are too many. Shows an error if so.
   * @param {number} added */
  #isTooMuch(added) {
    const { value, selectionStart, selectionEnd } = this.input;
    const chars = value.length - (selectionEnd - selectionStart) + added;
    if (chars <= TEXT_MAX) return false;
    const [written, most] = [chars, BODY_BYTES_MAX].map((number) => number.toLocaleString("en"));
    toast(`That's too long: ${written} characters. A message can have ${most} bytes.`, { isError: true });
    return true;
  }

  /** @param {InputEvent} event */
  #bound(event) {
    if (event.data && this.#isTooMuch(event.data.length)) event.preventDefault();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
    if (isTouch() && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.#send();
  }

  /** A picture that comes with text is another form of it (from a spreadsheet, for example).
   * @param {ClipboardEvent} event */
  #paste(event) {
    const { clipboardData: data } = event;
    if (!data?.files.length || data.types.includes("text/plain")) return;
    event.preventDefault();
    refuseFiles();
  }

  #send() {
    this.#limits();
    if (this.button.disabled || !this.send(this.input.value.trimEnd())) return;
    this.input.value = "";
    this.#typed();
    this.input.focus();
  }
}

export function refuseFiles() {
  toast("Files and images can't be sent here.", { isError: true });
}

/** Prevents browsers from opening an item that is dropped outside a field in place of the page. Text dropped in the
 * conversation goes to `onText`, and files go to `onFiles`.
 * @param {{ onText: (text: string) => void, onFiles: () => void }} actions */
export function guardDrops({ onText, onFiles }) {
  /** @param {DragEvent} event */
  const hasFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
  /** The target may be the document.
   * @param {DragEvent} event @param {string} selector */
  const isIn = (event, selector) => targetOf(event).closest?.(selector);
  /** @param {DragEvent} event */
  const isText = (event) => !hasFiles(event) && isIn(event, "input, textarea");
  addEventListener("dragover", (event) => {
    if (!isText(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    if (isText(event)) return;
    event.preventDefault();
    if (hasFiles(event)) onFiles();
    else if (isIn(event, "#chat")) onText(event.dataTransfer?.getData("text/plain") ?? "");
  });
}
