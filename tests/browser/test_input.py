"""Input by keys, touch, the clipboard, and drag and drop."""

import re
import tempfile
import unittest

from playwright.sync_api import expect

from case import Case
from waiting import wait_until

#: Puts a picture into the clipboard, as if copied from another page.
COPY_PICTURE = """async () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 9, height: 9 });
    canvas.getContext("2d").fillRect(0, 0, 9, 9);
    const picture = await new Promise((done) => canvas.toBlob(done, "image/png"));
    await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
}"""
#: The shortest of five times from an inserted character to the finished layout, in ms.
TIME_KEYS = """async (input) => {
    const times = [];
    for (let at = 0; at < 5; at += 1) {
        await new Promise((done) => requestAnimationFrame(done));
        const start = performance.now();
        document.execCommand("insertText", false, "x");
        input.getBoundingClientRect();
        times.push(performance.now() - start);
    }
    return Math.min(...times);
}"""
#: Resolves after a timer that starts later and is longer than the timer of a long press.
AFTER_A_LONG_PRESS = "new Promise((done) => setTimeout(done, 650))"


class Input(Case):
    # The number of nodes makes no difference to the page.
    nodes = 1

    def drop(self, person, x, y, text=None, files=()):
        device = person.context.new_cdp_session(person.page)
        items = [{"mimeType": "text/plain", "data": text}] if text else []
        data = {"items": items, "files": list(files), "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            device.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})

    def test_with_a_finger_enter_is_a_line_and_a_long_press_picks_one_message(self):
        bob, token = self.account("bob")
        phone = self.join("alice", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
        self.write_all(token, phone.name, ["x" * 30] * 20)
        phone.open(bob)
        expect(phone.input).to_have_attribute("enterkeyhint", "enter")
        phone.input.tap()
        phone.input.press_sequentially("one\ntwo")
        expect(phone.input).to_have_value("one\ntwo")
        phone.button("Send").tap()
        phone.has_mark("one two", "Sent")
        self.assertEqual(phone.bodies()[-1], "one\ntwo")
        # With an attached keyboard, the usual keys send.
        phone.input.press_sequentially("three")
        phone.input.press("Control+Enter")
        phone.sees("three")
        # Some browsers zoom in on a field with a smaller font.
        size = "all => Math.min(...all.map((field) => parseFloat(getComputedStyle(field).fontSize)))"
        self.assertGreaterEqual(phone.page.locator("input, textarea").evaluate_all(size), 16)

        device = phone.context.new_cdp_session(phone.page)
        picked = phone.page.locator("input.pick:checked")

        def press(place, points):
            """Holds a finger down until the press has had its effect."""
            device.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [place]})
            points()
            device.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

        phone.has_mark("three", "Sent")
        bubble = phone.page.locator("#messages .message").nth(-5).locator(".bubble")
        edge = bubble.bounding_box()
        press({"x": edge["x"] + 5, "y": edge["y"] + 5}, lambda: expect(picked).to_have_count(1))
        # Another message is now at the place where the finger is lifted. It must not be selected.
        phone.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        expect(phone.page.locator("#pick-count")).to_have_text("1 message selected")
        bubble.tap()
        expect(picked).to_have_count(0)
        phone.button("Cancel").tap()
        # A finger that selects text does not pick a message, and events from the cluster leave the selection unchanged.
        words = phone.message("one two").locator(".body").bounding_box()
        selected = "getSelection().toString()"
        phone.message("one two").locator(".body").evaluate("body => getSelection().selectAllChildren(body)")
        press({"x": words["x"] + 8, "y": words["y"] + 8}, lambda: phone.page.evaluate(AFTER_A_LONG_PRESS))
        expect(phone.page.locator("#pick-bar")).to_be_hidden()
        self.assertIn(phone.page.evaluate(selected), ("one\ntwo", "one", "two"))
        before = phone.page.evaluate(selected)
        ask = {"partner": phone.name, "limit": 1}
        seq = self.cluster.call("n1", "ChatService/ReadConversation", ask, token)["lastSeq"]
        conversation = self.cluster.call("n1", "ChatService/ReadConversation", ask, token)["conversationId"]
        self.cluster.call("n1", "ChatService/MarkRead", {"conversationId": conversation, "upToSeq": seq}, token)
        phone.has_mark("one two", "Read")
        self.assertEqual(phone.page.evaluate(selected), before)

    def test_files_are_refused_in_words_and_text_can_be_dropped(self):
        alice = self.join("alice")
        alice.open(alice.name)
        alice.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=self.cluster.web("n1"))
        refused = alice.page.locator(".toast.error").get_by_text("Files and images can't be sent here.")
        alice.page.evaluate(COPY_PICTURE)
        alice.input.press("Control+V")
        expect(refused).to_have_count(1)
        refused.click()
        with tempfile.NamedTemporaryFile(suffix=".txt") as file:
            file.write(b"a file")
            file.flush()
            for x, y in ((600, 300), (600, 760), (100, 300)):
                self.drop(alice, x, y, files=[file.name])
                expect(refused).to_have_count(1)
                refused.click()
        self.assertTrue(alice.page.url.startswith(self.cluster.web("n1")), "the page was left")
        alice.input.fill("before ")
        self.drop(alice, 600, 300, text="dropped")
        expect(alice.input).to_have_value("before dropped")
        self.drop(alice, 100, 300, text="beside it")
        expect(alice.input).to_have_value("before dropped")
        # Text that is too long is accepted up to a limit, so that it can be shortened here. Typing in it stays fast.
        alice.page.evaluate("(text) => navigator.clipboard.writeText(text)", "pasted line\n" * 90_000)
        alice.input.press("Control+V")
        expect(alice.page.locator(".toast.error")).to_contain_text("That's too long: 1,080,014 characters.")
        expect(alice.input).to_have_value("before dropped")
        alice.page.evaluate("(text) => navigator.clipboard.writeText(text)", "pasted line\n" * 10_000)
        alice.input.press("Control+V")
        expect(alice.page.locator("#limit")).to_contain_text("Message too long by")
        short = alice.input.evaluate(TIME_KEYS)
        self.assertLess(short, 100)
        alice.page.reload()
        expect(alice.input).to_have_value("before dropped" + "pasted line\n" * 10_000 + "x" * 5)

    def test_copying_takes_the_texts_and_nothing_beside_them(self):
        alice = self.join("alice")
        alice.open(alice.name)
        alice.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=self.cluster.web("n1"))
        for text in ("first of them", "second", "third one"):
            alice.send(text)
        alice.has_mark("third one", "Sent")
        alice.page.locator("#messages").focus()
        alice.page.evaluate(
            """() => {
                const [first, , third] = document.querySelectorAll("#messages .body");
                getSelection().setBaseAndExtent(first.firstChild, 6, third.firstChild, 5);
            }"""
        )
        alice.page.keyboard.press("Control+C")
        self.assertEqual(alice.page.evaluate("navigator.clipboard.readText()"), "of them\nsecond\nthird")
        # Screen readers find each text once, except during selection.
        boxes = alice.page.get_by_role("checkbox")
        expect(boxes).to_have_count(0)
        alice.button("Select messages").click()
        expect(boxes).to_have_count(3)
        expect(boxes.first).to_have_accessible_name(re.compile("Select message: first of them, "))
        # Escape leaves the mode that was entered last, and moves the focus accordingly.
        alice.page.keyboard.press("Escape")
        expect(alice.page.locator("#pick-bar")).to_be_hidden()
        alice.input.fill("half a sentence")
        alice.input.press("Escape")
        expect(alice.page.locator("#chat")).to_have_attribute("data-open", "no")
        expect(alice.row(alice.name)).to_be_focused()
        alice.page.keyboard.press("Enter")
        expect(alice.input).to_have_value("half a sentence")

    def test_a_list_of_many_conversations_is_one_stop_of_the_tab_key(self):
        names = [f"kim{number}" for number in range(126)]

        def partner(at):
            name, time = names[at], str(1795564800000 - at * 60_000)
            message = {"messageId": str(at + 9), "seq": "1", "sender": name, "body": "hello", "timeMs": time}
            return {"username": name, "conversationId": str(at + 9), "lastSeq": "1", "lastMessage": message}

        made_up = {"partners": [partner(at) for at in range(126)], "header": {"revision": "1000"}}
        alice = self.visitor("alice")
        alice.page.route("**/ListChatPartners", lambda route: route.fulfill(json=made_up))
        alice.sign_up()
        focused = lambda: alice.page.locator(":focus").evaluate("one => one.getAttribute('href') ?? one.id")
        press = alice.page.keyboard.press
        search = alice.page.get_by_role("searchbox")
        search.press("Tab")
        self.assertEqual(focused(), "#/kim0")
        press("Tab")
        self.assertEqual(focused(), "status")
        press("Shift+Tab")
        for key, name in (("ArrowDown", "kim1"), ("End", "kim125"), ("ArrowUp", "kim124"), ("Home", "kim0")):
            press(key)
            self.assertEqual(focused(), f"#/{name}")
            expect(alice.row(name)).to_be_in_viewport()
        # Search results are ordered by how well they match, not by the last message.
        search.fill("kim12")
        expect(alice.page.locator("#people .name")).to_have_text(["kim12", *(f"kim12{digit}" for digit in range(6))])
        search.press("Escape")
        # The open conversation is in view and is the tab stop, also with the system's forced colours.
        alice.page.emulate_media(forced_colors="active")
        alice.page.evaluate("location.hash = '#/kim100'")
        alice.page.reload()
        row = alice.row("kim100")
        expect(row).to_be_in_viewport()
        expect(row).to_have_attribute("tabindex", "0")
        self.assertEqual(alice.page.locator("#people a[tabindex='0']").count(), 1)
        self.assertEqual(row.evaluate("row => getComputedStyle(row).outlineStyle"), "solid")
        # The list is made up, so the account does not exist.
        expect(alice.input).to_have_attribute("placeholder", "There is no such account")
        expect(alice.input).not_to_be_editable()

    def test_what_is_being_deleted_says_so_at_once_and_what_is_unknown_is_called_so(self):
        alice = self.join("alice")
        alice.open(alice.name).send("one")
        alice.has_mark("one", "Sent")
        held = []
        alice.page.route("**/DeleteMessages", lambda route: held.append(route))
        alice.pick("one")
        alice.button("Delete for me").click()
        alice.confirm("Delete")
        expect(alice.message("one").locator(".meta")).to_contain_text("Deleting…")
        expect(alice.page.locator("#pick-bar")).to_be_hidden()
        expect(alice.button("Select messages")).to_be_focused()
        wait_until("call to delete", lambda: alice.page.evaluate("1") and held)
        # The outcome is unknown. The node may or may not have deleted the message before it failed.
        again = {"code": "unavailable", "message": "The leader is gone.", "details": [{"debug": {"retryDelay": "60s"}}]}
        held[0].fulfill(status=503, json=again)
        unknown = "Couldn't confirm that 1 message was deleted: The leader is gone."
        expect(alice.page.locator(".toast")).to_have_text(unknown)
        expect(alice.message("one").locator(".meta")).not_to_contain_text("Deleting…")


if __name__ == "__main__":
    unittest.main()
