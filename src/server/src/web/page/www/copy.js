// @ts-check
// Copies only the texts from a conversation, one line per message.

/** The selected parts of the messages in `box`, or `null` if there are none.
 * @param {HTMLElement} box */
function selected(box) {
  const selection = getSelection();
  if (!selection || selection.isCollapsed || !selection.rangeCount) return null;
  const range = selection.getRangeAt(0);
  const bodies = [...box.querySelectorAll(".body")].filter((body) => range.intersectsNode(body));
  const parts = bodies.map((body) => {
    const part = document.createRange();
    part.selectNodeContents(body);
    const { startContainer, startOffset, endContainer, endOffset } = range;
    if (range.compareBoundaryPoints(Range.START_TO_START, part) > 0) part.setStart(startContainer, startOffset);
    if (range.compareBoundaryPoints(Range.END_TO_END, part) < 0) part.setEnd(endContainer, endOffset);
    return part.toString();
  });
  return parts.filter(Boolean).join("\n") || null;
}

/** Browsers would also copy the senders, the times, and a blank line after each message.
 * @param {HTMLElement} box @param {AbortSignal} signal */
export function copyTexts(box, signal) {
  box.addEventListener("copy", (event) => {
    const text = selected(box);
    if (text === null) return;
    event.clipboardData?.setData("text/plain", text);
    event.preventDefault();
  }, { signal });
}
