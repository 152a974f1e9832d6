// The selection of messages, and the bar that deletes them.

import { $ } from "./dom.js";
import { confirm } from "./dialogs.js";
import { announce, toast } from "./toasts.js";
import { count } from "./text.js";

/** The messages that are picked for deletion, and those that are being deleted. */
export class Picks {
  #keys = new Map();
  #leaving = new Set();

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

  /** Drops messages that no longer exist. */
  keepOnly(keys) {
    for (const key of this.#keys.keys()) if (!keys.has(key)) this.#keys.delete(key);
  }

  end() {
    this.active = false;
    this.#keys.clear();
    this.onChange();
  }

  isLeaving(message) {
    return this.#leaving.has(message.id);
  }

  /** Marks the picked messages as being deleted, until `stay` is called with the result. */
  leave() {
    const { messages } = this;
    for (const { id } of messages) this.#leaving.add(id);
    this.end();
    return messages;
  }

  stay(messages) {
    for (const { id } of messages) this.#leaving.delete(id);
    this.onChange();
  }
}

/** The bar of a chat view for picking and deleting. `chat` provides the open conversation. */
export class PickBar {
  constructor(chat, signal) {
    this.chat = chat;
    this.picks = new Picks(() => this.#changed());
    const on = (target, event, action) => target.addEventListener(event, action, { signal });
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
    $("pick").setAttribute("aria-pressed", this.picks.active);
    this.chat.box.classList.toggle("picking", this.picks.active);
    this.update();
    this.chat.soon();
  }

  update() {
    const { messages } = this.picks;
    const ofOthers = messages.some((message) => message.sender !== this.chat.client.me || message.deleted);
    $("pick-count").textContent = messages.length ? count(messages.length, "message") + " selected" : "Select messages";
    $("pick-me").disabled = !messages.length;
    $("pick-all").disabled = !messages.length || ofOthers;
    $("pick-why").textContent = messages.length && ofOthers ? "Only your own messages can be deleted for everyone." : "";
  }

  async #delete(forEveryone) {
    const { picks, chat } = this;
    const { conversation, client } = chat;
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
      for await (const some of client.delete(conversation, messages, forEveryone)) deleted += some;
      toast(`${count(deleted, "message")} deleted`);
    } catch (failure) {
      toast(this.#problem(failure, deleted, messages.length), { isError: true });
    } finally {
      picks.stay(messages);
    }
  }

  /** A call without an answer may still have been executed. */
  #problem(failure, deleted, asked) {
    const open = asked - deleted;
    const what = `${count(open, "message")} ${open === 1 ? "was" : "were"}`;
    if (failure.passing) return `Couldn't confirm that ${what} deleted: ${failure.message}`;
    return `${deleted ? `Only ${count(deleted, "message")} deleted` : "Nothing was deleted"}: ${failure.message}`;
  }
}
