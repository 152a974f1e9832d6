"""The copy of the page that browsers keep, and features that some browsers lack or refuse."""

import re
import unittest

from playwright.sync_api import expect

from case import Case
from waiting import wait_until
from front import Front
from person import Person

#: The shells that the browser keeps, and whether each of them is complete.
KEPT = """async () => {
    const kept = {};
    for (const cacheName of await caches.keys()) {
        // Opening a cache would recreate one that was just deleted.
        const find = (path) => caches.match(path, { cacheName, ignoreVary: true });
        const document = await find("/");
        const text = document ? await document.text() : "";
        const files = [...new Set(text.match(/\\/assets\\/[0-9a-f]+\\/[a-z]+\\.[a-z]+/g))];
        const there = await Promise.all(files.map(find));
        kept[cacheName.replace("shell/", "")] = files.length > 20 && there.every(Boolean);
    }
    return kept;
}"""


#: Removes features that browsers have had for less than four years. In November 2026 those are the features newer than
#: Safari 16.1, Firefox 106 and Chrome 107.
FOUR_YEARS_AGO = """
    const newer = {
        AbortSignal: ["any"], URL: ["canParse", "parse"], Promise: ["withResolvers", "try"], Object: ["groupBy"],
        Map: ["groupBy"], Array: ["fromAsync"], Intl: ["Segmenter", "DurationFormat"], ReadableStream: ["from"],
        Uint8Array: ["fromHex", "fromBase64"], RegExp: ["escape"], Error: ["isError"], Math: ["sumPrecise", "f16round"],
        "Array.prototype": ["toSorted", "toReversed", "toSpliced", "with"],
        "Set.prototype": ["union", "intersection", "difference", "symmetricDifference", "isSubsetOf", "isSupersetOf",
            "isDisjointFrom"],
        "Map.prototype": ["getOrInsert", "getOrInsertComputed"], "String.prototype": ["isWellFormed", "toWellFormed"],
        "Iterator.prototype": ["map", "filter", "take", "drop", "flatMap", "reduce", "toArray", "forEach", "some",
            "every", "find"],
        "ReadableStream.prototype": [Symbol.asyncIterator, "values"], "Uint8Array.prototype": ["toHex", "toBase64"],
        "Element.prototype": ["checkVisibility", "setHTML", "moveBefore"],
        "HTMLElement.prototype": ["showPopover", "hidePopover", "togglePopover"],
        window: ["requestIdleCallback", "scheduler", "navigation", "trustedTypes", "CSSPositionTryRule", "onscrollend"],
        "Document.prototype": ["startViewTransition", "onscrollend"],
        "Navigator.prototype": ["userActivation", "storageBuckets"],
    };
    for (const [path, names] of Object.entries(newer)) {
        const owner = path.split(".").reduce((object, name) => object?.[name], window);
        for (const name of names) if (owner) delete owner[name];
    }
"""
#: As in phone browsers.
NO_NOTIFICATIONS = """
    window.Notification = class {
        static permission = "granted";
        constructor() { throw new TypeError("Illegal constructor"); }
    };
"""
#: The notifications that the worker shows.
SHOWN = """async () => {
    const worker = await navigator.serviceWorker.getRegistration();
    return (await worker.getNotifications()).map(({ title, body, renotify }) => [title, body, renotify]);
}"""
#: A click on a notification, as the browser dispatches it to the worker.
CLICK = """async () => {
    const [notification] = await registration.getNotifications();
    dispatchEvent(new NotificationEvent("notificationclick", { notification }));
}"""
#: A browser that neither keeps nor sends cookies.
NO_COOKIES = """
    const real = fetch;
    window.fetch = (address, options) => real(address, { ...options, credentials: "omit" });
"""
#: Ways in which storage access fails.
STORES_NOTHING = {
    "full": "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };",
    "forbidden": """
        const no = { get() { throw new DOMException("no", "SecurityError"); } };
        Object.defineProperties(window, { localStorage: no, sessionStorage: no });
    """,
    "missing": "Object.defineProperties(window, { localStorage: { value: null }, sessionStorage: { value: null } });",
}


class Lacking(Case):
    nodes = 1

    def visits(self, name, script="", **options):
        context = self.browser.new_context(locale="en-GB", **options)
        context.add_init_script(script)
        return self.visitor(name, context=context)

    def test_a_browser_of_four_years_ago_chats(self):
        alice, bob = self.visits("alice", FOUR_YEARS_AGO).sign_up(), self.join("bob")
        self.assertFalse(alice.page.evaluate("'any' in AbortSignal || 'canParse' in URL"))
        alice.open(bob.name).send("hello")
        bob.open(alice.name).send("hello yourself")
        alice.sees("hello yourself")
        alice.has_mark("hello", "Read")

    def test_a_browser_that_is_too_old_or_has_no_scripts_is_told_so_before_the_login(self):
        boot = self.visits("alice", "delete Promise.any;").page.locator("#boot")
        expect(boot).to_contain_text("This browser is too old")
        expect(boot.page.locator("#auth")).to_be_hidden()
        bob = self.visits("bob", java_script_enabled=False)
        # Playwright ignores the content of a noscript element.
        seen = bob.context.new_cdp_session(bob.page).send("DOMSnapshot.captureSnapshot", {"computedStyles": []})
        texts = [seen["strings"][at] for at in seen["documents"][0]["layout"]["text"] if at >= 0]
        self.assertEqual(texts, ["Please turn on JavaScript."])

    def test_a_browser_that_stores_nothing_chats_as_long_as_the_page_is_open(self):
        for number, (how, script) in enumerate(STORES_NOTHING.items()):
            with self.subTest(how):
                alice = self.visits(f"a{number}", script).sign_up()
                alice.open(alice.name).send("a note")
                alice.has_mark("a note", "Sent")
                alice.settings().get_by_role("button", name="Log out").click()
                alice.is_out()

    def test_a_browser_that_refuses_cookies_stays_logged_in(self):
        for script in (NO_COOKIES, "Object.defineProperty(Navigator.prototype, 'cookieEnabled', { value: false });"):
            with self.subTest(script):
                alice = self.visits(f"alice{len(script)}", script).sign_up()
                self.assertEqual(alice.sessions(), [])
                alice.page.reload()
                alice.is_in()
                alice.open(alice.name).send("a note")
                alice.has_mark("a note", "Sent")
                alice.settings().get_by_role("button", name="Log out").click()
                expect(alice.page.locator("#auth-notice")).to_have_text("You've been logged out.")

    def test_notifications_come_from_the_worker_where_pages_have_none(self):
        alice = self.visits("alice", NO_NOTIFICATIONS).sign_up()
        alice.context.grant_permissions(["notifications"], origin=self.cluster.web("n1"))
        bob, token = self.account("bob")
        worker = "navigator.serviceWorker.getRegistration().then((found) => Boolean(found?.active))"
        wait_until("worker", lambda: alice.page.evaluate(worker))
        settings = alice.settings()
        settings.get_by_label("Notify me about new messages").check()
        alice.page.keyboard.press("Escape")
        alice.page.evaluate("document.hasFocus = () => false")

        def write(text, number):
            own_id = f"0190163d-8694-739b-aea5-{number:012x}"
            message = {"recipient": alice.name, "body": text, "clientMessageId": own_id}
            self.cluster.call("n1", "ChatService/SendMessage", message, token)

        write("one", 1)
        wait_until("notification", lambda: alice.page.evaluate(SHOWN) == [[bob, "one", True]])
        alice.context.service_workers[0].evaluate(CLICK)
        expect(alice.page.locator("#chat-name")).to_have_text(bob)
        wait_until("end of the notification", lambda: alice.page.evaluate(SHOWN) == [])
        # Without a worker there are no notifications.
        alice.page.evaluate("() => { ServiceWorkerRegistration.prototype.showNotification = () => Promise.reject(); }")
        alice.open(alice.name)
        write("two", 2)
        expect(alice.page.locator(".toast.error")).to_contain_text("can't show notifications")
        expect(alice.settings().get_by_label("Notify me about new messages")).not_to_be_checked()

    def test_a_name_that_an_input_method_composes_is_typed_once(self):
        alice = self.visits("alice")
        alice.page.get_by_label("Username", exact=True).focus()
        keyboard = alice.context.new_cdp_session(alice.page)
        for text in ("A", "Al", "Ali", "Alic", "Alice"):
            composed = {"text": text, "selectionStart": len(text), "selectionEnd": len(text)}
            keyboard.send("Input.imeSetComposition", composed)
        keyboard.send("Input.insertText", {"text": "Alice "})
        expect(alice.page.get_by_label("Username", exact=True)).to_have_value("alice")

    def test_the_way_back_to_the_list_is_the_one_of_the_browser(self):
        alice = self.join("alice", viewport={"width": 360, "height": 740})
        bob, token = self.account("bob")
        for number, name in enumerate((alice.name, bob)):
            alice.page.goto("about:blank")
            alice.page.goto(self.cluster.web("n1"))
            alice.is_in()
            alice.open(alice.name)
            if name == bob:
                # Switch from one conversation to another, as a toast does.
                alice.page.evaluate("name => { location.hash = `#/${name}`; }", bob)
                expect(alice.page.locator("#chat-name")).to_have_text(bob)
            alice.button("Back to conversations").click()
            expect(alice.page.locator("#side")).to_be_visible()
            alice.page.go_back()
            expect(alice.page).to_have_url("about:blank")
        # A page opened from a bookmark has no list to go back to.
        alice.page.goto(f"{self.cluster.web('n1')}/#/{bob}")
        expect(alice.page.locator("#chat-name")).to_have_text(bob)
        alice.button("Back to conversations").click()
        expect(alice.page.locator("#side")).to_be_visible()
        alice.page.go_back()
        expect(alice.page).to_have_url("about:blank")


#: Loses or damages a kept file.
REMOVE = """async (version) => {
    const shell = await caches.open(`shell/${version}`);
    await shell.delete(`/assets/${version}/main.js`, { ignoreVary: true });
}"""
BREAK = """async (version) => {
    const shell = await caches.open(`shell/${version}`);
    const broken = new Response("let let;", { headers: { "Content-Type": "text/javascript" } });
    await shell.put(`/assets/${version}/main.js`, broken);
}"""


class Kept(Case):
    """The shell of the page that a service worker keeps."""

    nodes = 1

    def setUp(self):
        super().setUp()
        self.front = Front(self.cluster.nodes["n1"]["web"])
        self.addCleanup(self.front.stop)
        self.person = Person(self.browser.new_context(), "visitor")
        self.people.append(self.person)
        self.page = self.person.page
        self.person.goto(self.front.address)
        self.person.is_out()
        self.keeps(self.front.own)

    def keeps(self, version):
        wait_until(f"kept shell of {version}", lambda: self.page.evaluate(KEPT) == {version: True})

    def shows(self, version):
        self.person.is_out()
        self.assertIn(f"/assets/{version}/", self.page.locator("script").get_attribute("src"))

    def test_one_version_is_kept_and_a_node_that_answers_decides_which(self):
        old, new = self.front.own, "f" * 16
        # A second visit requests only the document, and checks for a new worker.
        self.front.seen.clear()
        self.page.reload()
        self.shows(old)
        self.assertLessEqual(set(self.front.seen), {"/", "/worker.js"})
        for mode in ("down", "502", "hang"):
            with self.subTest(mode):
                self.front.mode = mode
                self.page.reload()
                self.shows(old)
        self.front.mode = "portal"
        self.front.released.set()
        self.page.reload()
        expect(self.page).to_have_title("portal")
        self.keeps(old)
        # The node is updated.
        self.front.mode, self.front.version = "up", new
        self.page.reload()
        self.shows(new)
        self.keeps(new)
        self.front.mode = "down"
        self.page.reload()
        self.shows(new)
        # The node is downgraded again, but some of its files are missing. The shell that was kept before must not come
        # back.
        self.front.mode, self.front.version, self.front.missing = "up", old, "/outbox.js"
        network = self.person.context.new_cdp_session(self.page)
        network.send("Network.clearBrowserCache")
        self.page.reload()
        expect(self.page.locator("#boot")).to_have_text(re.compile("Trying again"))
        self.assertFalse(any(self.page.evaluate(KEPT).values()), "half a shell counts as one")
        self.front.missing = None
        self.shows(old)
        self.keeps(old)

    def test_a_broken_shell_is_replaced(self):
        own = self.front.own
        with self.subTest("a file is missing"):
            self.page.evaluate(REMOVE, own)
            self.assertEqual(self.page.evaluate(KEPT), {own: False})
            self.page.reload()
            self.keeps(own)
        with self.subTest("a file is broken"):
            self.page.evaluate(BREAK, own)
            self.person.context.new_cdp_session(self.page).send("Network.clearBrowserCache")
            self.front.mode = "down"
            self.page.reload()
            expect(self.page.locator("#boot")).to_contain_text("too old")
            wait_until("end of the broken shell", lambda: self.page.evaluate(KEPT) == {})
            self.front.mode = "up"
            self.page.reload()
            self.shows(own)
            self.keeps(own)


if __name__ == "__main__":
    unittest.main()
