// @ts-check
// One conversation, as far as the page knows it: the loaded messages, the newest one, the counters and the watermarks.
//
// Invariants:
// - A message exists once, at the position of its seq.
// - A deleted message stays deleted, even if an older answer still has it.
// - Watermarks (delivered, read) only grow.
// - There are no gaps: `messages` has everything from `floor` on. Before it is `loaded`, it may come from a lagging
//   node. It is then only shown, and replaced by the first page that is not older than the position of the stream.
// - `base` is the revision of the counters. An answer from before `base` or `changedAt` does not count.
//
// Does not cover: the order of answers and events (store.js).

/** @param {string | undefined} text */
export const number = (text) => Number(text ?? 0);

/** @typedef {object} Message
 * @property {string} id
 * @property {number} seq
 * @property {string} sender
 * @property {string} body
 * @property {number} time In ms since 1970.
 * @property {boolean} deleted For everyone.
 * @property {string} clientId Only of the account's own messages. */

/** @param {Api.Message} json @returns {Message} */
export function messageOf(json) {
  return {
    id: json.messageId,
    seq: number(json.seq),
    sender: json.sender,
    body: json.body ?? "",
    time: number(json.timeMs),
    deleted: json.deleted ?? false,
    clientId: json.clientMessageId ?? "",
  };
}

export class Conversation {
  /** @param {string} name The other person, or the account itself. */
  constructor(name) {
    this.name = name;
    /** @type {string | null} */
    this.id = null;
    /** Whether the other account is deleted. */
    this.deleted = false;
    this.lastSeq = 0;
    this.unread = 0;
    /** @type {Message | null} */
    this.last = null;
    this.base = 0;
    /** The watermarks of each member, by name.
     * @type {Map<string, { delivered: number, read: number }>} */
    this.members = new Map();
    /** The loaded messages, by seq.
     * @type {Message[]} */
    this.messages = [];
    this.loaded = false;
    /** Whether it is on screen, and so not trimmed. */
    this.isOpen = false;
    this.floor = 0;
    this.hasOlder = false;
    /** Messages that arrive while the first page is in flight.
     * @type {Message[] | null} */
    this.early = null;
    /** Deletions while this page is open, for this account, for everyone, and with the accounts of senders.
     * @type {Set<number>} */
    this.hidden = new Set();
    /** @type {Set<number>} */
    this.tombstones = new Set();
    /** @type {Set<string>} */
    this.gone = new Set();
    this.stale = false;
    this.changedAt = 0;
  }

  /** The index of a message or, if it is not there, of its place.
   * @param {number} seq */
  find(seq) {
    let [low, high] = [0, this.messages.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.messages[middle].seq < seq) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Inserts a message in its place. Known deletions persist.
   * @param {Message} message */
  put(message) {
    if (this.hidden.has(message.seq)) return;
    this.settle(message);
    const place = this.find(message.seq);
    const there = this.messages[place];
    if (there?.seq !== message.seq) this.messages.splice(place, 0, message);
    else if (!there.deleted) this.messages[place] = { ...message, clientId: message.clientId || there.clientId };
  }

  /** Applies known deletions to a message.
   * @param {Message} message */
  settle(message) {
    if (this.tombstones.has(message.seq) || this.gone.has(message.sender)) {
      Object.assign(message, { deleted: true, body: "" });
    }
    return message;
  }

  /** Applies known deletions to all messages. */
  settleAll() {
    for (const message of this.messages) this.settle(message);
    if (this.last && this.hidden.has(this.last.seq)) this.last = this.messages.at(-1) ?? null;
    if (this.last) this.settle(this.last);
  }

  /** Adds a message that is not part of a page. It would leave a gap unless all before it is loaded, or there is
   * none.
   * @param {Message} message */
  join(message) {
    if (this.loaded) this.put(message);
    else if (message.seq === 1 && this.lastSeq <= 1) {
      this.put(message);
      Object.assign(this, { loaded: true, floor: 1 });
    } else this.early?.push(message);
  }

  /** Notes a change that older answers lack.
   * @param {number} revision */
  changedAs(revision) {
    this.changedAt = Math.max(this.changedAt, revision);
  }

  /** Whether an answer of this revision has everything that is known here.
   * @param {number} revision */
  isNews(revision) {
    return revision >= Math.max(this.base, this.changedAt);
  }

  /** Notes a message, which may be the newest.
   * @param {Message} message */
  raise(message) {
    this.lastSeq = Math.max(this.lastSeq, message.seq);
    if (message.seq >= (this.last?.seq ?? 0) && !this.hidden.has(message.seq)) this.last = this.settle(message);
  }

  /** Drops messages that can be loaded again. */
  trim(keep = 200) {
    if (this.isOpen || this.messages.length <= 2 * keep) return;
    this.messages.splice(0, this.messages.length - keep);
    Object.assign(this, { hasOlder: true, floor: this.messages[0].seq });
  }

  /** Raises the watermarks of a member. Read implies delivered.
   * @param {string} name @param {number} delivered @param {number} read */
  watermark(name, delivered, read) {
    const member = this.members.get(name) ?? { delivered: 0, read: 0 };
    delivered = Math.max(member.delivered, delivered, read);
    this.members.set(name, { delivered, read: Math.max(member.read, read) });
  }

  /** @param {string} name */
  readBy(name) {
    return this.members.get(name)?.read ?? 0;
  }

  /** The state of one of the account's own messages: "saved", "delivered" or "read" by all others.
   * @param {Message} message @param {string} me @returns {"saved" | "delivered" | "read"} */
  reached(message, me) {
    const others = [...this.members].filter(([name]) => name !== me).map(([, member]) => member);
    if (others.length && others.every((member) => member.read >= message.seq)) return "read";
    return others.length && others.every((member) => member.delivered >= message.seq) ? "delivered" : "saved";
  }
}
