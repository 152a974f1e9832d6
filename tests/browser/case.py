"""Base class for tests of the page. Each class has a cluster and a browser, and each test has its own people."""

import http.client
import json
import os
import unittest
import uuid
from concurrent.futures import ThreadPoolExecutor

from playwright.sync_api import expect, sync_playwright

from local_cluster import LocalCluster
from person import Person

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
#: Directory for pictures, if set.
PICTURES = os.environ.get("PICTURES")

expect.set_options(timeout=15_000)


class Case(unittest.TestCase):
    """`self.join("alice")` returns a new person with a new account and a separate browser."""

    nodes = 5

    @classmethod
    def make_cluster(cls):
        return LocalCluster(cls.nodes)

    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.make_cluster()
        cls.addClassCleanup(cls.cluster.stop)
        playwright = sync_playwright().start()
        cls.addClassCleanup(playwright.stop)
        # Chromium's own sandbox does not work for root, and containers often run as root.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        cls.browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        cls.addClassCleanup(cls.browser.close)

    def setUp(self):
        self.people = []
        self.addCleanup(self.part)

    def part(self):
        faults = {person.name: person.faults for person in self.people if person.faults}
        for person in self.people:
            person.close()
        self.assertEqual(faults, {}, "something went wrong in a page")

    def visitor(self, name, node="n1", context=None, **options):
        """A person with the page open in a browser, not logged in. Each test gets different names."""
        options = {"viewport": {"width": 1200, "height": 800}, "locale": "en-GB", **options}
        person = Person(context or self.browser.new_context(**options), self.called(name))
        self.people.append(person)
        return person.goto(self.cluster.web(node))

    def called(self, name):
        return f"{name}.{self._testMethodName.removeprefix('test_')[:20].strip('_')}"

    def join(self, name, node="n1", **options):
        return self.visitor(name, node, **options).sign_up()

    def account(self, name):
        """Creates an account without a browser. Returns its name and a token."""
        name = self.called(name)
        who = {"username": name, "password": "correct horse battery"}
        self.cluster.call(self.alive(), "ChatService/CreateAccount", who)
        return name, self.cluster.call(self.alive(), "ChatService/Login", who)["token"]

    def history(self, token, partner):
        """All messages of a conversation, oldest first."""
        messages, before = [], "0"
        while True:
            ask = {"partner": partner, "limit": 200, "beforeSeq": before}
            page = self.cluster.call(self.alive(), "ChatService/ReadConversation", ask, token)
            messages += page.get("messages", [])
            if not page.get("hasMore"):
                return messages[::-1]
            before = messages[-1]["seq"]

    def write_all(self, token, to, bodies):
        """Sends messages of an account without a browser to a cluster of one node. Up to 16 are sent at once, so their
        order is arbitrary."""

        def send(some):
            connection = http.client.HTTPConnection(self.cluster.nodes["n1"]["web"])
            for body in some:
                message = json.dumps({"recipient": to, "body": body, "clientMessageId": str(uuid.uuid4())})
                headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
                connection.request("POST", "/chat.v1.ChatService/SendMessage", message, headers)
                answer = connection.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()
            connection.close()

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(send, [bodies[at::16] for at in range(16)]))

    def alive(self):
        return self.cluster.leader()

    def picture(self, person, name):
        if PICTURES:
            person.page.screenshot(path=f"{PICTURES}/{name}.png")
