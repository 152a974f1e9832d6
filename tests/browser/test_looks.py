"""Appearance and accessibility of the page at several widths, in both themes and with the keyboard alone, and its load
time."""

import unittest
import uuid
from importlib.resources import files

from playwright.sync_api import expect

from case import Case
from person import PASSWORD

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
#: Width and height of a small phone, a tablet and a large screen.
SIZES = [(360, 740), (768, 1024), (1920, 1080)]
#: Elements that overflow their place or the window, except for those that end in an ellipsis or can be scrolled.
CUT = """(() => [...document.body.querySelectorAll("*")].filter((element) => {
  if (!element.checkVisibility() || element.closest(".vh, svg")) return false;
  const { left, right } = element.getBoundingClientRect();
  const { overflowX, textOverflow } = getComputedStyle(element);
  const wider = element.clientWidth > 0 && element.scrollWidth > element.clientWidth;
  return left < 0 || right > innerWidth || (wider && textOverflow !== "ellipsis" && overflowX !== "auto");
}).map((element) => `${element.tagName}#${element.id}.${element.className}`))()"""
FIRST_LOAD_BYTES_MAX = 100_000


class Looks(Case):
    def check(self, person, where):
        """Checks that axe finds no fault, and that nothing is outside the page."""
        # The placeholder that is shown during loading is gone.
        expect(person.page.locator("#boot")).to_have_count(0)
        person.page.evaluate(AXE)
        # Wait for the animations first, because half-transparent elements have too little contrast.
        person.page.evaluate("Promise.all(document.getAnimations().map((animation) => animation.finished))")
        faults = person.page.evaluate(
            "axe.run(document, { resultTypes: ['violations'] }).then((found) => found.violations)"
        )
        told = [
            f"{fault['id']}: {fault['help']}: {node['target']} {node.get('failureSummary')}"
            for fault in faults
            for node in fault["nodes"]
        ]
        self.assertEqual(told, [], where)
        beside = person.page.evaluate(
            "[document.documentElement.scrollWidth - innerWidth, document.documentElement.scrollHeight - innerHeight]"
        )
        self.assertLessEqual(max(beside), 0, f"{where}: the page itself scrolls")
        cut = person.page.evaluate(CUT)
        self.assertEqual(cut, [], f"{where}: something is cut off at the side")
        self.picture(person, where)

    def test_every_view_is_accessible_at_every_width_in_both_themes(self):
        bob = self.join("bob", "n2")
        carol, token = self.account("carol")
        shown = [(size, theme) for size in SIZES for theme in ("light", "dark")]
        for number, ((width, height), theme) in enumerate(shown):
            with self.subTest(width=width, theme=theme):
                where = f"{width}-{theme}"
                alice = self.visitor(f"alice{number}", viewport={"width": width, "height": height}, color_scheme=theme)
                self.check(alice, f"login-{where}")
                alice.button("Create an account").click()
                alice.fill("Password", "kangaroo5")
                alice.button("Create account").click()
                self.check(alice, f"signup-{where}")
                alice.button("Log in").click()
                alice.sign_up()
                self.check(alice, f"empty-{where}")
                self.fill(alice, bob, carol, token)
                self.check(alice, f"chat-{where}")
                alice.button("Find in this conversation").click()
                alice.page.get_by_role("searchbox", name="Find").fill("the")
                expect(alice.page.locator("#find-count")).to_have_text("1 of 3")
                self.check(alice, f"find-{where}")
                alice.page.keyboard.press("Escape")
                alice.pick("Nothing is lost, even when two of the five nodes are.")
                self.check(alice, f"pick-{where}")
                alice.button("Delete for me").click()
                self.check(alice, f"confirm-{where}")
                alice.confirm("Cancel")
                alice.page.keyboard.press("Escape")
                if width == 360:
                    alice.button("Back to conversations").click()
                    expect(alice.row(carol)).to_be_visible()
                    expect(alice.row(bob.name)).to_be_focused()
                    self.check(alice, f"people-{where}")
                alice.page.get_by_role("searchbox").fill("bob")
                expect(alice.row(bob.name)).to_be_visible()
                self.check(alice, f"search-{where}")
                alice.page.keyboard.press("Escape")
                alice.button("show the cluster", exact=False).click()
                expect(alice.page.locator("#cluster-nodes tr")).to_have_count(5)
                self.check(alice, f"cluster-{where}")
                alice.page.keyboard.press("Escape")
                alice.settings()
                self.check(alice, f"settings-{where}")

    def fill(self, alice, bob, carol, token):
        """Creates a conversation with a bit of everything, and another unread one."""
        for at, body in enumerate(["Lunch at noon?", "I have a table by the window."]):
            client_id = f"0190163d-8694-739b-aea5-{abs(hash((alice.name, at))) % 16**12:012x}"
            message = {"recipient": alice.name, "body": body, "clientMessageId": client_id}
            self.cluster.call("n4", "ChatService/SendMessage", message, token)
        link = "https://example.com/a/rather/long/address/that/has/to/wrap/somewhere"
        alice.open(bob.name).send(f"Hello Bob! Have you seen this? {link}")
        bob.open(alice.name).send(
            "Not yet.\nI will have a look when I am back at my desk, which will be some time in the afternoon."
        )
        alice.sees("Not yet. I will have a look when I am back at my desk, which will be some time in the afternoon.")
        alice.send("Nothing is lost, even when two of the five nodes are.")
        bob.send("שלום, 你好, 👋🏽")
        alice.sees("שלום, 你好, 👋🏽")
        alice.send("deleted")
        alice.pick("deleted")
        alice.button("Delete for everyone").click()
        alice.confirm("Delete")
        alice.sees("This message was deleted")
        alice.send("👍")
        alice.has_mark("👍", "Read")
        expect(alice.page.locator(".toast")).to_have_count(0)

    def test_the_longest_names_and_words_fit_on_a_small_phone(self):
        longest = {who: who * 32 for who in "mw"}
        tokens = {}
        for name in longest.values():
            account = {"username": name, "password": PASSWORD}
            self.cluster.call("n1", "ChatService/CreateAccount", account)
            tokens[name] = self.cluster.call("n1", "ChatService/Login", account)["token"]
        alice = self.visitor("alice", "n2", viewport={"width": 360, "height": 740})
        alice.name = longest["m"]
        alice.log_in()
        alice.is_in()
        # Move the pointer away, so that nothing is hovered and no toast stays open.
        alice.page.mouse.move(0, 0)

        def write(body):
            message = {"recipient": longest["m"], "body": body, "clientMessageId": str(uuid.uuid4())}
            self.cluster.call("n4", "ChatService/SendMessage", message, tokens[longest["w"]])

        toast = alice.page.locator(".toast")
        write("W" * 400)
        expect(toast).to_be_visible()
        self.check(alice, "longest-people-with-toast")
        # A toast does not cover the search box.
        alice.page.get_by_role("searchbox").click(timeout=2000)
        alice.settings()
        self.check(alice, "longest-settings")
        alice.button("Delete account…").click()
        self.check(alice, "longest-delete-account")
        alice.confirm("Cancel")
        alice.page.keyboard.press("Escape")
        alice.open(longest["w"])
        alice.send("M" * 400)
        self.check(alice, "longest-chat")

    def test_the_keyboard_alone_is_enough(self):
        bob = self.join("bob", "n2")
        alice = self.visitor("alice")
        keyboard = alice.page.keyboard

        def tab_to(name, most=30):
            for _ in range(most):
                focused = alice.page.evaluate(
                    "(document.activeElement.labels?.[0] ?? document.activeElement).textContent.trim()"
                    " || document.activeElement.getAttribute('aria-label')"
                )
                if focused and focused.startswith(name):
                    return
                keyboard.press("Tab")
            self.fail(f"{name} was not reached; the focus is at {focused!r}")

        expect(alice.page.get_by_label("Username", exact=True)).to_be_focused()
        tab_to("Create an account")
        keyboard.press("Enter")
        for label, text in (("Username", alice.name), ("Password", PASSWORD), ("Confirm password", PASSWORD)):
            alice.page.get_by_label("Username", exact=True).focus() if label == "Username" else tab_to(label)
            keyboard.type(text)
            keyboard.press("Tab")
        tab_to("Create account")
        keyboard.press("Enter")
        alice.is_in()
        tab_to("Search people")
        keyboard.type(bob.name)
        keyboard.press("Enter")
        expect(alice.page.locator("#chat-name")).to_have_text(bob.name)
        expect(alice.input).to_be_focused()
        keyboard.type("typed")
        keyboard.press("Enter")
        alice.has_mark("typed", "Delivered")
        for _ in range(6):
            keyboard.press("Shift+Tab")
        tab_to("Select messages")
        keyboard.press("Enter")
        tab_to("Select message: typed")
        keyboard.press("Space")
        tab_to("Delete for everyone")
        keyboard.press("Enter")
        tab_to("Delete")
        keyboard.press("Enter")
        alice.sees("This message was deleted")
        # A deleted message has no mark.
        expect(alice.row(bob.name).locator(".mark")).to_have_count(0)
        expect(alice.button("Select messages")).to_be_focused()

    def test_the_theme_can_be_chosen_and_stays(self):
        alice = self.join("alice", color_scheme="light")
        colour = "getComputedStyle(document.body).backgroundColor"
        light = alice.page.evaluate(colour)
        alice.settings().get_by_role("radio", name="Dark").check()
        dark = alice.page.evaluate(colour)
        self.assertNotEqual(light, dark)
        alice.page.reload()
        self.assertEqual(alice.page.evaluate(colour), dark)
        alice.is_in()
        alice.settings().get_by_role("radio", name="System").check()
        self.assertEqual(alice.page.evaluate(colour), light)

    def test_motion_is_left_out_for_those_who_wish_so(self):
        alice, bob = self.join("alice", reduced_motion="reduce"), self.join("bob", "n2")
        bob.open(alice.name).send("hello")
        expect(alice.page.locator(".toast")).to_be_visible()
        self.assertEqual(alice.page.evaluate("document.getAnimations().length"), 0)

    def test_messages_are_told_to_screen_readers(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        bob.open(alice.name).send("hello")
        told = alice.page.locator("#announce")
        expect(told).to_have_text(f"New message from {bob.name}: hello")
        alice.open(bob.name)
        bob.send("are you there?")
        expect(told).to_have_text(f"{bob.name}: are you there?")

    def test_a_first_visit_loads_little_and_a_second_one_next_to_nothing(self):
        # Requests of a worker are not visible here. They are counted in files.rs, and for the second visit in
        # test_browsers.py.
        context = self.browser.new_context(service_workers="block")
        page = context.new_page()
        network = context.new_cdp_session(page)
        network.send("Network.enable")
        sizes = []
        network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
        page.goto(self.cluster.web("n1"), wait_until="networkidle")
        expect(page.get_by_label("Username", exact=True)).to_be_focused()
        first = sum(sizes)
        self.assertGreater(first, 10_000, "the sizes were seen")
        self.assertLess(first, FIRST_LOAD_BYTES_MAX)
        timing = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        sizes.clear()
        page.reload(wait_until="networkidle")
        self.assertLess(sum(sizes), 10_000)
        print(f"first visit: {first} bytes, interactive after {timing:.0f} ms; second: {sum(sizes)} bytes")
        context.close()


if __name__ == "__main__":
    unittest.main()
