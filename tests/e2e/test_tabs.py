"""Several tabs of one proxy, and other processes: all show the same."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from gz_trio.testing import FakeGateway, Stall
from tests.e2e.browsing import (
    COUNTED,
    OpenSite,
    ask,
    counted,
    shows_one_turn,
    sign_in,
    stopping_at_word_8,
)

QUESTION = "Who is there?"


def hide(page: Page, hidden: bool) -> None:
    """What a browser does to a tab that is no longer in front."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_a_stream_that_waits_goes_on_when_another_tab_signs_in_to_the_same_account(
    open_site: OpenSite,
) -> None:
    site = open_site(stopping_at_word_8(), refreshable=False)
    page, other = site.open(), site.open()
    ask(page, QUESTION)
    expect(page.locator(".answer")).to_contain_text("word-5")
    site.do(site.fake.rotate)
    expect(page.locator("#status")).to_have_text("signing in again ...")
    expect(other.locator("#account-words")).to_have_text("Signing in ...")
    sign_in(other, site.fake.key, same_account=True)
    shows_one_turn(page, QUESTION, COUNTED)
    expect(page.locator("#account-words")).to_have_text("Signed in")
    assert site.kept() == [("user", QUESTION), ("assistant", COUNTED + " ")]


def test_where_another_account_signs_in_every_tab_forgets_what_it_showed(
    open_site: OpenSite,
) -> None:
    site = open_site(stopping_at_word_8(), refreshable=False)
    page, other = site.open(), site.open()
    ask(page, QUESTION)
    expect(page.locator(".answer")).to_contain_text("word-5")
    another_key = site.do(site.fake.add_account, "another")
    sign_in(other, another_key, same_account=False)
    expect(page.locator(".question")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    assert site.kept() == []


def test_a_question_that_is_asked_before_anybody_has_signed_in_waits_for_the_key(
    open_site: OpenSite,
) -> None:
    site = open_site(FakeGateway(answer=counted), refreshable=False, signed_in=False)
    page = site.open()
    expect(page.locator("#welcome-words")).to_have_text("Sign in to be answered.")
    page.locator("#question").fill(QUESTION)
    page.locator("#question").press("Enter")
    expect(page.locator("#notice")).to_contain_text("Which model is to answer?")
    expect(page.locator("#model")).to_be_focused()
    page.locator("#model").fill("fake-model")
    ask(page, QUESTION)
    expect(page.locator("#status")).to_have_text("signing in ...")
    site.screenshot(page)
    page.locator("#open-sign-in").click()
    expect(page.locator("#whose")).to_be_hidden()
    page.locator("#key").fill(site.fake.key)
    page.locator("#sign-in-do").click()
    shows_one_turn(page, QUESTION, COUNTED)
    expect(page.locator("#sessions a")).to_have_text([QUESTION])
    expect(page.locator("#account-words")).to_have_text("Signed in")


def test_signing_out_leaves_nothing_on_the_page_and_signing_in_brings_it_back(
    open_site: OpenSite,
) -> None:
    site = open_site(FakeGateway(answer=counted), refreshable=False)
    page = site.open()
    ask(page, QUESTION)
    shows_one_turn(page, QUESTION, COUNTED)
    page.locator("#sign-out").click()
    expect(page.locator("#account-words")).to_have_text("Not signed in")
    expect(page.locator(".question")).to_have_count(0)
    expect(page.locator("#sessions a")).to_have_count(0)
    site.screenshot(page)
    page.locator("#welcome-sign-in").click()
    page.locator("#key").fill(site.fake.key)
    page.locator("#key").press("Enter")
    expect(page.locator("#sessions a")).to_have_text([QUESTION])


def test_a_turn_is_seen_as_it_comes_in_every_tab_that_shows_its_chat(
    open_site: OpenSite,
) -> None:
    site = open_site(FakeGateway(answer=counted))
    page, other = site.open(), site.open()
    ask(page, QUESTION)
    expect(other.locator("#sessions a")).to_have_text([QUESTION])
    other.locator("#sessions a").click()
    shows_one_turn(other, QUESTION, COUNTED)
    site.do(lambda: site.fake.fault(Stall(), token=8))
    ask(page, "And now?")
    expect(other.locator(".running .markdown")).to_contain_text("word-5")
    expect(other.locator("#send")).to_be_disabled()
    site.do(site.fake.rotate)  # ends the stall
    for each in (page, other):
        expect(each.locator(".running")).to_have_count(0)
        expect(each.locator(".question .words")).to_have_text([QUESTION, "And now?"])
        expect(each.locator(".answer .markdown")).to_have_text([COUNTED, COUNTED])
    assert len(site.kept()) == 4


def test_a_tab_that_comes_to_the_front_again_shows_what_it_missed(open_site: OpenSite) -> None:
    site = open_site(FakeGateway(answer=counted))
    page, other = site.open(), site.open()
    hide(other, hidden=True)
    ask(page, QUESTION)
    shows_one_turn(page, QUESTION, COUNTED)
    expect(page.locator("#sessions a")).to_have_text([QUESTION])
    expect(other.locator("#sessions a")).to_have_count(0)
    hide(other, hidden=False)
    expect(other.locator("#sessions a")).to_have_text([QUESTION])


def test_a_chat_is_renamed_and_deleted_in_every_tab(open_site: OpenSite) -> None:
    site = open_site(FakeGateway(answer=counted))
    page, other = site.open(), site.open()
    ask(page, QUESTION)
    shows_one_turn(page, QUESTION, COUNTED)
    page.bring_to_front()
    page.locator("#title").fill("A better name")
    page.locator("#title").press("Enter")
    for each in (page, other):
        expect(each.locator("#sessions a")).to_have_text(["A better name"])
    page.locator("#delete").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    for each in (page, other):
        expect(each.locator("#sessions a")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    assert site.do(lambda: site.fake.history.sessions) == {}
