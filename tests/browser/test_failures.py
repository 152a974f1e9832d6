"""Nodes die while people type, send and read. Nothing is lost or duplicated, and the page recovers by itself."""

import re
import signal
import unittest

from playwright.sync_api import expect

from case import Case
from waiting import wait_until
from person import PASSWORD

#: The paths of everything that is kept.
KEPT_PATHS = """async () => {
    const caught = await Promise.all((await caches.keys()).map(async (name) => (await caches.open(name)).keys()));
    return caught.flat().map(({ url }) => new URL(url).pathname);
}"""
#: The document is stored last.
IS_KEPT = "caches.match('/', { ignoreVary: true }).then(Boolean)"
NOTHING_LOST = "New messages will be sent automatically"


class Failures(Case):
    def setUp(self):
        super().setUp()
        self.addCleanup(self.mend)
        self.down = []

    def kill(self, *names):
        self.cluster.kill(*names)
        self.down += names

    def mend(self):
        """Starts all five nodes again for the next test."""
        self.cluster.start(*self.down)
        self.down = []

    def followers(self):
        leader = self.cluster.leader()
        return [name for name in self.cluster.nodes if name != leader]

    def stored(self, person, partner):
        """The stored messages of a conversation, in order."""
        who = {"username": person.name, "password": PASSWORD}
        token = self.cluster.call(self.alive(), "ChatService/Login", who)["token"]
        return [message["body"] for message in self.history(token, partner.name)]

    def test_a_node_dies_while_one_types_and_the_other_goes_on_talking(self):
        near, far = self.followers()[:2]
        alice, bob = self.join("alice", near), self.join("bob", far)
        alice.open(bob.name).send("before")
        bob.open(alice.name).sees("before")
        alice.input.press_sequentially("a sentence that is be")
        self.kill(near)
        alice.input.press_sequentially("ing typed")
        bob.send("while her node was dead")
        alice.sees("while her node was dead")
        expect(alice.input).to_have_value("a sentence that is being typed")
        alice.status(re.compile(rf"Connected to (?!{near}\b)"))
        alice.input.press("Enter")
        alice.has_mark("a sentence that is being typed", "Read")
        bob.sees("a sentence that is being typed")
        expected = ["before", "while her node was dead", "a sentence that is being typed"]
        self.assertEqual(self.stored(alice, bob), expected)
        for person in (alice, bob):
            self.assertEqual(person.bodies(), expected)

    def test_a_page_is_loaded_while_its_node_is_dead(self):
        near, far = self.followers()[:2]
        alice, bob = self.join("alice", near), self.join("bob", far)
        alice.open(bob.name).send("before")
        bob.open(alice.name).sees("before")
        wait_until("kept page", lambda: alice.page.evaluate(IS_KEPT))
        self.kill(near)
        alice.page.reload()
        alice.is_in()
        alice.sees("before")
        alice.status(re.compile(rf"Connected to (?!{near}\b)"))
        alice.send("after the reload")
        alice.has_mark("after the reload", "Read")
        # Open the page as from a bookmark.
        other = self.visitor("alice", near, context=alice.context)
        other.is_in()
        other.open(bob.name).sees("after the reload")
        # Nothing that belongs to the account is kept with the page, and no session is left behind.
        kept = alice.page.evaluate(KEPT_PATHS)
        self.assertEqual({path for path in kept if not path.startswith("/assets/")}, {"/"})
        other.settings().get_by_role("button", name="Log out").click()
        for person in (alice, other):
            expect(person.page.locator("#auth-notice")).to_have_text("You've been logged out.")
        self.assertEqual(alice.sessions(), [])
        alice.page.reload()
        alice.log_in()
        alice.is_in()
        self.assertEqual(self.stored(alice, bob), ["before", "after the reload"])

    def test_a_node_dies_and_the_others_are_far_away(self):
        near = self.followers()[0]
        alice, bob = self.join("alice", near), self.join("bob", self.followers()[1])
        alice.open(bob.name).send("before")
        bob.open(alice.name).sees("before")
        network = alice.page.context.new_cdp_session(alice.page)
        network.send("Network.enable")
        far = {"offline": False, "latency": 2000, "downloadThroughput": -1, "uploadThroughput": -1}
        network.send("Network.emulateNetworkConditions", far)
        self.kill(near)
        alice.send("from far away")
        alice.status(re.compile(rf"Connected to (?!{near}\b)"))
        alice.has_mark("from far away", "Read")
        bob.sees("from far away")

    def test_a_node_dies_while_messages_are_sent(self):
        for number, victim in enumerate([self.followers()[0], self.cluster.leader()]):
            with self.subTest(victim=victim):
                # The viewport is high enough for the document to contain all messages.
                tall = {"viewport": {"width": 1200, "height": 3000}}
                alice = self.join(f"alice{number}", victim, **tall)
                bob = self.join(f"bob{number}", self.followers()[-1], **tall)
                bob.page.get_by_role("searchbox").fill(alice.name)
                bob.row(alice.name).click()
                alice.open(bob.name)
                sent = [f"message {at}" for at in range(40)]
                for at, body in enumerate(sent):
                    alice.send(body)
                    if at == 15:
                        self.kill(victim)
                alice.has_mark(sent[-1], "Read")
                for person in (alice, bob):
                    person.sees(sent[-1])
                    expect(person.page.locator("#messages .message")).to_have_count(40)
                    self.assertEqual(person.bodies(), sent)
                self.assertEqual(self.stored(alice, bob), sent)
                self.mend()

    def test_a_node_that_hangs_is_left(self):
        near, far = self.followers()[:2]
        alice, bob = self.join("alice", near), self.join("bob", far)
        alice.open(bob.name).send("before")
        bob.open(alice.name).sees("before")
        self.cluster.signal(near, signal.SIGSTOP)
        try:
            alice.send("into the silence")
            bob.sees("into the silence")
            alice.has_mark("into the silence", "Read")
            alice.status(re.compile(rf"Connected to (?!{near}\b)"))
            bob.send("and back")
            alice.sees("and back")
        finally:
            self.cluster.signal(near, signal.SIGCONT)
        self.assertEqual(self.stored(alice, bob), ["before", "into the silence", "and back"])

    def test_without_a_majority_one_sees_what_there_is_and_what_is_sent_waits(self):
        leader, followers = self.cluster.leader(), self.followers()
        alice, bob = self.join("alice", followers[0]), self.join("bob", followers[1])
        alice.open(bob.name).send("before")
        bob.open(alice.name).sees("before")
        carol, token = self.account("carol")
        client_id = "0190163d-8694-739b-aea5-966c26f8ad91"
        message = {"recipient": alice.name, "body": "from carol", "clientMessageId": client_id}
        self.cluster.call(followers[0], "ChatService/SendMessage", message, token)
        expect(alice.row(carol)).to_contain_text("from carol")
        self.kill(leader, *followers[2:])
        for person in (alice, bob):
            banner = person.page.locator("#banner")
            expect(banner).to_contain_text("Most servers are down. Showing messages as of", timeout=30_000)
            expect(banner).to_contain_text(NOTHING_LOST)
            person.status("No majority")
        age = lambda: int(re.search(r"as of (\d+) seconds? ago", alice.page.locator("#banner").inner_text())[1])
        first = age()
        wait_until("greater age", lambda: age() > first + 1)
        # The node that answers is up, regardless of the state of the others.
        alice.button("show the cluster", exact=False).click()
        expect(alice.page.locator("#cluster-nodes .here")).to_contain_text("up")
        alice.page.keyboard.press("Escape")
        # The banner has two lines on a phone.
        alice.page.set_viewport_size({"width": 360, "height": 740})
        self.assertLess(alice.page.locator("#banner").bounding_box()["height"], 60)
        self.picture(alice, "minority-360")
        alice.page.set_viewport_size({"width": 1200, "height": 800})
        # A conversation that was not open yet can still be read.
        alice.open(carol).sees("from carol")
        alice.open(bob.name).send("waits 1")
        alice.send("waits 2")
        alice.has_mark("waits 1", "Sending…")
        expect(alice.row(bob.name)).to_contain_text("waits 2")
        alice.input.fill("not finished")
        # Waiting messages also survive a reload of the page.
        alice.page.reload()
        alice.is_in()
        alice.has_mark("waits 2", "Sending…")
        alice.sees("before")
        expect(alice.input).to_have_value("not finished")
        self.picture(alice, "minority")
        self.mend()
        alice.has_mark("waits 2", "Read")
        bob.sees("waits 2")
        expect(alice.page.locator("#banner")).to_be_hidden(timeout=30_000)
        expect(alice.input).to_have_value("not finished")
        for person in (alice, bob):
            self.assertEqual(person.bodies(), ["before", "waits 1", "waits 2"])
        self.assertEqual(self.stored(alice, bob), ["before", "waits 1", "waits 2"])

    def test_when_all_nodes_are_gone_the_page_waits_for_them(self):
        alice, bob = self.join("alice", "n1"), self.join("bob", "n2")
        alice.open(bob.name).send("before")
        bob.open(alice.name).sees("before")
        alice.has_mark("before", "Read")
        self.kill(*self.cluster.nodes)
        alice.status("No connection")
        alice.send("to nobody")
        alice.has_mark("to nobody", "Sending…")
        expect(alice.page.locator("#banner")).to_contain_text("You're offline.")
        self.mend()
        bob.sees("to nobody")
        alice.has_mark("to nobody", "Read")
        self.assertEqual(self.stored(alice, bob), ["before", "to nobody"])

    def test_a_node_that_lags_behind_leaves_no_gap(self):
        leader, followers = self.cluster.leader(), self.followers()
        near, behind = followers[:2]
        alice, bob = self.join("alice", near), self.join("bob", leader)
        bob.open(alice.name).send("1")
        bob.has_mark("1", "Delivered")
        # Reload, so that the conversation has a message that this page did not receive as an event.
        alice.page.reload()
        expect(alice.row(bob.name)).to_contain_text("1")
        self.kill(behind)
        for text in ("2", "3", "4"):
            bob.send(text)
        bob.has_mark("4", "Delivered")
        expect(alice.row(bob.name)).to_contain_text("4")
        self.kill(*(name for name in self.cluster.nodes if name != behind))
        self.cluster.launch(behind)
        self.down.remove(behind)
        alice.status("No majority")
        # The page shows the data of this node, although it is out of date.
        alice.open(bob.name).sees("1")
        alice.send("from the minority")
        self.assertEqual(alice.bodies(), ["1", "from the minority"])
        self.mend()
        alice.has_mark("from the minority", "Read")
        alice.sees("4")
        self.assertEqual(alice.bodies(), ["1", "2", "3", "4", "from the minority"])
        expect(alice.row(bob.name).locator(".badge")).to_have_count(0)

    def test_a_page_half_of_which_is_of_another_version_comes_up_by_itself(self):
        """This happens behind one address while the nodes are updated."""
        for missing in ("main.js", "store.js", "style.css"):
            with self.subTest(missing):
                context = self.browser.new_context()
                context.route(f"**/assets/*/{missing}", lambda route: route.fulfill(status=404))
                alice = self.visitor("alice", "n1", context=context)
                boot = alice.page.locator("#boot")
                expect(boot).to_have_text(re.compile("Trying again"))
                # The next attempt fails, too.
                with alice.page.expect_navigation():
                    pass
                expect(boot).to_have_text(re.compile("Trying again"))
                context.unroute(f"**/assets/*/{missing}")
                alice.is_out()
                expect(boot).to_have_count(0)
                self.assertIsNone(alice.page.evaluate("sessionStorage.getItem('boot-tries')"))

    def test_a_page_that_cannot_run_is_not_loaded_again(self):
        """A reload would hide a bug, and would not help."""

        def answer_with(script):
            return lambda route: route.fulfill(content_type="text/javascript", body=script)

        failing = "export function start() { throw new Error('as planned'); }"
        for script, text in ((failing, "Loading"), ("let let;", "This browser is too old")):
            with self.subTest(text):
                context = self.browser.new_context()
                context.route("**/assets/*/main.js", answer_with(script))
                alice = self.visitor("alice", "n1", context=context)
                expect(alice.page.locator("#boot")).to_contain_text(text)
                if text == "Loading":
                    with alice.page.expect_event("pageerror", lambda error: "as planned" in str(error)):
                        alice.page.reload()
                    alice.faults.clear()
                self.assertIsNone(alice.page.evaluate("sessionStorage.getItem('boot-tries')"))

    def test_a_node_that_dies_in_the_middle_of_loading_is_waited_for(self):
        [node] = self.followers()[:1]
        context = self.browser.new_context()

        def die(request):
            if request.url.endswith("/boot.js"):
                context.remove_listener("requestfinished", die)
                self.kill(node)

        context.on("requestfinished", die)
        # The page may already have received its other requested files.
        context.route("**/assets/*/main.js", lambda route: route.abort(), times=1)
        alice = self.visitor("alice", node, context=context)
        boot = alice.page.locator("#boot")
        expect(boot).to_have_text(re.compile("Trying again"))
        self.assertEqual(self.down, [node])
        # The page probes the node before it reloads, because the browser would replace it with an error page.
        for _ in range(2):
            with alice.page.expect_event("requestfailed", lambda request: request.url == f"{self.cluster.web(node)}/"):
                pass
        expect(boot).to_have_text(re.compile("Trying again"))
        self.mend()
        alice.is_out()

    def test_without_the_cluster_one_can_log_out_here(self):
        alice = self.join("alice", "n1")
        other = self.visitor("alice", "n1", context=alice.context)
        alice.open(alice.name).input.fill("half a sentence")
        other.is_in()
        self.kill(*self.cluster.nodes)
        alice.status("No connection")
        alice.settings().get_by_role("button", name="Log out").click()
        alice.confirm("Log out")
        dialog = alice.page.get_by_role("dialog", name="Log out here only?")
        expect(dialog).to_be_visible()
        self.picture(alice, "log-out-here")
        dialog.get_by_role("button", name="Cancel").click()
        alice.is_in()
        expect(alice.input).to_have_value("half a sentence")
        alice.settings().get_by_role("button", name="Log out").click()
        alice.confirm("Log out")
        alice.confirm("Log out here")
        for person in (alice, other):
            notice = person.page.locator("#auth-notice")
            expect(notice).to_contain_text("no server could be reached to remove the session cookie")
        self.mend()
        alice.page.reload()
        alice.is_out()
        alice.log_in()
        alice.is_in()
        alice.open(alice.name)
        expect(alice.input).to_have_value("")

    def test_without_a_majority_the_browser_forgets_the_session(self):
        alice = self.join("alice", "n1")
        other = self.visitor("alice", "n1", context=alice.context)
        other.is_in()
        [cookie] = alice.sessions()
        self.kill("n3", "n4", "n5")
        # An idle page checks the cluster every 30 s.
        expect(alice.page.locator("#status-text")).to_have_text("No majority", timeout=60_000)
        alice.settings().get_by_role("button", name="Log out").click()
        alice.confirm("Log out here")
        for person in (alice, other):
            expect(person.page.locator("#auth-notice")).to_have_text("You've been logged out.")
        self.assertEqual(alice.sessions(), [])
        self.mend()
        # The session is still valid for a caller with its token.
        self.cluster.call("n1", "ChatService/ListChatPartners", {}, cookie["value"])

    def test_who_closes_a_page_that_could_not_keep_what_waits_is_warned(self):
        alice = self.join("alice", "n1")
        alice.open(alice.name)
        alice.page.evaluate(
            """() => {
                const set = Storage.prototype.setItem;
                Storage.prototype.setItem = function (key, value) {
                    if (value.length > 1000) throw new DOMException("full", "QuotaExceededError");
                    return set.call(this, key, value);
                };
            }"""
        )
        alice.context.set_offline(True)
        alice.send("long " * 1000)
        expect(alice.page.locator(".toast")).to_contain_text("This browser can't store unsent messages")
        alice.send("short")
        with alice.page.expect_event("dialog") as asked:
            alice.page.close(run_before_unload=True)
        self.assertEqual(asked.value.type, "beforeunload")
        asked.value.dismiss()
        alice.context.set_offline(False)
        alice.has_mark("short", "Sent")
        expect(alice.page.locator("#messages .mark.pending")).to_have_count(0)

    def test_the_panel_tells_of_the_cluster(self):
        leader, followers = self.cluster.leader(), self.followers()
        alice = self.join("alice", followers[0])
        alice.button("show the cluster", exact=False).click()
        panel = alice.page.get_by_role("dialog", name="The cluster")
        expect(panel.locator("#cluster-bears")).to_have_text("Can lose 2 more nodes without losing data.")
        expect(panel.locator("tbody tr")).to_have_count(5)
        row = lambda name: panel.locator("tbody tr").filter(has=alice.page.get_by_role("rowheader", name=name))
        expect(row(leader)).to_contain_text("leader")
        expect(row(followers[0])).to_contain_text("this page")
        self.kill(followers[2], followers[3])
        expect(row(followers[2])).to_contain_text("down")
        expect(panel.locator("#cluster-bears")).to_have_text("Can't lose another node.")
        self.mend()
        expect(panel.locator("#cluster-bears")).to_have_text("Can lose 2 more nodes without losing data.")
        self.kill(followers[0])
        expect(panel.locator("tbody .here")).to_have_count(1)
        expect(panel.locator("tbody .here")).not_to_contain_text(followers[0])
        panel.get_by_role("button", name="Done").click()


if __name__ == "__main__":
    unittest.main()
