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

/** The first line of a text, for where there is one line. */
export const oneLine = (text) => text.slice(0, 200).replace(/\s+/g, " ").trim();

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** The nodes of a text in which web addresses are links. */
export function linked(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(/https?:\/\/[^\s<>"']+/g)) {
    const address = match[0].replace(/[.,;:!?)\]}]+$/, "");
    if (!URL.canParse(address)) continue;
    parts.push(text.slice(end, match.index));
    const link = document.createElement("a");
    Object.assign(link, { href: address, textContent: address, target: "_blank", rel: "noopener noreferrer nofollow" });
    parts.push(link);
    end = match.index + address.length;
  }
  parts.push(text.slice(end));
  return parts;
}
