"""Tests the modules of the page separately, in the browser. Events that can happen in any order are tried in many
orders."""

import os
import random
import unittest

from case import Case
from random_orders import STORY

SEED = int(os.environ.get("SEED", random.randrange(2**32)))


class Modules(Case):
    nodes = 1

    def setUp(self):
        super().setUp()
        self.page = self.visitor("nobody").page
        self.base = self.page.locator("script").get_attribute("src").removesuffix("/boot.js")

    def evaluate(self, script, argument=None):
        return self.page.evaluate(script, argument)

    def test_the_page_shows_what_is_there_in_whatever_order_it_heard_of_it(self):
        for seed in range(SEED, SEED + 2000):
            found = self.evaluate(STORY, {"base": self.base, "seed": seed % 2**32})
            self.assertIsNone(found, f"SEED={seed}")

    def test_what_waits_goes_out_in_the_order_of_its_writing_whatever_the_clock_says(self):
        bodies = self.evaluate(
            """async (base) => {
                const { Outbox } = await import(`${base}/outbox.js`);
                const nobody = { chat: () => new Promise(() => {}) };
                const write = (body, time) => {
                    Date.now = () => time;
                    const outbox = new Outbox(nobody, "alice");
                    outbox.adopt();
                    outbox.send("bob", body);
                    return outbox.to("bob").map((entry) => entry.body);
                };
                write("first", 1795564800000);
                return write("second", 1795564700000);
            }""",
            self.base,
        )
        self.assertEqual(bodies, ["first", "second"])

    def test_what_is_new_is_only_marked_where_it_begins(self):
        kinds = self.evaluate(
            """async (base) => {
                const { rowsOf } = await import(`${base}/messages.js`);
                const { Picks } = await import(`${base}/picks.js`);
                const messages = [60, 61].map((seq) => ({
                    seq, sender: "bob", body: "", time: 1795564800000 + seq, deleted: false, clientId: "",
                }));
                const kinds = (hasOlder, marker) => {
                    const conversation = { hasOlder, floor: 60, messages };
                    const rows = rowsOf(conversation, [], marker, new Picks(() => {}), "alice");
                    return rows.map((row) => row.kind).join();
                };
                return [kinds(true, 10), kinds(false, 10), kinds(true, 59), kinds(true, 60), kinds(true, null)];
            }""",
            self.base,
        )
        all_of_it = "day,new,message,message"
        expected = [
            "older,day,message,message",
            all_of_it,
            "older," + all_of_it,
            "older,day,message,new,message",
            "older,day,message,message",
        ]
        self.assertEqual(kinds, expected)

    def test_numbers_are_said_with_the_right_form_of_the_word(self):
        said = self.evaluate(
            """async (base) => {
                const { charactersLeft, count, duration } = await import(`${base}/text.js`);
                const left = (text, max) => charactersLeft(text, max);
                return [
                    count(0, "message"), count(1, "message"), count(2, "message"), count(1234, "person", "people"),
                    duration(999), duration(59_000), duration(90_000), duration(5_400_000), duration(3_600_000 * 3),
                    left("", 10), left("abc", 10), left("你好", 12), left("abcdefghijk", 10),
                    left("你好", 5), left("x".repeat(3e6), 10),
                ];
            }""",
            self.base,
        )
        counts = ["0 messages", "1 message", "2 messages", "1,234 people"]
        durations = ["1 second", "59 seconds", "2 minutes", "2 hours", "3 hours"]
        self.assertEqual(said, [*counts, *durations, 10, 7, 2, -1, -1, 10 - 3_000_000])

    def test_ids_are_uuids_of_version_7_in_the_order_of_their_making(self):
        ids = self.evaluate(
            """async (base) => {
                const { uuid7 } = await import(`${base}/text.js`);
                return [0, 1, 2 ** 32 - 1, 2 ** 32, 1795564800000].map((now) => uuid7(now));
            }""",
            self.base,
        )
        for made in ids:
            self.assertRegex(made, r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
        self.assertEqual(ids, sorted(ids))
        self.assertEqual(ids[4].replace("-", "")[:12], f"{1795564800000:012x}")

    def test_a_proxy_says_how_long_to_wait_within_bounds(self):
        waits = self.evaluate(
            """async (base) => {
                const { retryAfterMs } = await import(`${base}/api.js`);
                const now = Date.UTC(2026, 10, 29);
                const dates = ["29 Nov 2026 00:00:07", "29 Nov 2020 00:00:00", "01 Jan 2100 00:00:00"];
                const inGmt = dates.map((date) => `${date} GMT`);
                const texts = [null, "", "2", " 2 ", "-5", "1e9", "999999999", "soon", ...inGmt];
                return texts.map((text) => retryAfterMs(text, now));
            }""",
            self.base,
        )
        self.assertEqual(waits, [0, 0, 2000, 2000, 0, 0, 30_000, 0, 7000, 0, 30_000])

    def test_nodes_are_found_where_the_page_can_reach_them(self):
        found = self.evaluate(
            """async (base) => {
                const { baseOf } = await import(`${base}/nodes.js`);
                const here = (address) => new URL(address);
                return [
                    baseOf("127.0.0.1:8082", here("http://localhost:8081/")),
                    baseOf("localhost:8082", here("http://127.0.0.1:8081/")),
                    baseOf("127.0.0.2:8082", here("http://localhost:8081/")),
                    baseOf("n2.example.com:8080", here("https://n1.example.com/")),
                    baseOf("n2.example.com:443", here("https://n1.example.com/")),
                    baseOf("", here("http://localhost:8081/")),
                    baseOf("n2:80/evil", here("http://localhost:8081/")),
                    baseOf("localhost:8082", here("http://n1:8081/")),
                ];
            }""",
            self.base,
        )
        expected = [
            "http://localhost:8082",
            "http://127.0.0.1:8082",
            "http://127.0.0.2:8082",
            "https://n2.example.com:8080",
            "https://n2.example.com",
            None,
            "http://n2",
            "http://localhost:8082",
        ]
        self.assertEqual(found, expected)

    def test_only_web_addresses_become_links(self):
        texts = {
            "see https://example.com/a?b=1&c=(d). Now": ["https://example.com/a?b=1&c=(d)"],
            "(https://example.com/a_(b), 'https://example.com/c's').": [
                "https://example.com/a_(b)",
                "https://example.com/c's",
            ],
            "HTTPS://EXAMPLE.COM/A [https://example.com/]": ["HTTPS://EXAMPLE.COM/A", "https://example.com/"],
            "https://bücher.example/straße": ["https://xn--bcher-kva.example/straße"],
            # An address that imitates another host is shown in its real form, or is not a link.
            "https://bank.example@evil.example/": [],
            "https://bank.example:443@evil.example/": [],
            "https://\u0430pple.example/": ["https://xn--pple-43d.example/"],
            "https://example.com\u3002evil.example": ["https://example.com"],
            "https://example.com\u4f60\u597d": ["https://example.com"],
            "https://example.com\u202egpj.exe": ["https://example.com"],
            "https://example.com\u200b.evil.example": ["https://example.com"],
            "javascript:alert(1) ftp://x data:text/html,x": [],
            'http://a.example/"onclick="x': ["http://a.example/"],
            "http://[bad https://good.example!": ["https://good.example"],
            "see www.example.com/a?b, (WWW.example.org) or www.": ["www.example.com/a?b", "WWW.example.org"],
            "awww.example.com www.example www.bank.example@evil.example": [],
            "www.\u0430pple.example www.example.com\u4f60\u597d": ["www.xn--pple-43d.example", "www.example.com"],
            "write to a.b+c@example.com, or <d@mail.example.org>.": ["a.b+c@example.com", "d@mail.example.org"],
            "a@b @example.com a@.com a@example.c a@@b.com": [],
            "a@exampl\u0435.com a@example.com\u0430 \u0430b@example.com": [],
            "d@example.com\u4f60\u597d https://example.com/@user": ["d@example.com", "https://example.com/@user"],
        }
        for text, links in texts.items():
            found = self.evaluate(
                """async ([base, text]) => {
                    const { linked } = await import(`${base}/text.js`);
                    const box = document.createElement("p");
                    box.append(...linked(text));
                    const links = [...box.querySelectorAll("a")];
                    return [box.textContent, links.map((link) => [link.textContent, link.rel, link.target])];
                }""",
                [self.base, text],
            )
            target = lambda link: "" if "@" in link and "/" not in link else "_blank"
            self.assertEqual(found[1], [[link, "noopener noreferrer nofollow", target(link)] for link in links], text)
            if all(link in text for link in links) and "\u202e" not in text:
                self.assertEqual(found[0], text)

    def test_a_long_message_takes_time_in_proportion(self):
        """For every kind of text, 16 KB take about twice the time of 8 KB, and not four times."""
        ratios = self.evaluate(
            """async (base) => {
                const { draw } = await import(`${base}/messages.js`);
                const shapes = {
                    letters: (n) => "x".repeat(n),
                    addresses: (n) => "https://a".repeat(n / 9),
                    quotes: (n) => 'http://a"'.repeat(n / 9),
                    marks: (n) => `https://a${".".repeat(n)}a`,
                    trailing: (n) => `https://a${".".repeat(n)}`,
                    brackets: (n) => `https://a${")".repeat(n)}a`,
                    opened: (n) => `https://a${"(".repeat(n)}${")".repeat(n)}`,
                    mails: (n) => "a@a.a".repeat(n / 5),
                    locals: (n) => `${"a.".repeat(n / 2)}@`,
                    domains: (n) => `a@${"a.".repeat(n / 2)}`,
                    wide: (n) => "www.a".repeat(n / 5),
                    stops: (n) => "https://a...".repeat(n / 12),
                    hosts: (n) => `https://${"\u0430".repeat(n / 2)}`,
                    overrides: (n) => "a\u202e".repeat(n / 4),
                    towers: (n) => "\u0300".repeat(n / 2),
                };
                const row = (body) => {
                    return { message: { body, time: 1795564800000, sender: "bob" }, state: "", isFirst: true };
                };
                const once = (body) => {
                    const start = performance.now();
                    for (let round = 0; round < 3; round += 1) draw(row(body), {});
                    return performance.now() - start;
                };
                // The shortest time is the one without interference.
                const time = (body) => Math.min(...Array.from({ length: 5 }, () => once(body)));
                const ratio = (make) => time(make(16384)) / Math.max(time(make(8192)), 0.5);
                // Other work may interfere, but not each time.
                const least = (make) => Math.min(...Array.from({ length: 3 }, () => ratio(make)));
                return Object.entries(shapes).map(([name, make]) => [name, least(make)]);
            }""",
            self.base,
        )
        for name, ratio in ratios:
            self.assertLess(ratio, 3, name)

    def test_a_text_stays_in_its_place(self):
        """No control character reorders the text around a message, and no tower of marks covers that text."""
        found = self.evaluate(
            """async (base) => {
                const { draw } = await import(`${base}/messages.js`);
                const { oneLine } = await import(`${base}/text.js`);
                const list = document.createElement("ol");
                document.body.append(list);
                const drawn = (body) => {
                    const message = { body, time: 1795564800000, sender: "bob" };
                    list.replaceChildren(draw({ message, state: "", isFirst: true }, {}));
                    return list.querySelector(".text");
                };
                const [plain, tower] = [drawn("a"), `a${"\u0300".repeat(300)}`];
                const height = plain.offsetHeight;
                const body = drawn(tower);
                const style = getComputedStyle(body);
                const facts = [body.offsetHeight <= height * 2, style.overflowY, style.unicodeBidi];
                // Later calls of `drawn` replace this element.
                facts.push(body.textContent.match(/\\p{M}/gu).length);
                facts.push(drawn(`https://a/a${"\u0300".repeat(8000)}`).textContent.match(/\\p{M}/gu).length);
                const override = drawn("photo_\u202egpj.exe");
                facts.push(override.querySelector(".body").textContent);
                facts.push(getComputedStyle(drawn("see https://a.example").querySelector("a")).unicodeBidi);
                facts.push(drawn("a\u202e".repeat(4000)).querySelectorAll(".control").length <= 202);
                facts.push(drawn('http://a"'.repeat(1800)).querySelectorAll("a").length <= 202);
                facts.push(oneLine("a\u202eb\u2067c\u202a\\n d"));
                list.remove();
                return facts;
            }""",
            self.base,
        )
        self.assertEqual(
            found,
            [True, "clip", "plaintext", 30, 30, "photo_[right-to-left]gpj.exe", "isolate", True, True, "abc d"],
        )

    def test_times_are_in_the_language_of_the_page_and_in_the_way_of_the_person(self):
        told = {}
        for locale in ("en-US", "en-GB", "de-DE", "ja-JP"):
            page = self.visitor(locale.lower(), locale=locale, timezone_id="UTC").page
            told[locale] = page.evaluate(
                """async (base) => {
                    const { dayName, exactly, timeOf, when } = await import(`${base}/text.js`);
                    const [then, now] = [Date.UTC(2026, 2, 4, 8, 35), Date.UTC(2026, 7, 1)];
                    const days = [dayName(then, now), dayName(then, then + 3 * 86_400_000), when(then, now)];
                    return [timeOf(then), ...days, exactly(then)].join(" | ").replace(/\u202f/g, " ");
                }""",
                self.base,
            )
        self.assertEqual(
            told,
            {
                "en-US": "8:35 AM | March 4, 2026 | Wednesday | 03/04/26 | Wednesday, March 4, 2026 at 8:35:00 AM",
                "en-GB": "08:35 | 4 March 2026 | Wednesday | 04/03/26 | Wednesday, 4 March 2026 at 08:35:00",
                "de-DE": "08:35 | 4 March 2026 | Wednesday | 04/03/26 | Wednesday, 4 March 2026 at 08:35:00",
                "ja-JP": "08:35 | March 4, 2026 | Wednesday | 26/03/04 | Wednesday, March 4, 2026 at 8:35:00",
            },
        )

    def test_no_character_of_a_preview_is_cut_in_half(self):
        family = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
        smile, accent, tower = "\U0001f642", "e\u0301", "a" + "\u0300" * 16_000
        texts = ["short", "x" * 199 + smile * 3, family * 300, accent * 300, "x" * 199 + family, tower]
        previews = self.evaluate(
            """async ([base, texts]) => {
                const { oneLine } = await import(`${base}/text.js`);
                return texts.map((text) => oneLine(text));
            }""",
            [self.base, texts],
        )
        whole = ["short", "x" * 199 + smile, family * 200, accent * 200, "x" * 199 + family, tower[:31]]
        self.assertEqual(previews, whole)

    def test_the_time_stands_on_the_last_line_where_it_fits(self):
        """The lower edges of text and time differ by a line only if the text leaves no room."""
        below = self.evaluate(
            """async (base) => {
                const { draw } = await import(`${base}/messages.js`);
                const list = document.createElement("ol");
                list.style.width = "500px";
                document.body.append(list);
                const below = (body) => {
                    const message = { body, time: 1795564800000, sender: "bob" };
                    list.replaceChildren(draw({ message, state: "read", isFirst: true }, {}));
                    const bottom = (part) => list.querySelector(part).getBoundingClientRect().bottom;
                    return bottom(".meta") - bottom(".body");
                };
                const found = ["short", "several words ".repeat(5) + "end", "first line, which is the longer one\\nend",
                    "x".repeat(38), "\u05e9\u05dc\u05d5\u05dd"].map(below);
                list.remove();
                return found.map((pixels) => pixels > 12);
            }""",
            self.base,
        )
        self.assertEqual(below, [False, False, False, True, False])


if __name__ == "__main__":
    unittest.main()
