"""Scrolling in a conversation with keys, wheels and fingers, at realistic speeds."""

import re
import unittest

from playwright.sync_api import expect

from case import Case
from waiting import wait_until

#: The position of the list, and the positions of its rows on the screen.
PLACE = """(box) => {
    const { top } = box.getBoundingClientRect();
    const isVisible = (row) => row.getBoundingClientRect().bottom > top;
    return {
        top: box.scrollTop,
        end: box.scrollHeight - box.clientHeight - box.scrollTop,
        height: box.clientHeight,
        first: [...box.querySelectorAll(".message")].find(isVisible)?.dataset.key,
    };
}"""
#: Resolves when nothing has moved for some frames.
AT_REST = """(box) => new Promise((done) => {
    const look = () => [box.scrollTop, box.querySelector(".message")?.getBoundingClientRect().top].join();
    let [seen, frames] = [look(), 0];
    const frame = () => {
        const now = look();
        frames = now === seen ? frames + 1 : 0;
        seen = now;
        if (frames < 12) requestAnimationFrame(frame);
        else done();
    };
    requestAnimationFrame(frame);
})"""
#: Counts the scroll positions that the page sets during a scroll, except at the top, where it has to set them.
COUNT_WRITES = """(box) => {
    const { get, set } = Object.getOwnPropertyDescriptor(Element.prototype, "scrollTop");
    let isScrolling = false;
    window.writes = 0;
    const written = function (to) {
        if (isScrolling && get.call(this) > 0) window.writes += 1;
        set.call(this, to);
    };
    Object.defineProperty(box, "scrollTop", { get, set: written });
    box.addEventListener("scroll", () => { isScrolling = true; });
    box.addEventListener("scrollend", () => { isScrolling = false; }, { capture: true });
}"""
#: Distance of the last message below the visible part of the conversation, in pixels.
HIDDEN = """(box) => {
    const bottom = (element) => element.getBoundingClientRect().bottom;
    return Math.round(bottom([...box.querySelectorAll(".message .bubble")].at(-1)) - bottom(box));
}"""
#: The position on the screen of each row in the document.
ROWS = """(box) => Object.fromEntries(
    [...box.querySelectorAll(".message")].map((row) => [row.dataset.key, row.getBoundingClientRect().top])
)"""


class Scrolling(Case):
    # The number of nodes makes no difference to the page.
    nodes = 1

    def reader(self, **options):
        """A person with a conversation of 160 messages of one to several lines, and a function that adds another
        message."""
        bob, token = self.account("bob")
        alice = self.join("alice", **options)
        bodies = [f"message {number} " + "and more " * (number * 7 % 60) for number in range(160)]
        self.write_all(token, alice.name, bodies)
        expect(alice.row(bob).locator(".badge")).to_have_text("99+ unread")
        alice.page.reload()
        alice.open(bob)
        # The conversation opens at the first unread message. Scroll from there to the end.
        expect(alice.page.locator("#messages .message").first).to_be_visible()
        alice.button("Jump to latest", exact=False).click()
        expect(alice.page.locator("#jump")).to_be_hidden()
        box = alice.page.locator("#messages")
        box.evaluate(AT_REST)
        return alice, box, lambda body: self.write_all(token, alice.name, [body])

    def test_the_keys_scroll_as_far_as_they_should_and_the_end_stays_in_view(self):
        alice, box, write = self.reader()
        press = alice.page.keyboard.press
        box.focus()

        def moved(key):
            before = box.evaluate(ROWS)
            press(key)
            box.evaluate(AT_REST)
            after = box.evaluate(ROWS)
            # All rows that stayed in the document have moved by the same distance.
            [by] = {round(after[row] - top) for row, top in before.items() if row in after}
            return by

        page = box.evaluate(PLACE)["height"]
        # The rows of each page were never drawn before, so their heights differ from the estimates.
        for _ in range(4):
            self.assertAlmostEqual(moved("PageUp"), 0.875 * page, delta=page * 0.05)
        self.assertAlmostEqual(moved("ArrowUp"), 40, delta=2)
        self.assertAlmostEqual(moved("PageDown"), -0.875 * page, delta=page * 0.05)
        for _ in range(2):
            # More messages are loaded near the top, which extends the distance.
            press("Home")
            box.evaluate(AT_REST)
        self.assertEqual(box.evaluate(PLACE)["top"], 0)
        self.assertIn("seq/1", alice.keys())
        press("End")
        box.evaluate(AT_REST)
        self.assertLess(box.evaluate(PLACE)["end"], 1)
        self.assertIn("seq/160", alice.keys())
        self.stays_at_the_end(alice, box, write)

    def test_however_slowly_one_scrolls_it_scrolls(self):
        alice, box, write = self.reader(has_touch=True)
        middle = box.bounding_box()
        x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
        alice.page.mouse.move(x, y)
        for step in (1, 2, 5):
            for _ in range(20):
                alice.page.mouse.wheel(0, -step)
            wait_until("way up", lambda step=step: abs(box.evaluate(PLACE)["end"] - 20 * step) < 2)
            alice.page.mouse.wheel(0, 1000)
            wait_until("way down", lambda: box.evaluate(PLACE)["end"] < 1)
        device = alice.context.new_cdp_session(alice.page)

        def drag(by, step):
            """Moves a finger down by this many pixels in steps. The browser ignores the first few pixels."""
            touch = lambda kind, *points: device.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": at} for at in points]}
            )
            touch("touchStart", y)
            for at in range(step, by + 1, step):
                touch("touchMove", y + at)
            # The finger rests before it is lifted, so that scrolling does not continue.
            box.evaluate(AT_REST)
            touch("touchEnd")
            box.evaluate(AT_REST)

        for by, step in ((60, 1), (60, 2), (200, 4)):
            before = box.evaluate(PLACE)["end"]
            drag(by, step)
            moved = box.evaluate(PLACE)["end"] - before
            self.assertTrue(by / 2 < moved <= by + 1, f"{by} in steps of {step}: {moved}")
        # Away from the end, a new message does not move the view.
        before = box.evaluate(PLACE)
        write("while she reads")
        expect(alice.page.locator("#jump-count")).to_have_text("1")
        box.evaluate(AT_REST)
        self.assertEqual(box.evaluate(PLACE)["first"], before["first"])
        self.assertEqual(box.evaluate(PLACE)["top"], before["top"])

        # The page does not interfere with a scroll, although older messages arrive and are higher than estimated.
        box.evaluate(COUNT_WRITES)
        alice.page.mouse.move(x, y)
        wait_until("first message", lambda: alice.page.mouse.wheel(0, -400) or "seq/1" in alice.keys())
        box.evaluate(AT_REST)
        self.assertEqual(alice.page.evaluate("writes"), 0)

    def stays_at_the_end(self, alice, box, write):
        """Checks that the newest message stays in view when the composer changes its height."""
        for lines in (2, 3, 8):
            while alice.input.input_value().count("\n") < lines - 1:
                alice.input.press("Shift+Enter")
            box.evaluate(AT_REST)
            self.assertLessEqual(box.evaluate(HIDDEN), 0, f"{lines} lines")
        write("comes while she types")
        alice.sees("comes while she types")
        box.evaluate(AT_REST)
        self.assertLessEqual(box.evaluate(HIDDEN), 0)
        alice.input.fill("short")
        box.evaluate(AT_REST)
        self.assertLessEqual(box.evaluate(HIDDEN), 0)
        self.assertLess(box.evaluate(PLACE)["end"], 1)
        alice.page.set_viewport_size({"width": 500, "height": 500})
        box.evaluate(AT_REST)
        self.assertLess(box.evaluate(PLACE)["end"], 1)

    def test_a_text_is_found_however_far_back_it_is(self):
        """This includes messages that are not in the document or not loaded, which the browser's own search misses."""
        alice, box, write = self.reader()
        write("a NEEDLE is here")
        alice.sees("a NEEDLE is here")
        # Wait until all messages are read, so that the reload loads 50 of them.
        expect(alice.page.locator("#people .badge")).to_have_count(0)
        alice.page.reload()
        alice.sees("a NEEDLE is here")
        press = alice.page.keyboard.press
        press("Control+F")
        field = alice.page.get_by_role("searchbox", name="Find")
        expect(field).to_be_focused()
        count = alice.page.locator("#find-count")
        current = alice.page.locator("#messages .current .body")
        alice.page.keyboard.type("needle")
        expect(count).to_contain_text("1 of 1 since")
        expect(current).to_have_text("a NEEDLE is here")
        self.assertEqual(alice.page.evaluate("[...CSS.highlights.get('find')].map(String)"), ["NEEDLE"])
        # The messages were written in arbitrary order, so some of these are not loaded yet. The number alone would also
        # find what begins with it, as blanks at the end do not count.
        for number in (3, 77, 140):
            field.fill(f"message {number} and")
            expect(count).to_have_text(re.compile(r"^1 of 1\b"))
            expect(current).to_contain_text(f"message {number} and")
            expect(current).to_be_in_viewport()
        field.fill("message 15")
        # The matches are 15 and 150 to 159.
        for at in range(1, 12):
            # How many of them are loaded at first is arbitrary, too. The search goes on in what is older.
            expect(count).to_have_text(re.compile(rf"^{at} of ([1-9]|1[01])\b"))
            expect(current).to_be_in_viewport()
            press("Enter")
        field.fill("nobody wrote this")
        expect(count).to_have_text("No matches")
        field.fill("message 15")
        expect(count).to_have_text("1 of 11")
        press("Shift+Enter")
        expect(count).to_have_text("11 of 11")
        press("Enter")
        expect(count).to_have_text("1 of 11")
        press("Escape")
        expect(alice.page.locator("#find")).to_be_hidden()
        expect(alice.page.locator("#chat")).to_have_attribute("data-open", "yes")


if __name__ == "__main__":
    unittest.main()
