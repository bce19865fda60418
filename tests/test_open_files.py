"""How many files a process may open."""

import resource
from collections.abc import Callable

import pytest

from gz_trio._open_files import allow_all_files


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[int]]:
    """Stands in for the system: gives the list of the one limit that counts, the soft one."""

    def stand_in(soft: int, hard: int) -> list[int]:
        now = [soft]

        def limit(_: int) -> tuple[int, int]:
            return now[0], hard

        def set_limit(_: int, to: tuple[int, int]) -> None:
            now[0] = to[0]

        monkeypatch.setattr(resource, "getrlimit", limit)
        monkeypatch.setattr(resource, "setrlimit", set_limit)
        return now

    return stand_in


def test_as_many_as_the_system_allows(limits: Callable[[int, int], list[int]]) -> None:
    now = limits(1024, 4096)
    assert allow_all_files() == 4096
    assert now == [4096]


def test_no_limit_is_no_limit_of_minus_one(limits: Callable[[int, int], list[int]]) -> None:
    limits(1024, resource.RLIM_INFINITY)
    assert allow_all_files() is None


def test_where_the_system_has_less_than_it_says_what_there_is_stays(
    limits: Callable[[int, int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError

    limits(256, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert allow_all_files() == 256
