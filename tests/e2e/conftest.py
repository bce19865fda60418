"""The browser, and what opens a site for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser, sync_playwright

from gz_trio.testing import FakeGateway
from tests.e2e.browsing import SCREENSHOTS, OpenSite, Site


@pytest.fixture(scope="module")  # no longer: Trio has the thread in other modules
def browser() -> Generator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("these tests need the package chromium")
        pytest.skip("there is no chromium: Debian has it as a package of that name")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=executable,
            # Whoever runs tests as root has no sandbox; what is opened here is ours.
            args=["--no-sandbox"] if os.getuid() == 0 else [],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_site(request: pytest.FixtureRequest, browser: Browser) -> Generator[OpenSite]:
    """Opens sites; fails a test in which a browser complained."""
    with ExitStack() as stack:
        sites: list[Site] = []

        def open_one(
            fake: FakeGateway, *, refreshable: bool = True, signed_in: bool = True
        ) -> Site:
            name = request.node.name.removeprefix("test_")
            site = Site(fake, browser, name)
            stack.enter_context(site.serve(refreshable=refreshable, signed_in=signed_in))
            sites.append(site)
            return site

        yield open_one
    assert [error for site in sites for error in site.errors] == []
