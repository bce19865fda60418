"""Questions and answers on the page: what is typed, shown, stopped and read."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from playwright.sync_api import expect

from gz_trio.testing import FakeGateway, Stall, Status
from tests.e2e.browsing import (
    ANSWER,
    COUNTED,
    OpenSite,
    ask,
    counted,
    devtools,
    shows_one_turn,
    stopping_at_word_8,
)

QUESTION = "How long is it?"

HOSTILE = """\
<script>document.title = "taken"; fetch("/v1/models")</script>

<img src="http://localhost:9/i.png" onerror="document.title='taken'">

![an image](http://localhost:9/markdown.png) and [a link](javascript:document.title='taken')

[data](data:text/html,<script>document.title='taken'</script>) <b onclick="alert(1)">bold</b>

<svg onload="document.title='taken'"><style>* { display: none }</style></svg>

```x"><script>document.title='taken'</script>
</code></pre><script>document.title='taken'</script>
```

| <iframe src="http://localhost:9/"></iframe> | <form action="/page/sign-out"><button>x</button> |
|---|---|
| <a href="/page/sign-out" class="button">mine</a> | <link rel=stylesheet href=//localhost:9/s> |

<http://localhost:9/auto> <math><mtext></form><mglyph><style></math><img src onerror=alert(1)>
"""


def test_a_slow_network_loses_nothing(open_site: OpenSite) -> None:
    site = open_site(FakeGateway(answer=counted, token_interval=0.005))
    page = site.open()
    devtools(
        page,
        "Network.emulateNetworkConditions",
        offline=False,
        latency=150,
        downloadThroughput=4_000,
        uploadThroughput=4_000,
    )
    ask(page, QUESTION)
    shows_one_turn(page, QUESTION, COUNTED)
    assert site.kept() == [("user", QUESTION), ("assistant", COUNTED + " ")]


def test_escape_stops_the_answer_upstream_and_it_can_be_asked_again(open_site: OpenSite) -> None:
    site = open_site(stopping_at_word_8())
    page = site.open()
    ask(page, QUESTION)
    expect(page.locator(".answer")).to_contain_text("word-5")
    assert site.do(lambda: site.fake.open_streams) == 1
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_have_text("Stopped. This is not kept in the chat.")
    partial = page.locator(".answer .markdown").inner_text()
    assert COUNTED.startswith(partial)
    site.until(lambda: site.fake.open_streams == 0)
    assert site.kept() == []
    site.screenshot(page)

    page.get_by_role("button", name="Try again").click()
    shows_one_turn(page, QUESTION, COUNTED)
    assert site.kept() == [("user", QUESTION), ("assistant", COUNTED + " ")]


def test_enter_sends_and_shift_enter_begins_a_line(open_site: OpenSite) -> None:
    fake = FakeGateway(answer=counted)
    fake.fault(Stall(0.5), path="/v1/models")  # It is asked as soon as there is a model to ask.
    site = open_site(fake)
    page = site.open()
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("One line,")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another.")
    page.keyboard.press("Enter")
    expect(page.locator(".question .words")).to_have_text(["One line,\nand another."])
    expect(page.locator("#question")).to_have_value("")
    expect(page.locator("#question")).to_be_focused()
    expect(page.locator("#announcements")).to_have_text("The answer is complete.")


def test_hostile_questions_and_answers_are_words(open_site: OpenSite) -> None:
    def hostile(_body: Mapping[str, object], _attempt: int) -> list[str]:
        return re.findall(r"(?s).{1,7}", HOSTILE)

    site = open_site(FakeGateway(answer=hostile))
    page = site.open()
    loaded = len(site.requests)
    ask(page, HOSTILE)
    expect(page.locator(".running")).to_have_count(0)
    expect(page.locator("#sessions a")).to_have_count(1)
    for _ in ("as it came", "as it is kept"):
        expect(page.locator(".question .words")).to_have_text(HOSTILE.strip())
        answer = page.locator(".answer .markdown")
        expect(answer).to_contain_text('<script>document.title = "taken"')
        expect(answer).to_contain_text("</code></pre><script>")
        bad = (
            "script, img, svg, style, iframe, form, input, link, math, object, [onclick], [onerror]"
        )
        assert answer.locator(bad).count() == 0
        assert answer.locator("[class]:not(.code, .language, .quiet, .table)").count() == 0
        links = answer.locator("a[href]").all()
        assert {link.get_attribute("href") for link in links} == {
            "http://localhost:9/markdown.png",
            "http://localhost:9/auto",
        }
        assert {link.get_attribute("rel") for link in links} == {"noopener noreferrer"}
        assert {link.get_attribute("target") for link in links} == {"_blank"}
        assert page.title() != "taken"
        site.screenshot(page)
        page.reload()
        expect(page.locator(".answer")).to_have_count(1)
    expect(page.locator("#account-words")).to_have_text("Signed in")
    allowed = re.compile(rf"{re.escape(page.url.partition('#')[0])}(page/.*)?$")
    for request in site.requests[loaded:]:
        assert allowed.match(request.url.partition("#")[0]), request.url


PIECES = [
    ANSWER,
    HOSTILE,
    "- one\n\n- two\n\n  in two\n  - three\n\n\nafter\r\n\r\n1) a\r\n2) b\r\n",
    "> quoted\nlazily\n\n> more\n> ```\n> code\n\nTitle\n===\n\n    indented\n\n\n    more\n***\n",
    "| a | b |\n|:-:|--:|\n| 1 | 2 |\n\n~~~\n```\nin\n~~~\n**b *both***\n- [x] done\n- [ ] open\n",
]


def test_an_answer_looks_the_same_in_whatever_pieces_it_came(open_site: OpenSite) -> None:
    page = open_site(FakeGateway()).open()
    dice = random.Random(10)
    ways = [
        (text, sorted(dice.randrange(len(text)) for _ in range(24)))
        for text in PIECES
        for _ in range(10)
    ]
    differing = page.evaluate(
        """async ways => {
            const { Markdown } = await import("/page/markdown.js");
            const differing = [];
            for (const [text, cuts] of ways) {
                const grown = document.createElement("div");
                const whole = document.createElement("div");
                const growing = new Markdown(grown);
                for (const cut of [...cuts, text.length]) {
                    growing.grow(text.slice(0, cut));
                }
                new Markdown(whole).settle(text);
                if (grown.innerHTML !== whole.innerHTML) {
                    differing.push([cuts, grown.innerHTML, whole.innerHTML]);
                }
            }
            return differing;
        }""",
        ways,
    )
    assert differing == []


def test_a_link_whose_target_is_named_at_the_end_is_one_in_the_end(open_site: OpenSite) -> None:
    text = "See [the docs].\n\nMore.\n\n[the docs]: https://example.org/\n"
    site = open_site(FakeGateway(answer=lambda _body, _attempt: re.findall(r"\S+\s*", text)))
    page = site.open()
    ask(page, QUESTION)
    link = page.get_by_role("link", name="the docs")
    expect(link).to_have_attribute("href", "https://example.org/")


def test_what_is_read_stays_where_it_is_while_the_answer_goes_on(open_site: OpenSite) -> None:
    def long(_body: Mapping[str, object], _attempt: int) -> list[str]:
        return [f"Paragraph {number}.\n\n" for number in range(100)]

    site = open_site(FakeGateway(answer=long, token_interval=0.02))
    page = site.open(height=600)
    ask(page, QUESTION)
    expect(page.locator(".answer")).to_contain_text("Paragraph 30.")
    expect(page.locator(".answer .markdown > :last-child")).to_be_in_viewport()
    page.locator("#scroller").hover()
    page.mouse.wheel(0, -400)
    expect(page.locator("#to-end")).to_be_visible()
    read = page.get_by_text("Paragraph 15.", exact=True)
    read.scroll_into_view_if_needed()
    place = read.bounding_box()
    expect(page.get_by_text("Paragraph 99.", exact=True)).to_have_count(1)
    assert read.bounding_box() == place
    page.locator("#to-end").click()
    expect(page.get_by_text("Paragraph 99.", exact=True)).to_be_in_viewport()
    expect(page.locator("#to-end")).to_be_hidden()


def test_where_the_gateway_keeps_no_history_the_tab_remembers(open_site: OpenSite) -> None:
    asked: list[object] = []

    def answer(body: Mapping[str, object], _attempt: int) -> list[str]:
        asked.append(body["messages"])
        return ["Noted."]

    site = open_site(FakeGateway(answer=answer))
    site.do(lambda: site.fake.fault(Status(404), path="/v1/chat/sessions", times=None))
    page = site.open()
    expect(page.locator("#no-history")).to_be_visible()
    for question in ("First.", "Second."):
        ask(page, question)
        expect(page.locator(".running")).to_have_count(0)
    expect(page.locator(".question .words")).to_have_text(["First.", "Second."])
    expect(page.locator(".answer .markdown")).to_have_text(["Noted.", "Noted."])
    expect(page.locator(".note:visible")).to_have_count(0)
    assert asked[-1] == [
        {"role": "user", "content": "First."},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "Second."},
    ]


def test_a_code_block_is_copied_as_the_model_wrote_it(open_site: OpenSite) -> None:
    site = open_site(
        FakeGateway(answer=lambda _body, _attempt: ["```py\n", "if a < b:\n", "    c\n", "```"])
    )
    page = site.open()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, QUESTION)
    expect(page.locator(".code .language")).to_have_text("py")
    page.locator(".code").get_by_role("button", name="Copy").click()
    expect(page.locator(".code button")).to_have_text("Copied")
    assert page.evaluate("() => navigator.clipboard.readText()") == "if a < b:\n    c\n"
