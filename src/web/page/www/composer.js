// Where a message is written. What is typed is kept with every key, for each conversation.
//
// The work of a key is bounded, whatever was pasted: a text that fills the field anyway is not measured, one that is
// too long to be sent is kept now and then, and one that is much too long is not taken.

import { $, isComposing } from "./dom.js";
import { keep } from "./keep.js";
import { toast } from "./toasts.js";
import { charactersLeft, count } from "./text.js";

const BODY_BYTES_MAX = 16 * 1024;
/** The room that is left is shown once it is less than this part of what was written. */
const BODY_NEAR = 0.25;
/** Characters that the field takes: more than can be sent, and no more than browsers lay out with each key in time. */
const TEXT_MAX = 8 * BODY_BYTES_MAX;
/** So many characters fill the field, however wide it is. */
const FULL_CHARS = 4096;
/** How often a text is kept that is too long to be sent. */
const KEEP_MS = 500;

/** There is no Shift beside the Enter of a phone. */
const isTouch = () => matchMedia("(pointer: coarse)").matches;

export class Composer {
  #timer = 0;

  /** `send(body)` says whether it took the text. */
  constructor(client, send, signal) {
    Object.assign(this, { client, send });
    this.name = null;
    this.isClosed = true;
    this.input = $("input");
    const on = (target, event, action) => target.addEventListener(event, action, { signal });
    on(this.input, "input", () => this.#typed());
    on(this.input, "beforeinput", (event) => this.#bound(event));
    on(this.input, "keydown", (event) => this.#key(event));
    on(this.input, "paste", (event) => this.#paste(event));
    on($("composer"), "submit", (event) => { event.preventDefault(); this.#send(); });
    on(window, "pagehide", () => this.keep());
    on(document, "visibilitychange", () => this.#timer && this.keep());
  }

  #draft(name) {
    return `draft/${this.client.me}/${name}`;
  }

  /** Keeps what is typed. Another tab may have sent what both had, and removed it; here it is still being written. */
  keep() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (!this.client.isOver && this.name && this.input.value) keep.set(this.#draft(this.name), this.input.value);
  }

  open(name) {
    this.name = name;
    this.input.value = keep.get(this.#draft(name)) ?? "";
    this.input.enterKeyHint = isTouch() ? "enter" : "send";
    this.#grow();
  }

  close() {
    this.keep();
    this.name = null;
  }

  /** What was typed can still be copied where nothing can be sent. */
  head(placeholder, isClosed) {
    this.isClosed = isClosed;
    this.input.readOnly = isClosed;
    this.input.placeholder = placeholder;
    this.#limits();
  }

  /** Puts a text before what is typed, to be changed. */
  edit(text) {
    this.input.value = [text, this.input.value].filter(Boolean).join("\n");
    this.#typed();
    this.input.focus();
  }

  /** Puts a text where the cursor is, as if it were pasted: it can be undone. */
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
      keep.remove(this.#draft(this.name));
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
    // Without a height, the composer would be small for a moment, and browsers move what is above it.
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
    this.input.setAttribute("aria-invalid", isTooLong);
    $("send").disabled = isTooLong || !this.input.value.trim() || this.isClosed;
  }

  /** Whether so many more characters are too many; says so. */
  #isTooMuch(added) {
    const { value, selectionStart, selectionEnd } = this.input;
    const chars = value.length - (selectionEnd - selectionStart) + added;
    if (chars <= TEXT_MAX) return false;
    const [written, most] = [chars, BODY_BYTES_MAX].map((number) => number.toLocaleString("en"));
    toast(`That's too long: ${written} characters. A message can have ${most} bytes.`, { isError: true });
    return true;
  }

  #bound(event) {
    if (event.data && this.#isTooMuch(event.data.length)) event.preventDefault();
  }

  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
    if (isTouch() && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.#send();
  }

  /** A picture beside a text is another form of it (from a spreadsheet, say). */
  #paste(event) {
    if (!event.clipboardData.files.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    refuseFiles();
  }

  #send() {
    this.#limits();
    if ($("send").disabled || !this.send(this.input.value.trimEnd())) return;
    this.input.value = "";
    this.#typed();
    this.input.focus();
  }
}

export function refuseFiles() {
  toast("Files and images can't be sent here.", { isError: true });
}

/** Without this, a browser opens what is dropped beside a field, in place of the page. A text goes to `onText` when it
 * was dropped in the conversation, and files to `onFiles`. */
export function guardDrops({ onText, onFiles }) {
  const hasFiles = ({ dataTransfer }) => dataTransfer.types.includes("Files");
  const isText = (event) => !hasFiles(event) && event.target.closest?.("input, textarea");
  addEventListener("dragover", (event) => {
    if (!isText(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    if (isText(event)) return;
    event.preventDefault();
    if (hasFiles(event)) onFiles();
    else if (event.target.closest?.("#chat")) onText(event.dataTransfer.getData("text/plain"));
  });
}
