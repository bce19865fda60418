"""A pytest plugin: a test fails if it prints, logs or raises a key of the tests.

Keys of the tests are those of `FakeGateway` (`gw_test_1`) and what `secret()` makes. Looked at are
what a test writes to its output and its log, the message of every `GatewayError` that is made
while it runs, and what its failure says. Switched on in the top-level `conftest.py`.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

import pytest

from gz_trio import GatewayError

SECRET_MARK = "s3cr3t"
_KEYS = re.compile(rf"\w*{SECRET_MARK}\w*|gw_test_\d+")


def secret(name: str) -> str:
    """A key, a refresh token, or another value that nobody may see."""
    return f"gw_{SECRET_MARK}_{name}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Fails a test in which an error quotes a key, whoever catches it."""
    leaks: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        original = GatewayError.__init__

        def checked(self: GatewayError, message: str, **details: Any) -> None:
            if _KEYS.search(message):
                leaks.append(_KEYS.sub("...", message))
            original(self, message, **details)

        patch.setattr(GatewayError, "__init__", checked)
        result = yield
    if leaks:
        pytest.fail(f"an error quotes a key: {leaks[0]}", pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test whose output, log or failure shows a key.

    Of a failure its own words, not the source lines and arguments that pytest shows beside it.
    """
    report = yield
    # Each report repeats what those before it captured.
    shown = [
        f"{title}\n{text}" for title, text in report.sections if title.endswith(str(report.when))
    ]
    leaks = [text.partition("\n")[0] for text in shown if _KEYS.search(text)]
    if call.excinfo is not None and SECRET_MARK in str(call.excinfo.value):
        leaks.append(f"a {call.excinfo.typename}")
    if leaks:
        report.outcome = "failed"
        report.sections.clear()
        report.longrepr = f"{item.nodeid} shows a key of the tests: {', '.join(leaks)}"
    return report
