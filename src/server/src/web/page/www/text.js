// @ts-check
// Times, sizes and links in messages, for people. Also the ids of messages.

const utf8 = new TextEncoder();

/** @param {string} text */
export const bytesOf = (text) => utf8.encode(text).length;

/** How many more characters like those of `text` fit into `bytesMax` bytes of UTF-8. If negative, how many are too
 * many. Takes time in proportion to the limit, not to the text.
 * @param {string} text @param {number} bytesMax */
export function charactersLeft(text, bytesMax) {
  const { read = 0, written = 0 } = utf8.encodeInto(text, new Uint8Array(bytesMax));
  if (read < text.length) return read - text.length;
  return written ? Math.floor(((bytesMax - written) * text.length) / written) : bytesMax;
}

/** A UUID of version 7. It begins with the time, which is best for the database. The rest is random. */
export function uuid7(now = Date.now()) {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  new DataView(bytes.buffer).setUint16(0, Math.floor(now / 2 ** 32));
  new DataView(bytes.buffer).setUint32(2, now % 2 ** 32);
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** Dates are in English, like the page. Their order, and 12 or 24 hours, follow the user's locale. */
const habit = new Intl.DateTimeFormat(undefined, { hour: "numeric" }).resolvedOptions();
const english = new Intl.Locale("en", { region: new Intl.Locale(habit.locale).maximize().region }).toString();
/** @param {Intl.DateTimeFormatOptions} options */
const format = (options) => new Intl.DateTimeFormat([english, "en"], options);
const { hourCycle } = habit;

const clock = format({ hour: hourCycle?.startsWith("h1") ? "numeric" : "2-digit", minute: "2-digit", hourCycle });
const weekday = format({ weekday: "long" });
const date = format({ day: "numeric", month: "long", year: "numeric" });
const shortDate = format({ day: "2-digit", month: "2-digit", year: "2-digit" });
const exact = format({ dateStyle: "full", timeStyle: "medium", hourCycle });

/** @param {number} ms */
export const timeOf = (ms) => clock.format(ms);
/** @param {number} ms */
export const dateOf = (ms) => date.format(ms);
/** @param {number} ms */
export const exactly = (ms) => exact.format(ms);

/** A number that is the same for all times of a local day.
 * @param {number} ms */
export const dayOf = (ms) => new Date(ms).setHours(0, 0, 0, 0);

/** @param {number} ms @param {number} now */
function daysAgo(ms, now) {
  return Math.round((dayOf(now) - dayOf(ms)) / 86_400_000);
}

/** The name of a day in a conversation.
 * @param {number} ms */
export function dayName(ms, now = Date.now()) {
  const days = daysAgo(ms, now);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  return days > 1 && days < 7 ? weekday.format(ms) : date.format(ms);
}

/** The time of a conversation in the list.
 * @param {number} ms */
export function when(ms, now = Date.now()) {
  const days = daysAgo(ms, now);
  if (days <= 0) return timeOf(ms);
  return days < 7 ? dayName(ms, now) : shortDate.format(ms);
}

/** An approximate duration in words.
 * @param {number} ms */
export function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 90) return count(seconds, "second");
  return seconds < 5400 ? count(Math.round(seconds / 60), "minute") : count(Math.round(seconds / 3600), "hour");
}

/** Characters that change the direction of the text after them, until one of them or the line ends it. */
const DIRECTIONS = /[\u202a-\u202e\u2066-\u2069]/g;

const segmenter = Intl.Segmenter ? new Intl.Segmenter(undefined, { granularity: "grapheme" }) : null;
/** UTF-16 units that a character of a preview may have. A family of four has 11. */
const UNITS = 16;

/** The first `count` characters of a text, as people count them. No emoji is cut in half.
 * @param {string} text @param {number} count */
export function head(text, count) {
  const most = text.slice(0, count * UNITS);
  // The last one may have been cut, so it is left out.
  const chars = segmenter ? Array.from(segmenter.segment(most), ({ segment }) => segment) : Array.from(most);
  if (most.length < text.length && chars.length > 1) chars.pop();
  return chars.slice(0, count).join("");
}

/** The beginning of a text, in one line. Nothing in it reorders the surrounding text.
 * @param {string} text */
export function oneLine(text) {
  return head(text, 200).replace(DIRECTIONS, "").replace(TOWERS, "$1").replace(/\s+/g, " ").trim();
}

/** How well a name matches a query. Less is better.
 * @param {string} name @param {string} query */
export function distance(name, query) {
  if (name === query) return 0;
  if (name.startsWith(query)) return 1;
  // A part of the name begins with it.
  return [".", "-", "_"].some((mark) => name.includes(mark + query)) ? 2 : 3;
}

/** @param {number} number @param {string} one */
export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

/** Overrides show letters in another order, such as "gpj.exe" as "exe.jpg". No language needs them. */
const OVERRIDES = /[\u202d\u202e]+/g;
/** A web address continues through ASCII and letters. It ends before Chinese, Japanese and Korean text, because
 * browsers take a full stop of theirs for a dot, and before anything invisible. A mail address is ASCII. Its parts are
 * at most as long as the standard allows (RFC 5321, 4.5.3.1), so that matching never takes long. */
const SPACELESS = "[\\p{sc=Han}\\p{sc=Hira}\\p{sc=Kana}\\p{sc=Hang}]";
const ADDRESS = new RegExp(
  `(?:https?:\\/\\/|www\\.)(?:[!#-;=?-[\\]^_a-z{|}~]|(?!${SPACELESS})[\\p{L}\\p{M}\\p{N}])+` +
  "|[a-z0-9_+-][a-z0-9._+-]{0,63}@(?:[a-z0-9-]{1,63}\\.){1,8}[a-z]{2,63}", "giu");
/** Characters around an address without a scheme. They make it the middle of a longer word, or are lookalike
 * letters. */
const BEFORE = /[\p{L}\p{M}\p{N}@._%+/=-]$/u;
const BEHIND = new RegExp(`^(?!${SPACELESS})[\\p{L}\\p{M}\\p{N}@_]`, "u");
const MAIL = /^(?!www\.)[^/:]*@/i;
const HOST = /^(https?:\/\/|)([^/?#]*)/i;
/** These end a sentence more often than an address. */
const END_MARKS = ".,;:!?'";
/** More marks on one letter are not text (Unicode's stream-safe format, UAX #15, has the same limit). They cover other
 * messages, and cost the browser quadratic time. */
const TOWERS = /(\p{M}{30})\p{M}+/gu;
/** No real message has more addresses, or more overrides. Each of them costs an element. */
const ELEMENTS_MAX = 200;
/** @type {Record<string, string>} */
const CLOSED_BY = { "(": ")", "[": "]", "{": "}" };

/** Removes marks after an address that belong to the sentence, such as a bracket that the address does not open.
 * @param {string} address */
function trimmed(address) {
  /** @type {Record<string, number>} */
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

/** A link that shows its target, or `null` if the address is invalid or imitates another. `before` and `behind` are the
 * surrounding text.
 * @param {string} address @param {string} before @param {string} behind */
function linkTo(address, before, behind) {
  const hasScheme = /^https?:/i.test(address);
  if (!hasScheme && (BEFORE.test(before) || BEHIND.test(behind))) return null;
  const link = document.createElement("a");
  link.rel = "noopener noreferrer nofollow";
  if (!hasScheme && MAIL.test(address)) return Object.assign(link, { href: `mailto:${address}`, textContent: address });
  /** @type {URL} */
  let url;
  try {
    url = new URL(hasScheme ? address : `https://${address}`);
  } catch {
    return null;
  }
  // "www." alone is not a host, and "www.x" is not a public one.
  if (!hasScheme && url.hostname.split(".").filter(Boolean).length < 3) return null;
  // In "https://bank.example@evil.example", the first part looks like the host.
  if (url.username || url.password) return null;
  // Letters of other scripts can look like Latin ones, so such a host is shown as in browsers.
  const text = address.replace(TOWERS, "$1").replace(HOST, (typed, scheme, host) =>
    (/^[\x21-\x7e]*$/.test(host) ? typed : scheme + url.host));
  return Object.assign(link, { href: url.href, textContent: text, target: "_blank" });
}

/** Replaces each run of overrides with a word. Beyond `room`, they are left out.
 * @param {string} written @param {number} room */
function visible(written, room) {
  const text = written.replace(TOWERS, "$1");
  /** @type {(string | Node)[]} */
  const parts = [];
  let end = 0;
  for (const { 0: controls, index = 0 } of text.matchAll(OVERRIDES)) {
    parts.push(text.slice(end, index));
    end = index + controls.length;
    if (parts.length / 2 > room) continue;
    const shown = document.createElement("span");
    shown.className = "control";
    shown.textContent = controls.endsWith("\u202e") ? "[right-to-left]" : "[left-to-right]";
    parts.push(shown);
  }
  return [...parts, text.slice(end)];
}

/** The nodes of a text, with links for its addresses. Takes time in proportion to the text, whatever it contains.
 * @param {string} text */
export function linked(text) {
  /** @type {(string | Node)[]} */
  const parts = [];
  let end = 0;
  for (const { 0: found, index = 0 } of text.matchAll(ADDRESS)) {
    if (parts.length > ELEMENTS_MAX * 2) break;
    const address = trimmed(found);
    const behind = index + address.length;
    const link = linkTo(address, text.slice(Math.max(end, index - 2), index), text.slice(behind, behind + 2));
    if (!link) continue;
    parts.push(...visible(text.slice(end, index), ELEMENTS_MAX - parts.length / 2), link);
    end = index + address.length;
  }
  parts.push(...visible(text.slice(end), ELEMENTS_MAX - parts.length / 2));
  return parts;
}
