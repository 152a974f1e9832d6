"""Makes the pictures of the README with `tests/browser/run --pictures docs`. They show a real conversation in the light
and the dark theme."""

import sys
import uuid
from pathlib import Path

from playwright.sync_api import expect

from case import CHROMIUM
from local_cluster import LocalCluster
from person import PASSWORD, Person
from playwright.sync_api import sync_playwright

SIZE = {"width": 1100, "height": 700}


def main(directory):
    cluster = LocalCluster()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tokens = {}
            for name in ("maja", "tomas", "ines", "olu"):
                who = {"username": name, "password": PASSWORD}
                cluster.call("n1", "ChatService/CreateAccount", who)
                tokens[name] = cluster.call("n1", "ChatService/Login", who)["token"]

            def write(sender, to, body):
                message = {"recipient": to, "body": body, "clientMessageId": str(uuid.uuid4())}
                cluster.call("n2", "ChatService/SendMessage", message, tokens[sender])

            write("olu", "maja", "The train is late again. See you at eight?")
            write("maja", "olu", "Eight is fine.")
            write("ines", "maja", "Did you get the tickets?")
            write("ines", "maja", "I can pay you back tomorrow 🙂")
            write("tomas", "maja", "Morning! I pulled the plug of two machines in the rack.")
            write("tomas", "maja", "By accident.")
            write("maja", "tomas", "I saw. Did anybody notice?")
            write(
                "tomas",
                "maja",
                "No. All five nodes were in the dashboard, two of them red, and people went on chatting.",
            )
            write("maja", "tomas", "Then put the plugs back in, and we say it was a drill.")
            for theme in ("light", "dark"):
                tomas = Person(browser.new_context(locale="en-GB"), "tomas").goto(cluster.web("n3"))
                tomas.log_in()
                tomas.is_in()
                context = browser.new_context(viewport=SIZE, color_scheme=theme, locale="en-GB")
                maja = Person(context, "maja").goto(cluster.web("n1"))
                maja.log_in()
                maja.is_in()
                tomas.open("maja")
                maja.open("tomas")
                if theme == "light":
                    tomas.send("They are back in. n4 and n5 are catching up.")
                    maja.send("Perfect 🎉")
                maja.has_mark("Perfect 🎉", "Read")
                maja.input.fill("And now have a coffee")
                expect(maja.page.locator(".toast")).to_have_count(0)
                maja.page.mouse.move(0, 0)
                maja.page.screenshot(path=str(Path(directory) / f"page-{theme}.png"))
                for person in (maja, tomas):
                    person.close()
            browser.close()
    finally:
        cluster.stop()


if __name__ == "__main__":
    main(sys.argv[1])
