"""Fixtures for the tests of key stores."""

from __future__ import annotations

import sys

import pytest

from gz_trio._auth.stores._watch import Watchfiles


@pytest.fixture(params=["inotify", "watchfiles"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system tells of changes by."""
    if request.param == "watchfiles":
        monkeypatch.setattr("gz_trio._auth.stores._watch.open_source", Watchfiles)
    elif sys.platform != "linux":
        pytest.skip("inotify is Linux's")
