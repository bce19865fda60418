"""How the page looks: to eyes, by screenshots, to screen readers, and to a slow line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from playwright.sync_api import Page, expect

from gz_trio import Delta
from gz_trio.testing import FakeGateway
from tests.e2e.browsing import ANSWER, OpenSite, ask, devtools

AXE = Path(__file__).with_name("axe").joinpath("axe.min.js").read_text(encoding="utf-8")
CHECK = "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)"


def rich(_body: Mapping[str, object], _attempt: int) -> list[str | Delta]:
    """An answer with all that Markdown has."""
    return [Delta(reasoning="They ask about keys."), *re.findall(r"\S+\s*", ANSWER)]


class Node(msgspec.Struct):
    html: str


class Finding(msgspec.Struct):
    id: str
    impact: str | None
    nodes: list[Node]


class Findings(msgspec.Struct):
    value: list[Finding]


class Told(msgspec.Struct):
    result: Findings


def findings(page: Page) -> list[str]:
    """What axe finds that is serious or critical."""
    devtools(page, "Runtime.evaluate", expression=AXE, allowUnsafeEvalBlockedByCSP=True)
    told = devtools(
        page, "Runtime.evaluate", expression=CHECK, awaitPromise=True, returnByValue=True
    )
    return [
        f"{finding.id}: {node.html}"
        for finding in msgspec.convert(told, Told).result.value
        if finding.impact in ("serious", "critical")
        for node in finding.nodes
    ]


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(
    open_site: OpenSite, scheme: Literal["light", "dark"], width: int
) -> None:
    site = open_site(FakeGateway(answer=rich))
    page = site.open(width=width, height=740, scheme=scheme)
    assert findings(page) == []
    ask(page, "How does a stream outlive its key?")
    expect(page.locator("#sessions a")).to_have_count(1)
    expect(page.locator(".running")).to_have_count(0)
    site.screenshot(page, "chat")
    assert findings(page) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    if width == 360:
        page.locator("#menu").click()
        expect(page.locator("#close")).to_be_focused()
        expect(page.locator("nav")).to_have_css("translate", "0px")
        site.screenshot(page, "drawer")
        assert findings(page) == []
    page.locator("#open-sign-in").click()
    site.screenshot(page, "sign-in")
    assert findings(page) == []


def test_the_first_load_is_under_200_kilobytes(open_site: OpenSite) -> None:
    site = open_site(FakeGateway())
    site.open()
    sizes = {
        request.url: request.sizes()
        for request in site.requests
        if "/page/events" not in request.url
    }
    everything = sum(
        size["responseHeadersSize"] + size["responseBodySize"] for size in sizes.values()
    )
    assert len(sizes) > 5
    assert everything < 200_000
