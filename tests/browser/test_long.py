"""A conversation of ten thousand messages."""

import unittest

from playwright.sync_api import expect

from case import Case

#: Maximum number of rows in the document at any time.
DRAWN_MAX = 80


class Long(Case):
    # The number of nodes makes no difference to the page, and one node stores the messages five times as fast.
    nodes = 1

    def test_ten_thousand_messages_scroll_and_older_ones_come_without_a_jump(self):
        total = 10_000
        bob, token = self.account("bob")
        alice = self.join("alice")
        bodies = [f"message {number} " + "and more " * (number % 23) for number in range(total)]
        self.write_all(token, alice.name, bodies)
        expect(alice.row(bob).locator(".badge")).to_have_text("99+ unread", timeout=60_000)
        alice.page.reload()
        alice.open(bob)
        box = alice.page.locator("#messages")
        # Scroll up to the first message, slowly at first. All rows on the screen must move by the same distance.
        report = box.evaluate(
            """async (box) => {
                const frame = () => new Promise((done) => requestAnimationFrame(done));
                const bottom = (row) => row.getBoundingClientRect().bottom;
                const look = () => {
                    return new Map([...box.querySelectorAll(".message")].map((row) => [row.dataset.key, bottom(row)]));
                };
                const report = { jumps: [], drawn: 0, frames: [], steps: 0 };
                box.scrollTop = box.scrollHeight;
                await frame();
                for (let rest = 0; rest < 300; report.steps += 1) {
                    const by = report.steps < 300 ? 700 : 6000;
                    const before = look();
                    const start = performance.now();
                    box.scrollBy(0, -by);
                    await frame();
                    await frame();
                    report.frames.push(performance.now() - start);
                    const after = look();
                    report.drawn = Math.max(report.drawn, after.size);
                    const stayed = [...after].filter(([key]) => before.has(key));
                    const moves = stayed.map(([key, bottom]) => Math.round(bottom - before.get(key)));
                    const isJump = moves.some((move) => move !== moves[0]) || moves[0] > by || moves[0] < 0;
                    if (isJump) report.jumps.push(moves.join(" "));
                    rest = moves[0] === 0 ? rest + 1 : 0;
                    if (!document.querySelector(".older") && box.scrollTop === 0) break;
                }
                report.frames.sort((a, b) => a - b);
                report.older = document.querySelector(".older") !== null;
                report.notes = document.querySelector("#toasts").innerText;
                return { ...report, frames: report.frames[Math.floor(report.frames.length * 0.95)] };
            }"""
        )
        self.assertEqual(report["jumps"], [])
        self.assertFalse(report["older"], report)
        self.assertEqual(alice.keys()[:3][-1], "seq/1", "all of them were loaded")
        self.assertLessEqual(report["drawn"], DRAWN_MAX)
        steps, frames = report["steps"], report["frames"]
        print(f"10,000 messages: {steps} steps, two frames took at most {frames:.0f} ms in 95 % of them")
        alice.button("Jump to latest", exact=False).click()
        expect(alice.page.locator("#jump")).to_be_hidden()
        alice.send("and one more")
        alice.sees("and one more")


if __name__ == "__main__":
    unittest.main()
