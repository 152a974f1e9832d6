"""Signing up, logging in and out, staying logged in, and the exposure of sessions to scripts."""

import re
import unittest

from playwright.sync_api import expect

from case import Case
from person import PASSWORD

TOKEN = re.compile(r"\b[0-9a-f]{64}\b")
# A tab that sees the other tabs' notes later than the node's refusal.
LATE_NOTES = """() => {
  const get = Storage.prototype.getItem;
  let since = null;
  Storage.prototype.getItem = function (key) {
    if (!key.includes("/left/")) return get.call(this, key);
    since ??= performance.now();
    return performance.now() - since < 300 ? null : get.call(this, key);
  };
}"""


class Accounts(Case):
    def test_mistakes_are_said_before_a_node_is_asked(self):
        person = self.visitor("alice")
        asked = []
        # Requests that only load the form do not count.
        shown = ("/assets/", "/GetRegistration", "/worker.html", "/register.js")

        def note(request):
            if not any(part in request.url for part in shown):
                asked.append(request.url)

        person.page.on("request", note)
        person.button("Create an account").click()
        hint = person.page.locator("#auth-password-hint")
        expect(hint).to_have_text("At least 8 characters. A few random words work well.")
        person.fill("Username", "Al ice!")
        person.fill("Password", "short")
        person.fill("Confirm password", "shorn")
        expect(person.page.locator("#auth-strength-text")).to_have_text("Too short")
        bars = person.page.locator("#auth-strength .bar")
        bar = lambda: bars.evaluate("bar => getComputedStyle(bar).backgroundImage")
        too_short = bar()
        person.button("Create account").click()
        expect(person.page.locator("#auth-name-hint")).to_contain_text("Use 1-32 characters")
        expect(person.page.get_by_label("Username", exact=True)).to_be_focused()
        expect(person.page.locator("#auth-password-hint")).to_have_text("Use at least 8 characters.")
        expect(person.page.locator("#auth-again-hint")).to_have_text("Passwords don't match.")
        person.fill("Password", PASSWORD)
        hints = [person.page.locator(f"#auth-{field}-hint") for field in ("name", "password", "again")]
        colours = [hint.evaluate("hint => getComputedStyle(hint).color") for hint in hints]
        self.assertEqual(colours[0], colours[2], "both are wrong")
        self.assertNotEqual(colours[0], colours[1], "what is right looks wrong")
        strengths = {"password1": "Weak", "kangaroo5": "Fair", "kangaroo-lamp": "Good", PASSWORD: "Strong"}
        for password, strength in strengths.items():
            person.fill("Password", password)
            expect(person.page.locator("#auth-strength-text")).to_have_text(strength)
        self.assertNotEqual(bar(), too_short, "what is too short looks good")
        person.fill("Password", "ü" * 129)
        expect(person.page.locator("#auth-password-hint")).to_have_text("Too long by 1 character.")
        self.assertEqual(asked, [])

    def test_what_a_node_refuses_is_said_in_words(self):
        first = self.join("alice")
        second = self.visitor("alice", "n2")
        second.log_in("wrong password")
        notice = second.page.locator("#auth-notice")
        expect(notice).to_have_text("Wrong password.")
        second.name += ".x"
        second.log_in()
        expect(notice).to_contain_text(f"No account named {second.name}.")
        second.name = first.name
        second.button("Create an account").click()
        second.fill("Confirm password", PASSWORD)
        second.fill("Password", PASSWORD)
        second.fill("Username", f"{first.name.upper()} ")
        second.button("Create account").click()
        expect(notice).to_have_text(f"The name {first.name} is already taken. Choose another one.")
        second.button("Log in").click()
        second.log_in()
        second.is_in()

    def test_a_session_survives_a_reload_and_no_script_can_read_its_token(self):
        person = self.join("alice")
        person.page.reload()
        person.is_in()
        readable = person.page.evaluate("JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])")
        self.assertIsNone(TOKEN.search(readable), readable)
        [cookie] = person.sessions()
        self.assertRegex(cookie["value"], TOKEN)
        self.assertTrue(cookie["httpOnly"])
        self.assertEqual((cookie["sameSite"], cookie["path"]), ("Strict", "/chat.v1.ChatService/"))
        person.settings().get_by_role("button", name="Log out").click()
        expect(person.page.locator("#auth-notice")).to_have_text("You've been logged out.")
        self.assertEqual(person.sessions(), [])
        person.page.reload()
        person.is_out()

    def test_a_session_that_was_ended_elsewhere_asks_for_the_password_and_keeps_what_was_typed(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        alice.open(bob.name).input.fill("half a sentence")
        other = self.visitor("alice", "n3")
        other.log_in()
        other.is_in()
        token = self.cluster.call("n3", "ChatService/Login", {"username": alice.name, "password": PASSWORD})["token"]
        self.cluster.call("n3", "ChatService/Logout", {"allSessions": True}, token)
        for person in (alice, other):
            expect(person.page.locator("#auth-notice")).to_contain_text("Your session has expired.")
            expect(person.page.get_by_label("Username", exact=True)).to_have_value(alice.name)
        alice.fill("Password", PASSWORD)
        alice.button("Log in").click()
        alice.is_in()
        expect(alice.input).to_have_value("half a sentence")
        alice.input.press("Enter")
        alice.has_mark("half a sentence", "Delivered")

    def test_who_logs_out_in_one_tab_is_logged_out_in_all_and_is_asked_about_what_was_typed_in_them(self):
        alice = self.join("alice")
        other = self.visitor("alice", context=alice.context)
        other.open(alice.name).input.fill("half a sentence")
        other.page.evaluate(LATE_NOTES)
        alice.settings().get_by_role("button", name="Log out").click()
        dialog = alice.page.get_by_role("dialog", name="Log out?")
        expect(dialog).to_contain_text("1 draft will be discarded.")
        dialog.get_by_role("button", name="Cancel").click()
        expect(other.input).to_have_value("half a sentence")
        alice.settings().get_by_role("button", name="Log out").click()
        alice.confirm("Log out")
        for person in (alice, other):
            expect(person.page.locator("#auth-notice")).to_have_text("You've been logged out.")
        other.log_in()
        other.is_in()
        expect(other.input).to_have_value("")

    def test_what_was_not_sent_survives_that_the_browser_forgets_everything(self):
        alice = self.join("alice")
        alice.open(alice.name).send("before")
        alice.has_mark("before", "Sent")
        alice.context.set_offline(True)
        alice.send("waits")
        alice.input.fill("half a sentence")
        alice.page.evaluate("localStorage.clear()")
        alice.context.clear_cookies()
        alice.context.set_offline(False)
        expect(alice.page.locator("#auth-notice")).to_contain_text("unsent messages are kept")
        alice.log_in()
        alice.is_in()
        alice.has_mark("waits", "Sent")
        expect(alice.input).to_have_value("half a sentence")

    def test_nobody_is_told_of_a_deletion_that_did_not_happen(self):
        alice = self.join("alice")
        alice.settings().get_by_role("button", name="Delete account").click()
        alice.page.get_by_role("dialog").get_by_label("Your password").fill(PASSWORD)
        # The nodes are on one host and share the cookies. The session of another page replaces that of this page and
        # then ends.
        other = self.visitor("alice", "n2", context=alice.context)
        other.log_in()
        other.is_in()
        other.settings().get_by_role("button", name="Log out").click()
        other.is_out()
        alice.confirm("Delete my account")
        expect(alice.page.locator("#auth-notice")).to_contain_text("nothing was deleted")
        alice.log_in()
        alice.is_in()

    def test_the_name_of_a_deleted_account_is_taken(self):
        alice = self.join("alice")
        for _ in range(2):
            self.delete(alice)
            alice.button("Create an account").click()
            alice.fill("Username", alice.name)
            alice.fill("Password", PASSWORD)
            alice.fill("Confirm password", PASSWORD)
            alice.button("Create account").click()
            expect(alice.page.locator("#auth-notice")).to_contain_text("is already taken")
            alice.name += ".x"
            alice.button("Log in").click()
            alice.sign_up()

    def delete(self, person):
        person.settings().get_by_role("button", name="Delete account").click()
        person.page.get_by_role("dialog").get_by_label("Your password").fill(PASSWORD)
        person.confirm("Delete my account")
        expect(person.page.locator("#auth-notice")).to_have_text("Your account has been deleted.")
        expect(person.page.get_by_label("Username", exact=True)).to_have_value("")

    def test_a_changed_password_logs_out_the_other_browsers(self):
        alice = self.join("alice")
        other = self.visitor("alice", "n2")
        other.log_in()
        other.is_in()
        alice.settings().get_by_role("button", name="Change password").click()
        dialog = alice.page.get_by_role("dialog", name="Change password")
        dialog.get_by_label("Current password").fill(PASSWORD)
        dialog.get_by_label("New password", exact=True).fill("kangaroo-lamp")
        dialog.get_by_label("Confirm new password").fill("kangaroo-lamp")
        dialog.get_by_role("button", name="Change password").click()
        expect(other.page.locator("#auth-notice")).to_contain_text("session has expired")
        alice.is_in()
        other.log_in("kangaroo-lamp")
        other.is_in()
        alice.settings().get_by_role("button", name="Sessions").click()
        dialog = alice.page.get_by_role("dialog", name="Your sessions")
        dialog.get_by_role("button", name="Log out", exact=True).click()
        other.is_out()
        expect(other.page.locator("#auth-notice")).to_contain_text("session has expired")
        alice.is_in()
        other.log_in("kangaroo-lamp")
        other.is_in()
        dialog.get_by_role("button", name="Log out everywhere").click()
        # The earlier notice is still present, but hidden.
        other.is_out()
        expect(other.page.locator("#auth-notice")).to_contain_text("session has expired")
        expect(alice.page.locator("#auth-notice")).to_have_text("You've been logged out everywhere.")

    def test_a_person_keeps_reads_and_the_use_of_sessions_to_itself(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        alice.open(bob.name).send("one")
        bob.open(alice.name).sees("one")
        alice.has_mark("one", "Read")
        settings = bob.settings()
        for label in ("Read receipts", "Session activity"):
            expect(settings.get_by_label(label)).to_be_checked()
            settings.get_by_label(label).uncheck()
            expect(settings.get_by_label(label)).to_be_enabled()
        bob.page.keyboard.press("Escape")
        alice.send("two")
        bob.sees("two")
        alice.has_mark("two", "Delivered")
        bob.page.reload()
        bob.is_in()
        settings = bob.settings()
        for label in ("Read receipts", "Session activity"):
            expect(settings.get_by_label(label)).not_to_be_checked()
        settings.get_by_role("button", name="Sessions").click()
        expect(bob.page.get_by_role("dialog", name="Your sessions").get_by_role("listitem")).to_contain_text("Opened")
        alice.has_mark("two", "Delivered")

    def test_two_accounts_in_two_tabs_do_not_mix(self):
        alice = self.join("alice")
        bob = self.visitor("bob", context=alice.context)
        # The second tab starts with the account that logged in last.
        bob.settings().get_by_role("button", name="Log out")
        bob.page.keyboard.press("Escape")
        bob.page.evaluate("sessionStorage.clear(); localStorage.removeItem('quorum-chat/account')")
        bob.page.reload()
        bob.sign_up()
        alice.open(bob.name).send("from alice")
        bob.open(alice.name).sees("from alice")
        bob.send("from bob")
        alice.sees("from bob")
        for person in (alice, bob):
            person.page.reload()
            person.is_in()

    def test_an_account_is_deleted_only_with_its_password(self):
        alice, bob = self.join("alice"), self.join("bob", "n2")
        alice.open(bob.name).send("remember me")
        bob.open(alice.name).sees("remember me")
        bob.input.fill("what he was about to say")
        alice.settings().get_by_role("button", name="Delete account").click()
        dialog = alice.page.get_by_role("dialog", name="Delete your account?")
        delete = dialog.get_by_role("button", name="Delete my account")
        expect(delete).to_be_disabled()
        dialog.get_by_label("Your password").fill("wrong horse")
        delete.click()
        expect(alice.page.locator("#toasts")).to_contain_text("Wrong password. Nothing was deleted.")
        alice.settings().get_by_role("button", name="Delete account").click()
        dialog.get_by_label("Your password").fill(PASSWORD)
        delete.click()
        expect(alice.page.locator("#auth-notice")).to_have_text("Your account has been deleted.")
        expect(bob.page.locator("#chat-sub")).to_have_text("This account was deleted")
        bob.sees("This message was deleted")
        # Bob can still copy it.
        expect(bob.input).not_to_be_editable()
        expect(bob.input).to_have_value("what he was about to say")
        expect(bob.button("Send")).to_be_disabled()
        expect(bob.row(alice.name)).to_contain_text("This message was deleted")
        alice.log_in()
        expect(alice.page.locator("#auth-notice")).to_contain_text("No account named")


if __name__ == "__main__":
    unittest.main()
