// @ts-check
// The selection of messages, and the bar that deletes them.
//
// Does not cover: the calls that delete (sync.js).

import { confirm } from "./dialogs.js";
import { $, listening } from "./dom.js";
import { count } from "./text.js";
import { announce, toast } from "./toasts.js";

/** @typedef {Pick<import("./conversation.js").Message, "id" | "seq" | "sender" | "deleted">} Picked */
/** @typedef {import("./api.js").Failure} Failure */
/** The chat view, as its parts use it.
 * @typedef {object} View
 * @property {import("./client.js").Client} client
 * @property {import("./conversation.js").Conversation | null} conversation
 * @property {HTMLElement} box
 * @property {() => void} soon Draws the messages again. */

/** The messages that are picked for deletion, and those that are being deleted. */
export class Picks {
  /** @type {Map<string, Picked>} */
  #keys = new Map();
  /** @type {Set<string>} */
  #leaving = new Set();

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.onChange = onChange;
    this.active = false;
  }

  /** @param {string} key */
  has(key) {
    return this.#keys.has(key);
  }

  get messages() {
    return [...this.#keys.values()];
  }

  /** @param {string} key @param {Picked} message */
  toggle(key, message) {
    this.active = true;
    if (!this.#keys.delete(key)) this.#keys.set(key, message);
    this.onChange();
  }

  start() {
    this.active = true;
    this.onChange();
  }

  /** Drops messages that no longer exist.
   * @param {Set<string>} keys */
  keepOnly(keys) {
    for (const key of this.#keys.keys()) if (!keys.has(key)) this.#keys.delete(key);
  }

  end() {
    this.active = false;
    this.#keys.clear();
    this.onChange();
  }

  /** @param {{ id: string }} message */
  isLeaving({ id }) {
    return this.#leaving.has(id);
  }

  /** Marks the picked messages as being deleted, until `stay` is called with the result. */
  leave() {
    const { messages } = this;
    for (const { id } of messages) this.#leaving.add(id);
    this.end();
    return messages;
  }

  /** @param {Picked[]} messages */
  stay(messages) {
    for (const { id } of messages) this.#leaving.delete(id);
    this.onChange();
  }
}

/** The bar of a chat view for picking and deleting. `chat` provides the open conversation. */
export class PickBar {
  /** @param {View} chat @param {AbortSignal} signal */
  constructor(chat, signal) {
    this.chat = chat;
    this.picks = new Picks(() => this.#changed());
    const on = listening(signal);
    on($("pick"), "click", () => (this.picks.active ? this.picks.end() : this.picks.start()));
    on($("pick-cancel"), "click", () => this.end());
    on($("pick-me"), "click", () => this.#delete(false));
    on($("pick-all"), "click", () => this.#delete(true));
  }

  end() {
    this.picks.end();
    $("pick").focus();
  }

  #changed() {
    $("pick-bar").hidden = !this.picks.active;
    $("composer").hidden = this.picks.active;
    $("pick").setAttribute("aria-pressed", String(this.picks.active));
    this.chat.box.classList.toggle("picking", this.picks.active);
    this.update();
    this.chat.soon();
  }

  update() {
    const { messages } = this.picks;
    const ofOthers = messages.some((message) => message.sender !== this.chat.client.me || message.deleted);
    $("pick-count").textContent = messages.length
      ? `${count(messages.length, "message")} selected`
      : "Select messages";
    $("pick-me", HTMLButtonElement).disabled = !messages.length;
    $("pick-all", HTMLButtonElement).disabled = !messages.length || ofOthers;
    const why = "Only your own messages can be deleted for everyone.";
    $("pick-why").textContent = messages.length && ofOthers ? why : "";
  }

  /** @param {boolean} forEveryone */
  async #delete(forEveryone) {
    const { picks, chat } = this;
    const { conversation, client } = chat;
    if (!conversation) return;
    const what = count(picks.messages.length, "message");
    const [them, their, were] = picks.messages.length === 1
      ? ["this message", "its", "a message was"]
      : ["these messages", "their", "messages were"];
    const remains = forEveryone
      ? `${conversation.name} will see that ${were} deleted, but not ${their} content.`
      : `${conversation.name} will still see ${them}.`;
    const isSure = await confirm({
      title: forEveryone ? `Delete ${what} for everyone?` : `Delete ${what} for yourself?`,
      text: conversation.name === client.me ? "This can't be undone." : remains,
      action: "Delete",
    });
    if (!isSure || chat.conversation !== conversation) return;
    // The selection may have changed during the dialog.
    if (!picks.messages.length) return this.end();
    const messages = picks.leave();
    $("pick").focus();
    announce(`Deleting ${count(messages.length, "message")}…`);
    let deleted = 0;
    try {
      for await (const some of client.sync.delete(conversation, messages, forEveryone)) deleted += some;
      toast(`${count(deleted, "message")} deleted`);
    } catch (failure) {
      toast(this.#problem(/** @type {Failure} */ (failure), deleted, messages.length), { isError: true });
    } finally {
      picks.stay(messages);
    }
  }

  /** A call without an answer may still have been executed.
   * @param {Failure} failure @param {number} deleted @param {number} asked */
  #problem(failure, deleted, asked) {
    const open = asked - deleted;
    const what = `${count(open, "message")} ${open === 1 ? "was" : "were"}`;
    if (failure.passing) return `Couldn't confirm that ${what} deleted: ${failure.message}`;
    return `${deleted ? `Only ${count(deleted, "message")} deleted` : "Nothing was deleted"}: ${failure.message}`;
  }
}
