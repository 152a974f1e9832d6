"""Nodes on several hosts, with and without TLS, and pages of other origins."""

import http.server
import re
import threading
import unittest

from playwright.sync_api import expect

from case import Case
from cluster import Spread
from waiting import wait_until


class SeveralHosts(Case):
    """Cookies are not shared between hosts."""

    @classmethod
    def make_cluster(cls):
        return Spread(["127.0.0.1", "127.0.0.2", "127.0.0.3"])

    def test_the_page_goes_on_with_a_node_on_another_host(self):
        alice, bob = self.join("alice", "n1"), self.join("bob", "n3")
        alice.open(bob.name).send("before")
        bob.open(alice.name).sees("before")
        self.assertEqual(alice.context.cookies(), [], "a cookie would not be sent there")
        wait_until("kept page", lambda: alice.page.evaluate("caches.match('/', { ignoreVary: true }).then(Boolean)"))
        self.cluster.kill("n1")
        alice.send("from the other host")
        bob.sees("from the other host")
        alice.has_mark("from the other host", "Read")
        alice.status(re.compile("Connected to n[23]"))
        self.assertEqual(bob.bodies(), ["before", "from the other host"])
        alice.page.reload()
        alice.is_in()
        alice.send("after a reload")
        bob.sees("after a reload")
        self.cluster.start("n1")
        alice.page.reload()
        alice.is_in()
        alice.sees("from the other host")

    def test_a_page_of_others_gets_nothing(self):
        """It gets neither an answer nor the session of a logged-in person."""
        alice = self.join("alice", "n2")

        class Evil(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<!doctype html><title>evil</title>")

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.2", 0), Evil)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        page = alice.context.new_page()
        page.goto(f"http://127.0.0.2:{server.server_address[1]}/")
        steal = """async ([node, name, kind]) => {
            const headers = { "Content-Type": kind, ...(name ? { "Chat-Session": name } : {}) };
            const ask = { method: "POST", credentials: "include", body: "{}", headers };
            try {
                return (await fetch(`${node}/chat.v1.ChatService/ListChatPartners`, ask)).status;
            } catch (error) {
                return error.message;
            }
        }"""
        for name, kind in ((alice.name, "application/json"), ("", "application/json"), ("", "text/plain")):
            self.assertEqual(page.evaluate(steal, [self.cluster.web("n2"), name, kind]), "Failed to fetch", kind)
        look_inside = """node => new Promise((done) => {
            const frame = document.createElement("iframe");
            frame.onload = () => {
                let seen = false;
                try {
                    seen = frame.contentDocument?.title === "quorum-chat";
                } catch {
                    // The frame is of another origin.
                }
                done(seen);
            };
            frame.src = node;
            document.body.append(frame);
        })"""
        self.assertFalse(page.evaluate(look_inside, self.cluster.web("n2")))


class Tls(Case):
    @classmethod
    def make_cluster(cls):
        return Spread(["127.0.0.1"] * 3, tls=True)

    def test_the_page_comes_over_tls_and_one_connection_bears_many_tabs(self):
        alice = self.join("alice", "n1", ignore_https_errors=True)
        [cookie] = alice.sessions()
        self.assertTrue(cookie["secure"] and cookie["httpOnly"], cookie)
        protocol = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
        self.assertEqual(alice.page.evaluate(protocol), "h2")
        tabs = [self.visitor("alice", "n1", context=alice.context) for _ in range(6)]
        for tab in tabs:
            tab.is_in()
            tab.status(re.compile("Connected to n"))
        bob = self.join("bob", "n2", ignore_https_errors=True)
        bob.open(alice.name).send("to all tabs")
        for tab in (alice, *tabs):
            expect(tab.row(bob.name)).to_contain_text("to all tabs")
        self.cluster.kill("n1")
        alice.open(bob.name).send("and back")
        bob.sees("and back")
        alice.status(re.compile("Connected to n[23]"))


class ManyTabs(Case):
    """Without TLS, a browser opens at most six connections to a node."""

    nodes = 1

    def test_windows_that_are_both_looked_at_let_each_other_be(self):
        context = self.browser.new_context(locale="en-GB")
        self.addCleanup(context.close)
        context.add_init_script(
            """
            const set = Storage.prototype.setItem;
            window.claims = 0;
            Storage.prototype.setItem = function (key, value) {
                if (key.startsWith("quorum-chat/tab/")) window.claims += 1;
                return set.call(this, key, value);
            };
            """
        )
        alice = self.join("alice", "n1", context=context)
        other = self.visitor("alice", "n1", context=context)
        other.is_in()
        for number in range(5):
            alice.open(alice.name).send(f"note {number}")
            expect(other.row(alice.name)).to_contain_text(f"note {number}")
        claims = [person.page.evaluate("claims") for person in (alice, other)]
        self.assertGreater(min(claims), 0)
        self.assertLess(max(claims), 5, "they go on claiming")

    def test_tabs_that_nobody_looks_at_leave_the_connections_to_those_that_are_looked_at(self):
        context = self.browser.new_context(locale="en-GB")
        self.addCleanup(context.close)
        context.add_init_script(
            """
            Object.defineProperty(document, "hidden", { get: () => window.isHidden === true });
            window.look = (isLookedAt) => {
                window.isHidden = !isLookedAt;
                document.dispatchEvent(new Event("visibilitychange"));
            };
            """
        )
        tabs = [self.join("alice", "n1", context=context)]
        for tab in tabs:
            tab.page.clock.install()
        for _ in range(7):
            tabs[-1].page.evaluate("look(false)")
            tab = self.visitor("alice", "n1", context=context)
            tab.page.clock.install()
            tab.page.reload()
            tab.is_in()
            for other in tabs:
                other.page.clock.fast_forward(31_000)
            tab.status("Connected to n1")
            tabs.append(tab)
        bob, token = self.account("bob")

        def write(text, number):
            client_id = f"0190163d-8694-739b-aea5-{number:012x}"
            message = {"recipient": tabs[0].name, "body": text, "clientMessageId": client_id}
            self.cluster.call("n1", "ChatService/SendMessage", message, token)

        write("one", 1)
        expect(tabs[-1].row(bob)).to_contain_text("one")
        # A tab that becomes visible again has missed nothing, and shows no warning.
        expect(tabs[0].page.locator("#banner")).to_be_hidden()
        tabs[0].page.evaluate("look(true)")
        expect(tabs[0].row(bob)).to_contain_text("one")
        # When the active tab is closed, another tab takes its place.
        tabs[0].page.evaluate("look(false)")
        tabs[0].page.close()
        write("two", 2)

        def is_told():
            return any("two" in text for tab in tabs[1:] for text in tab.row(bob).all_inner_texts())

        wait_until("tab that tells of it", is_told)


if __name__ == "__main__":
    unittest.main()
