"""A person who uses the page in a browser. Actions and observations use the page's wording."""

from playwright.sync_api import Error, expect

PASSWORD = "correct horse battery"


class Person:
    """A person with a separate page. `faults` collects everything that goes wrong in it, including errors and
    violations of the content security policy."""

    def __init__(self, context, name):
        self.context = context
        self.name = name
        self.page = context.new_page()
        self.faults = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._heard)

    def _heard(self, message):
        # The browser itself logs failed requests and refusals. It also logs that it accepts no worker from a node with
        # an untrusted certificate. In that case the page works, but is not kept.
        own = (
            "Failed to load resource",
            "net::ERR",
            "blocked by CORS policy",
            "An SSL certificate error occurred when",
        )
        if message.type == "error" and not any(part in message.text for part in own):
            self.faults.append(message.text)

    def goto(self, address):
        self.page.goto(address)
        return self

    # Accounts

    def button(self, name, exact=True):
        return self.page.get_by_role("button", name=name, exact=exact)

    def fill(self, label, text):
        self.page.get_by_label(label, exact=True).fill(text)

    def sign_up(self, password=PASSWORD):
        self.button("Create an account").click()
        self.fill("Username", self.name)
        self.fill("Password", password)
        self.fill("Confirm password", password)
        self.button("Create account").click()
        self.is_in()
        return self

    def log_in(self, password=PASSWORD):
        self.fill("Username", self.name)
        self.fill("Password", password)
        self.button("Log in").click()

    def is_in(self):
        # The name of an ended session stays in the page, behind the form.
        expect(self.page.locator("#auth")).to_be_hidden()
        expect(self.page.locator("#me")).to_have_text(self.name)

    def is_out(self):
        expect(self.button("Log in")).to_be_visible()

    def settings(self):
        self.button("Account and settings").click()
        return self.page.get_by_role("dialog", name="Account and settings")

    def sessions(self):
        """The session cookies. The cookie that identifies the browser to a node stays after a logout."""
        return [cookie for cookie in self.context.cookies() if "chat_session." in cookie["name"]]

    # Conversations

    def open(self, name):
        """Opens a conversation from the list, or searches for the person first."""
        link = self.row(name)
        if not link.count():
            self.page.get_by_role("searchbox").fill(name)
        link.click()
        expect(self.page.locator("#chat-name")).to_have_text(name)
        return self

    def row(self, name):
        return self.page.locator(f'#people a[href="#/{name}"]')

    @property
    def input(self):
        return self.page.get_by_role("textbox", name="Message")

    def send(self, text):
        self.input.fill(text)
        self.input.press("Enter")

    def message(self, text):
        """The message with exactly this text."""
        body = self.page.locator(".body").get_by_text(text, exact=True)
        return self.page.locator("#messages .message").filter(has=body)

    def sees(self, text):
        expect(self.message(text)).to_have_count(1)

    def has_mark(self, text, mark):
        expect(self.message(text).locator(".mark")).to_have_text(mark)

    def bodies(self):
        """The texts of the messages in the document, in order."""
        return self.page.locator("#messages .message .body").all_inner_texts()

    def keys(self):
        return self.page.locator("#messages .space > li").evaluate_all("rows => rows.map(row => row.dataset.key)")

    def status(self, text):
        expect(self.page.locator("#status-text")).to_have_text(text, timeout=30_000)

    def node(self):
        """The name of the node that the page is connected to."""
        return self.page.locator("#status-text").inner_text().removeprefix("Connected to ")

    def pick(self, *texts):
        self.button("Select messages").click()
        for text in texts:
            # A message that is not stored yet cannot be selected.
            expect(self.message(text).locator("input.pick")).to_have_count(1)
            self.message(text).locator(".bubble").click()
            expect(self.message(text).locator("input.pick")).to_be_checked()

    def confirm(self, button):
        self.page.get_by_role("dialog").get_by_role("button", name=button, exact=True).click()

    def close(self):
        try:
            self.context.close()
        except Error:
            pass
