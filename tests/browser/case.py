"""What all tests of the page have: a cluster and a browser for the class, people for each test."""

import os
import unittest

from playwright.sync_api import expect, sync_playwright

from cluster import Cluster
from person import Person

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
#: Pictures go here, if it is set.
PICTURES = os.environ.get("PICTURES")

expect.set_options(timeout=15_000)


class Case(unittest.TestCase):
    """`self.join("alice")` is a new person with a new account and a browser of their own."""

    nodes = 5

    @classmethod
    def make_cluster(cls):
        return Cluster(cls.nodes)

    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.make_cluster()
        cls.addClassCleanup(cls.cluster.stop)
        playwright = sync_playwright().start()
        cls.addClassCleanup(playwright.stop)
        # Chromium's own sandbox does not work for root, as which containers are often run.
        cls.browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
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
        """Somebody whose browser is at the page, and who is not logged in. Names are made different for each test."""
        options = {"viewport": {"width": 1200, "height": 800}, "locale": "en-GB", **options}
        person = Person(context or self.browser.new_context(**options), self.called(name))
        self.people.append(person)
        return person.goto(self.cluster.web(node))

    def called(self, name):
        return f"{name}.{self._testMethodName.removeprefix('test_')[:20].strip('_')}"

    def join(self, name, node="n1", **options):
        return self.visitor(name, node, **options).sign_up()

    def account(self, name):
        """An account without a browser: its name and a token."""
        name = self.called(name)
        who = {"username": name, "password": "correct horse battery"}
        self.cluster.call(self.alive(), "ChatService/CreateAccount", who)
        return name, self.cluster.call(self.alive(), "ChatService/Login", who)["token"]

    def history(self, token, partner):
        """All of a conversation, oldest first."""
        messages, before = [], "0"
        while True:
            ask = {"partner": partner, "limit": 200, "beforeSeq": before}
            page = self.cluster.call(self.alive(), "ChatService/ReadConversation", ask, token)
            messages += page.get("messages", [])
            if not page.get("hasMore"):
                return messages[::-1]
            before = messages[-1]["seq"]

    def alive(self):
        return self.cluster.leader()

    def picture(self, person, name):
        if PICTURES:
            person.page.screenshot(path=f"{PICTURES}/{name}.png")
