"""A key that dies while the page chats: the answer goes on, or what came of it is kept."""

from __future__ import annotations

from math import inf

from playwright.sync_api import Page, expect

from gz_trio.testing import Cut, FakeGateway, Stall, Status
from tests.e2e.browsing import (
    COUNTED,
    OpenSite,
    ask,
    counted,
    shows_one_turn,
    sign_in,
    stopping_at_word_8,
)

QUESTION = "What goes on?"


def places(page: Page) -> list[object]:
    """Where things are, which a line that comes and goes must not move."""
    return [page.locator(name).bounding_box() for name in ("#scroller", ".question", "#composer")]


def test_a_key_that_died_before_the_reply_is_replaced_and_nothing_moves(
    open_site: OpenSite,
) -> None:
    site = open_site(FakeGateway(answer=counted))
    page = site.open()
    expect(page.locator("#model")).not_to_have_value("")  # which is asked for with the key, too
    site.hold_refresh()
    site.do(site.fake.rotate)
    ask(page, QUESTION)
    expect(page.locator("#status")).to_have_text("signing in again ...")
    before = places(page)
    site.screenshot(page)
    site.let_refresh_go()
    shows_one_turn(page, QUESTION, COUNTED)
    expect(page.locator("#status")).to_be_empty()
    assert places(page) == before
    assert site.kept() == [("user", QUESTION), ("assistant", COUNTED + " ")]
    assert site.fake.refreshes == 1


def test_a_key_that_died_during_the_reply_is_replaced_and_nothing_is_doubled(
    open_site: OpenSite,
) -> None:
    site = open_site(stopping_at_word_8())
    page = site.open()
    ask(page, QUESTION)
    expect(page.locator(".answer")).to_contain_text("word-5")
    site.hold_refresh()
    site.do(site.fake.rotate)
    expect(page.locator("#status")).to_have_text("signing in again ...")
    partial = page.locator(".answer .markdown").inner_text()
    assert COUNTED.startswith(partial)
    before = places(page)
    site.screenshot(page)
    site.let_refresh_go()
    shows_one_turn(page, QUESTION, COUNTED)
    expect(page.locator("#status")).to_be_empty()
    assert places(page) == before
    assert site.kept() == [("user", QUESTION), ("assistant", COUNTED + " ")]
    assert site.fake.refreshes == 1
    page.reload()
    shows_one_turn(page, QUESTION, COUNTED)


def test_an_answer_that_comes_again_in_other_words_takes_the_place_of_the_first(
    open_site: OpenSite,
) -> None:
    def sampled(_body: object, attempt: int) -> list[str]:
        if attempt == 1:
            return ["One.\n\n", "Two.\n\n", "Three.\n\n", "Four."]
        return ["Quite ", "another."]

    fake = FakeGateway(answer=sampled, token_interval=0.05)
    fake.fault(Cut(), token=3, request=1)
    fake.fault(Stall(inf), token=1, request=2)
    site = open_site(fake)
    page = site.open()
    ask(page, QUESTION)
    expect(page.locator(".running .markdown")).to_have_text("Quite")
    site.do(fake.rotate)  # ends the stall
    shows_one_turn(page, QUESTION, "Quite another.")
    assert site.kept() == [("user", QUESTION), ("assistant", "Quite another.")]


def test_a_rate_limit_is_announced_and_waited_for(open_site: OpenSite) -> None:
    site = open_site(FakeGateway(answer=counted))
    site.do(lambda: site.fake.fault(Status(429), path="/v1/chat/completions"))
    page = site.open()
    ask(page, QUESTION)
    expect(page.locator("#status")).to_have_text("the gateway is busy, going on in 2 s ...")
    shows_one_turn(page, QUESTION, COUNTED)


def test_where_the_refresh_is_refused_the_partial_text_stays_and_can_be_asked_again(
    open_site: OpenSite,
) -> None:
    site = open_site(stopping_at_word_8())
    page = site.open()
    ask(page, QUESTION)
    expect(page.locator(".answer")).to_contain_text("word-5")
    site.fake.refuse_refresh = True
    site.do(site.fake.rotate)
    note = page.locator(".answer .note")
    expect(note).to_have_text("Authentication failed after refresh attempt. Please log in again.")
    partial = page.locator(".answer .markdown").inner_text()
    assert "word-5" in partial
    assert COUNTED.startswith(partial)
    expect(page.locator("#account-words")).to_have_text("Sign-in failed")
    assert site.kept() == []
    site.screenshot(page)

    sign_in(page, site.fake.key, same_account=True)
    expect(page.locator("#account-words")).to_have_text("Signed in")
    expect(page.locator(".answer .markdown")).to_have_text(partial)
    page.get_by_role("button", name="Try again").click()
    shows_one_turn(page, QUESTION, COUNTED)
    assert site.kept() == [("user", QUESTION), ("assistant", COUNTED + " ")]
