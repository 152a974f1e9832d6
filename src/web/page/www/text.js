// What people read: times, sizes, links in messages. And the ids of messages, which nobody reads.

const utf8 = new TextEncoder();

export const bytesOf = (text) => utf8.encode(text).length;

/** A UUID of version 7: by time first, which is best for the database; then random. */
export function uuid7(now = Date.now()) {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  new DataView(bytes.buffer).setUint16(0, Math.floor(now / 2 ** 32));
  new DataView(bytes.buffer).setUint32(2, now % 2 ** 32);
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const weekday = new Intl.DateTimeFormat(undefined, { weekday: "long" });
const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });
const shortDate = new Intl.DateTimeFormat(undefined, { day: "2-digit", month: "2-digit", year: "2-digit" });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

export const timeOf = (ms) => clock.format(ms);
export const exactly = (ms) => exact.format(ms);

/** A number that is the same for all times of a day, here. */
export const dayOf = (ms) => new Date(ms).setHours(0, 0, 0, 0);

function daysAgo(ms, now) {
  return Math.round((dayOf(now) - dayOf(ms)) / 86_400_000);
}

/** The name of a day in a conversation. */
export function dayName(ms, now = Date.now()) {
  const days = daysAgo(ms, now);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  return days > 1 && days < 7 ? weekday.format(ms) : date.format(ms);
}

/** The time of a conversation in the list. */
export function when(ms, now = Date.now()) {
  const days = daysAgo(ms, now);
  if (days <= 0) return timeOf(ms);
  return days < 7 ? dayName(ms, now) : shortDate.format(ms);
}

/** How long ago, roughly. */
export function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 90) return `${seconds} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

/** Characters that change the direction of the text behind them, until one of them ends it or the line ends. */
const DIRECTIONS = /[\u202a-\u202e\u2066-\u2069]/g;

/** The first line of a text, for where there is one line. Nothing in it reorders what stands around it. */
export const oneLine = (text) => text.slice(0, 200).replace(DIRECTIONS, "").replace(TOWERS, "$1").replace(/\s+/g, " ").trim();

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** Overrides show letters in another order than they have: "gpj.exe" as "exe.jpg". No language needs them. */
const OVERRIDES = /[\u202d\u202e]+/g;
/** An address goes on through ASCII and through letters. It ends before text in scripts that are written without spaces, as browsers take a
 * full stop of theirs for a dot, and before anything invisible. */
const ADDRESS = /https?:\/\/(?:[!#-;=?-[\]^_a-z{|}~]|(?![\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Hang}])[\p{L}\p{M}\p{N}])+/giu;
const HOST = /^(https?:\/\/)([^/?#]*)/i;
/** They end a sentence more often than an address. */
const END_MARKS = ".,;:!?'";
/** More marks on one letter are no text (Unicode's stream-safe format, UAX #15, has the same bound): they cover other messages, and cost the
 * browser time that grows with the square of their number. */
const TOWERS = /(\p{M}{30})\p{M}+/gu;
/** Nobody writes more addresses, or more overrides, in one message; each of them is an element to keep. */
const ELEMENTS_MAX = 200;
const CLOSED_BY = { "(": ")", "[": "]", "{": "}" };

/** An address without the marks behind it that belong to the sentence: a bracket does when it is not opened in the address. */
function trimmed(address) {
  const surplus = { ")": 0, "]": 0, "}": 0 };
  for (const char of address) {
    if (char in surplus) surplus[char] += 1;
    else if (char in CLOSED_BY) surplus[CLOSED_BY[char]] -= 1;
  }
  let end = address.length;
  for (; end > 0; end -= 1) {
    const last = address[end - 1];
    if (surplus[last] > 0) surplus[last] -= 1;
    else if (!END_MARKS.includes(last)) break;
  }
  return address.slice(0, end);
}

/** A link that says where it leads; `null` when the address is none, or made to look like another. */
function linkTo(address) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  // "https://bank.example@evil.example": what stands first looks like the host.
  if (url.username || url.password) return null;
  // Letters of other scripts look like those of ours: such a host is shown as browsers do.
  const text = address.replace(TOWERS, "$1").replace(HOST, (typed, scheme, host) => (/^[\x21-\x7e]*$/.test(host) ? typed : scheme + url.host));
  const link = document.createElement("a");
  Object.assign(link, { href: url.href, textContent: text, target: "_blank", rel: "noopener noreferrer nofollow" });
  return link;
}

/** A text with its overrides as words, each run of them as one; beyond `room` they are left out. */
function visible(written, room) {
  const text = written.replace(TOWERS, "$1");
  const parts = [];
  let end = 0;
  for (const { 0: controls, index } of text.matchAll(OVERRIDES)) {
    parts.push(text.slice(end, index));
    end = index + controls.length;
    if (parts.length / 2 > room) continue;
    const shown = document.createElement("span");
    Object.assign(shown, { className: "control", textContent: controls.endsWith("\u202e") ? "[right-to-left]" : "[left-to-right]" });
    parts.push(shown);
  }
  return [...parts, text.slice(end)];
}

/** The nodes of a text in which web addresses are links. Takes time in proportion to the text, whatever it is. */
export function linked(text) {
  const parts = [];
  let end = 0;
  for (const { 0: found, index } of text.matchAll(ADDRESS)) {
    if (parts.length > ELEMENTS_MAX * 2) break;
    const address = trimmed(found);
    const link = linkTo(address);
    if (!link) continue;
    parts.push(...visible(text.slice(end, index), ELEMENTS_MAX - parts.length / 2), link);
    end = index + address.length;
  }
  parts.push(...visible(text.slice(end), ELEMENTS_MAX - parts.length / 2));
  return parts;
}
