// @ts-check
// Tracks the list of conversations in the browser's history, so that the page's way back is also the browser's.
//
// Each history entry stores its distance from the list, and the way back to the list goes that far back. The browser's
// next step back then leads to the entry before the list, and not to the conversation again.
//
// Does not cover: what an address shows (main.js).

/** The distance of the current entry from the list, or `null` if there is no list below it, as after a bookmark.
 * @type {number | null} */
let depth = null;

export const named = () => location.hash.replace(/^#\/?/, "");

/** Must be called at the start, and after each change of the address. */
export function arrived(isStart = false) {
  const known = history.state?.depth;
  if (!named()) depth = 0;
  else if (known !== undefined) depth = known;
  else depth = isStart || depth === null ? null : depth + 1;
  if (known !== depth) history.replaceState({ depth }, "");
}

/** Goes to the list. */
export function toList() {
  // Browsers drop the oldest entries of a long history.
  if (depth && depth < history.length) history.go(-depth);
  else if (named()) location.replace("#/");
}
