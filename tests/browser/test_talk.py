"""Two people talk to each other and use every feature of a conversation."""

import unittest
from datetime import datetime, timedelta

from playwright.sync_api import expect

from case import Case
from waiting import wait_until
from person import PASSWORD


#: `notes` collects the notifications that a system would have shown.
FAKE_NOTIFICATIONS = """() => {
    window.notes = [];
    const real = window.Notification;
    window.Notification = class extends EventTarget {
        static permission = "granted";
        static requestPermission = () => real.requestPermission();
        constructor(title, options) { super(); window.notes.push([title, options.body]); window.lastNote = this; }
        close() {}
    };
}"""


class Talk(Case):
    def test_a_message_goes_from_one_to_the_other_and_its_mark_tells_how_far(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        alice.open(bob.name).send("Hello Bob")
        # Bob is online but the conversation is not open.
        alice.has_mark("Hello Bob", "Delivered")
        expect(bob.row(alice.name)).to_contain_text("Hello Bob")
        expect(bob.row(alice.name).locator(".badge")).to_have_text("1 unread")
        self.assertEqual(bob.page.title(), "(1) quorum-chat")
        toast = bob.page.locator(".toast")
        expect(toast).to_contain_text("Hello Bob")
        toast.click()
        bob.sees("Hello Bob")
        alice.has_mark("Hello Bob", "Read")
        expect(bob.row(alice.name).locator(".badge")).to_have_count(0)
        expect(bob.page).to_have_title("quorum-chat")
        bob.send("Hello Alice")
        alice.sees("Hello Alice")
        bob.has_mark("Hello Alice", "Read")
        # Nothing is delivered to a person that has never been online.
        carol, _ = self.account("carol")
        alice.open(carol).send("Are you there?")
        alice.has_mark("Are you there?", "Sent")
        expect(alice.row(carol).locator(".mark")).to_have_text("Sent")
        rows = alice.page.locator("#people a .name").all_inner_texts()
        self.assertEqual(rows, [carol, bob.name], "the newest is the first")

    def test_enter_sends_and_shift_enter_is_a_new_line(self):
        alice = self.join("alice")
        alice.open(alice.name)
        alice.input.press_sequentially("one")
        alice.input.press("Shift+Enter")
        alice.input.press_sequentially("two")
        expect(alice.input).to_have_value("one\ntwo")
        alice.input.press("Enter")
        expect(alice.input).to_have_value("")
        alice.has_mark("one two", "Sent")
        self.assertEqual(alice.bodies(), ["one\ntwo"])
        alice.input.press("Enter")
        alice.send("   ")
        expect(alice.input).to_have_value("   ")
        self.assertEqual(len(alice.bodies()), 1, "nothing is not a message")

    def test_text_is_shown_as_text(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        alice.open(bob.name)
        bodies = {
            "script": (
                "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"><b>bold</b>"
            ),
            "right to left": "שלום עולם, مرحبا بالعالم (123)",
            "override": "\u202e‮reversed",
            "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 ¡hola! 你好",
            "long": "long " * 3276 + "end.",
            "unbroken": "x" * 3000,
        }
        self.assertEqual(len(bodies["long"].encode()), 16 * 1024)
        for body in bodies.values():
            alice.send(body)
        expect(alice.page.locator("#messages .mark.pending")).to_have_count(0)
        bob.open(alice.name)
        expect(bob.page.locator("#messages .message").first).to_be_visible()
        # The long messages do not fit into the document together, so scroll through all of them from the end.
        seen = bob.page.locator("#messages").evaluate(
            """async (box) => {
                const seen = new Set();
                box.scrollTop = box.scrollHeight;
                for (let top = -1; box.scrollTop !== top; ) {
                    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
                    for (const text of box.querySelectorAll(".body")) seen.add(text.textContent);
                    top = box.scrollTop;
                    box.scrollBy(0, -300);
                }
                return [...seen];
            }"""
        )
        # An override is shown as a word, so that it reorders nothing.
        shown = {**bodies, "override": "[right-to-left]reversed"}
        self.assertEqual(set(seen), set(shown.values()))
        self.assertEqual(bob.page.locator("#messages .body :is(script, img, b)").count(), 0)
        expect(bob.page).to_have_title("quorum-chat")
        width = bob.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        self.assertLessEqual(width, 0, "nothing is wider than the page")
        rtl = bob.message(bodies["right to left"]).locator(".body")
        self.picture(bob, "text")
        self.assertEqual(rtl.evaluate("text => getComputedStyle(text).direction"), "rtl")

    def test_a_message_that_is_too_long_is_not_sent_and_not_lost(self):
        alice = self.join("alice")
        alice.open(alice.name)
        alice.input.fill("ü" * 8193)
        expect(alice.page.locator("#limit")).to_have_text("Message too long by 1 character")
        expect(alice.button("Send")).to_be_disabled()
        colour = lambda: alice.page.locator("#limit").evaluate("limit => getComputedStyle(limit).color")
        too_long = colour()
        alice.input.press("Enter")
        expect(alice.input).to_have_value("ü" * 8193)
        alice.input.fill("ü" * 7000)
        self.assertNotEqual(colour(), too_long, "what fits is no fault")
        alice.input.fill("ü" * 8193)
        alice.input.press("Backspace")
        alice.input.press("Enter")
        expect(alice.page.locator(".message.mine")).to_have_count(1)

    def test_people_are_found_by_a_part_of_their_name(self):
        for name in ("anna", "hannah", "bert"):
            self.account(name)
        alice = self.join("alice")
        expect(alice.page.locator("#people-empty")).to_contain_text("No conversations yet.")
        search = alice.page.get_by_role("searchbox", name="Search people")
        search.fill("ANNA")
        found = alice.page.locator("#people a .name")
        expect(found).to_have_text([self.called("anna"), self.called("hannah")])
        search.press("ArrowDown")
        alice.page.keyboard.press("ArrowDown")
        alice.page.keyboard.press("Enter")
        expect(alice.page.locator("#chat-name")).to_have_text(self.called("hannah"))
        expect(alice.page.locator("#messages-empty")).to_contain_text("No messages yet. Say hello to hannah")
        search.fill("nobody.at.all")
        expect(alice.page.locator("#people-empty")).to_have_text("No matches.")
        search.press("Escape")
        expect(search).to_have_value("")
        # Nothing was written, so there is no conversation.
        expect(alice.page.locator("#people a")).to_have_count(0)
        search.fill("hannah")
        search.press("Enter")
        alice.send("hello")
        alice.has_mark("hello", "Sent")
        expect(search).to_have_value("")
        expect(alice.page.locator("#people a .name")).to_have_text([self.called("hannah")])

    def test_those_who_deleted_their_accounts_are_not_found(self):
        alice = self.join("alice")
        for number in range(3):
            _, token = self.account(f"kim{number}")
            if number:
                self.cluster.call("n1", "ChatService/DeleteAccount", {"password": PASSWORD}, token)
        search = alice.page.get_by_role("searchbox", name="Search people")
        search.fill("kim")
        expect(alice.page.locator("#people .name")).to_have_text([self.called("kim0")])
        expect(alice.page.locator("#people .people-head")).to_have_text(["People"])
        # The page ignores keys that belong to an input method.
        search.evaluate(
            "box => box.dispatchEvent("
            "new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true }))"
        )
        expect(alice.page.locator("#chat")).to_have_attribute("data-open", "no")
        search.fill("kim1")
        expect(alice.page.locator("#people-empty")).to_have_text("No matches.")

    def test_what_was_refused_can_be_tried_again_when_the_reason_is_gone(self):
        alice = self.join("alice")
        alice.context.set_offline(True)
        alice.page.evaluate("name => { location.hash = `#/${name}`; }", self.called("carol"))
        # The page has no information yet that this account does not exist.
        alice.send("hello?")
        alice.context.set_offline(False)
        expect(alice.page.locator(".trouble")).to_contain_text(f"Not sent: no account named {self.called('carol')}.")
        # In the list, it does not look like a message in flight.
        expect(alice.row(self.called("carol")).locator(".mark")).to_have_text("Not sent")
        with alice.page.expect_response("**/SendMessage") as refused:
            alice.button("Try again").click()
        self.assertEqual(refused.value.status, 404)
        expect(alice.page.locator(".trouble")).to_have_count(1)
        carol, token = self.account("carol")
        alice.button("Try again").click()
        alice.has_mark("hello?", "Sent")
        self.assertEqual([message["body"] for message in self.history(token, alice.name)], ["hello?"])
        # The conversation was never loaded because it did not exist, but its messages are read.
        client_id = "0190163d-8694-739b-aea5-966c26f8ad92"
        message = {"recipient": alice.name, "body": "I am here now", "clientMessageId": client_id}
        self.cluster.call("n1", "ChatService/SendMessage", message, token)
        alice.sees("I am here now")
        ask = {"partner": alice.name, "limit": 1}

        def read():
            page = self.cluster.call("n1", "ChatService/ReadConversation", ask, token)
            return [member.get("readSeq") for member in page["members"] if member["username"] == alice.name]

        wait_until("mark of her reading", lambda: read() == ["2"])
        expect(alice.row(carol).locator(".badge")).to_have_count(0)

    def test_what_is_between_the_page_and_the_node_may_fail_in_words_of_its_own(self):
        alice = self.join("alice")
        alice.open(alice.name)
        answers = [{"status": 502, "json": {"error": "bad gateway"}}, {"status": 500, "json": None}]
        answers += [{"status": 503, "body": "<h1>503</h1>"}]
        # These answers ask for a retry, and one of them states the delay.
        answers += [{"status": 408}, {"status": 425, "json": {"code": "too_early"}}]
        answers += [{"status": 429, "headers": {"Retry-After": "1"}}]

        def answer(route):
            return route.fulfill(**answers.pop()) if answers else route.continue_()

        alice.page.route("**/SendMessage", answer)
        alice.send("through all of that")
        alice.has_mark("through all of that", "Sent")
        self.assertEqual(answers, [])
        refusals = [{"status": 403, "body": "forbidden"}] * 2

        def refuse(route):
            return route.fulfill(**refusals.pop()) if refusals else route.continue_()

        alice.page.route("**/ListChatPartners", refuse)
        alice.page.reload()
        said = "Some data couldn't be loaded: The server responded with 403 Forbidden."
        expect(alice.page.locator(".toast")).to_have_text([said])
        expect(alice.row(alice.name)).to_contain_text("through all of that")

    def test_what_was_read_in_one_window_is_no_news_in_another(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        carol, token = self.account("carol")
        other = self.visitor("alice", context=alice.context)
        other.is_in()
        alice.context.grant_permissions(["notifications"], origin=self.cluster.web("n1"))
        other.page.evaluate(FAKE_NOTIFICATIONS)
        other.settings().get_by_label("Notify me about new messages").check()
        other.page.keyboard.press("Escape")
        other.page.evaluate("document.hasFocus = () => false")
        # Extends the delay of ELSEWHERE_MS because read receipts arrive later on a busy machine.
        other.page.evaluate(
            """() => {
                const real = setTimeout;
                window.setTimeout = (work, ms) => real(work, ms === 600 ? 4000 : ms);
            }"""
        )
        bob.open(alice.name).send("first")
        wait_until("notification", lambda: other.page.evaluate("notes.length === 1"))
        alice.open(bob.name).sees("first")
        bob.send("second")
        bob.has_mark("second", "Read")
        client_id = "0190163d-8694-739b-aea5-966c26f8ad93"
        message = {"recipient": alice.name, "body": "from carol", "clientMessageId": client_id}
        self.cluster.call("n1", "ChatService/SendMessage", message, token)
        wait_until("second notification", lambda: other.page.evaluate("notes.length > 1"))
        self.assertEqual(other.page.evaluate("notes"), [[bob.name, "first"], [carol, "from carol"]])

    def test_nothing_falls_between_a_conversation_and_a_list_that_comes_late(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        alice.open(bob.name).send("one")
        bob.open(alice.name).sees("one")
        held = []
        alice.page.route("**/ListChatPartners", lambda route: route.continue_() if held else held.append(route))
        alice.page.reload()
        wait_until("call for the list", lambda: alice.page.evaluate("1") and held)
        bob.send("two")
        bob.has_mark("two", "Sent")
        held[0].continue_()
        alice.sees("two")
        self.assertEqual(alice.bodies(), ["one", "two"])
        bob.has_mark("two", "Read")
        expect(alice.row(bob.name).locator(".badge")).to_have_count(0)

    def test_a_deletion_that_takes_long_leaves_another_conversation_alone(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        alice.open(bob.name).send("one")
        alice.pick("one")
        held = []
        alice.page.route("**/DeleteMessages", lambda route: held.append(route))
        alice.button("Delete for me").click()
        alice.confirm("Delete")
        wait_until("call to delete", lambda: alice.page.evaluate("1") and held)
        alice.open(alice.name)
        alice.input.press_sequentially("a note")
        held[0].continue_()
        expect(alice.page.locator("#announce")).to_have_text("1 message deleted")
        expect(alice.input).to_be_focused()
        expect(alice.input).to_have_value("a note")

    def test_what_is_new_is_marked_until_it_was_seen(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        alice.open(bob.name).send("old one")
        bob.open(alice.name).sees("old one")
        alice.has_mark("old one", "Read")
        bob.open(bob.name)
        for number in range(3):
            alice.send(f"new {number}")
        expect(bob.row(alice.name).locator(".badge")).to_have_text("3 unread")
        bob.open(alice.name)
        bob.sees("new 0")
        rows = bob.page.locator("#messages .space > li").all_inner_texts()
        at = rows.index("New messages")
        self.assertIn("old one", rows[at - 1])
        self.assertIn("new 0", rows[at + 1])
        alice.has_mark("new 2", "Read")
        bob.send("thanks")
        expect(bob.page.locator("#messages .new")).to_have_count(0)
        # A message that arrives while the window has no focus is new and unread.
        bob.page.evaluate("document.hasFocus = () => false; dispatchEvent(new Event('blur'))")
        alice.send("are you there?")
        expect(bob.page.locator("#messages .new")).to_have_count(1)
        alice.has_mark("are you there?", "Delivered")
        bob.page.evaluate("document.hasFocus = () => true; dispatchEvent(new Event('focus'))")
        alice.has_mark("are you there?", "Read")

    def test_days_are_named(self):
        alice = self.join("alice")
        alice.open(alice.name).send("first")
        alice.has_mark("first", "Sent")
        expect(alice.page.locator("#messages .day")).to_have_text(["Today"])
        # Midnight passes without any other event.
        alice.page.clock.set_fixed_time(datetime.now() + timedelta(days=1))
        expect(alice.page.locator("#messages .day")).to_have_text(["Yesterday"])
        expect(alice.row(alice.name).locator("time")).to_have_text("Yesterday")
        alice.page.clock.set_fixed_time(datetime.now() + timedelta(days=400))
        alice.page.reload()
        expect(alice.page.locator("#messages .day")).to_contain_text(str(datetime.now().year))

    def test_messages_are_deleted_for_oneself_and_for_everyone(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        alice.open(bob.name)
        for text in ("one", "two", "three"):
            alice.send(text)
        bob.open(alice.name).sees("three")
        bob.send("four")
        alice.sees("four")
        alice.pick("one", "four")
        expect(alice.page.locator("#pick-count")).to_have_text("2 messages selected")
        expect(alice.button("Delete for everyone")).to_be_disabled()
        alice.message("four").locator(".bubble").click()
        expect(alice.page.locator("#pick-count")).to_have_text("1 message selected")
        alice.message("two").locator(".bubble").click()
        alice.button("Delete for everyone").click()
        alice.confirm("Cancel")
        alice.sees("one")
        alice.button("Delete for everyone").click()
        alice.confirm("Delete")
        for person in (alice, bob):
            expect(person.message("This message was deleted")).to_have_count(2)
            expect(person.message("one")).to_have_count(0)
        bob.pick("three", "four")
        expect(bob.button("Delete for everyone")).to_be_disabled()
        bob.button("Delete for me").click()
        bob.confirm("Delete")
        expect(bob.message("four")).to_have_count(0)
        self.assertEqual(bob.bodies(), ["This message was deleted"] * 2)
        self.assertEqual(alice.bodies(), ["This message was deleted"] * 2 + ["three", "four"])
        expect(bob.row(alice.name)).to_contain_text("This message was deleted")
        for person, texts in ((alice, 4), (bob, 2)):
            person.page.reload()
            expect(person.page.locator("#messages .message")).to_have_count(texts)
        alice.pick("three")
        alice.page.keyboard.press("Escape")
        expect(alice.page.locator("#pick-bar")).to_be_hidden()

    def test_several_devices_of_one_person_see_the_same(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        phone = self.visitor("alice", "n4", viewport={"width": 360, "height": 740})
        phone.log_in()
        phone.is_in()
        alice.open(bob.name).send("from the desk")
        expect(phone.row(bob.name)).to_contain_text("from the desk")
        phone.open(bob.name).sees("from the desk")
        phone.send("from the phone")
        alice.has_mark("from the phone", "Delivered")
        alice.button("Account and settings").click()
        alice.page.keyboard.press("Escape")
        bob.open(alice.name).send("which one are you at?")
        alice.has_mark("from the phone", "Read")
        phone.sees("which one are you at?")
        phone.button("Back to conversations").click()
        expect(phone.row(bob.name).locator(".badge")).to_have_count(0)

    def test_notifications_are_asked_for_and_tell_of_messages(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        alice.context.grant_permissions(["notifications"], origin=self.cluster.web("n1"))
        alice.page.evaluate(FAKE_NOTIFICATIONS)
        alice.settings().get_by_label("Notify me about new messages").check()
        alice.page.keyboard.press("Escape")
        bob.open(alice.name).send("while she looks")
        expect(alice.page.locator(".toast")).to_contain_text("while she looks")
        self.assertEqual(alice.page.evaluate("notes"), [])
        alice.page.evaluate("document.hasFocus = () => false")
        bob.send("while she does not")
        wait_until("notification", lambda: alice.page.evaluate("notes.length === 1"))
        self.assertEqual(alice.page.evaluate("notes"), [[bob.name, "while she does not"]])
        alice.page.evaluate("lastNote.dispatchEvent(new Event('click'))")
        alice.sees("while she does not")


if __name__ == "__main__":
    unittest.main()
