"""Where an answer was left whose events are numbered, and where in it another one begins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio._protocol.cursor import SequenceCursor
from gz_trio._protocol.responses import identified
from gz_trio._protocol.sse import ServerSentEvent


def numbered(number: int | None) -> ServerSentEvent:
    """An event as a server of the Responses API sends it, which may leave the number out."""
    field = "" if number is None else f',"sequence_number":{number}'
    data = f'{{"type":"response.output_text.delta","delta":"la"{field}}}'
    return identified(ServerSentEvent("message", data.encode()))


def left_after(*numbers: int | None) -> SequenceCursor:
    cursor = SequenceCursor()
    for number in numbers:
        cursor.passed(numbered(number))
    return cursor


@pytest.mark.parametrize(
    ("numbers", "last"),
    [
        pytest.param([], None, id="nothing came"),
        pytest.param([0], "0", id="the first alone: 0 is a place"),
        pytest.param([0, 1, 2], "2", id="the last"),
        pytest.param([0, 1, 5], "5", id="with a gap"),
        pytest.param([7, 8], "8", id="from the middle on"),
        pytest.param([3, 1, 2], "3", id="the highest: what is below it was there already"),
        pytest.param([2, 2], "2", id="one twice"),
        pytest.param([12345678901234567890], "12345678901234567890", id="a large one"),
        pytest.param([None], None, id="no numbers at all"),
        pytest.param([1, 2, None], None, id="none behind the last: what came behind 2 is unknown"),
        pytest.param([1, None, 2], "2", id="none before the last"),
        pytest.param([None, 0], "0", id="none before the first"),
    ],
)
def test_the_place_is_the_last_number(numbers: list[int | None], last: str | None) -> None:
    assert left_after(*numbers).last_event_id == last


def test_what_is_asked_for_by_it_is_that_stream_or_nothing() -> None:
    assert SequenceCursor().names_the_stream


@pytest.mark.parametrize(
    ("first_number", "place"),
    [
        pytest.param(10, "here", id="the next number"),
        pytest.param(12, "here", id="a later one: the server knows what it left out"),
        pytest.param(9, "here", id="the last one again"),
        pytest.param(8, "here", id="one in the middle again"),
        pytest.param(7, "beginning", id="the first one again"),
        pytest.param(None, "unknown", id="no number"),
    ],
)
@pytest.mark.parametrize("begun", [set[int](), {0}])
def test_the_first_number_tells_where_an_answer_begins(
    first_number: int | None, place: str, begun: set[int]
) -> None:
    cursor = left_after(7, 8, 9)
    assert cursor.place_of(numbered(first_number), begun=begun) == place


def test_the_end_of_the_stream_without_a_number_is_nowhere() -> None:
    done = identified(ServerSentEvent("message", b"[DONE]", id="9"))
    cursor = left_after(7, 8)
    assert cursor.place_of(done, begun={0}) == "unknown"
    assert not cursor.has_passed(done)


def test_the_first_number_is_where_the_stream_began_whatever_came_later() -> None:
    cursor = left_after(None, 3, 1, 4)
    assert cursor.place_of(numbered(3), begun={0}) == "beginning"
    assert cursor.place_of(numbered(1), begun={0}) == "here"


@pytest.mark.parametrize(
    ("number", "passed"), [(0, True), (4, True), (5, True), (6, False), (10, False), (None, False)]
)
def test_whatever_has_no_higher_number_was_taken_already(number: int | None, passed: bool) -> None:
    assert left_after(3, 5).has_passed(numbered(number)) is passed


def test_nothing_was_taken_before_anything_came() -> None:
    assert not SequenceCursor().has_passed(numbered(0))


@given(st.lists(st.integers(0, 20), min_size=1), st.integers(0, 20))
def test_numbers_are_compared_as_numbers(numbers: list[int], number: int) -> None:
    # As text, 9 would come behind 10.
    cursor = left_after(*numbers)
    assert cursor.last_event_id == str(max(numbers))
    assert cursor.has_passed(numbered(number)) is (number <= max(numbers))


@given(st.integers(1, 30), st.lists(st.integers(0, 30), max_size=5), st.integers(0, 3))
def test_wherever_it_breaks_every_event_is_taken_once(
    events: int, cuts: list[int], overlap: int
) -> None:
    """A server may send some of what was taken once more."""
    cursor = SequenceCursor()
    taken: list[int] = []
    for cut in [*cuts, events]:
        last = cursor.last_event_id
        begin = 0 if last is None else max(int(last) + 1 - overlap, 0)
        for number in range(begin, events)[:cut]:
            event = numbered(number)
            if not cursor.has_passed(event):
                taken.append(number)
                cursor.passed(event)
    rest = [number for number in range(events) if not cursor.has_passed(numbered(number))]
    assert taken + rest == [*range(events)]
