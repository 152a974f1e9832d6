// Where in the browser's history the list of conversations is, so that the page's own way back is the browser's.
//
// Each entry of the history notes how far above the list it is. The way back to the list is to go back that far: the
// browser's next step back then leads to what was before the list, and not into the conversation again.

/** How far above the list the current entry is; `null` where no list is below it, as after a bookmark. */
let depth = null;

export const named = () => location.hash.replace(/^#\/?/, "");

/** Called at the start, and whenever the address has changed. */
export function arrived(isStart = false) {
  const known = history.state?.depth;
  if (!named()) depth = 0;
  else if (known !== undefined) depth = known;
  else depth = isStart || depth === null ? null : depth + 1;
  if (known !== depth) history.replaceState({ depth }, "");
}

/** Goes to the list. */
export function toList() {
  // Browsers forget the oldest entries of a long history.
  if (depth && depth < history.length) history.go(-depth);
  else if (named()) location.replace("#/");
}
