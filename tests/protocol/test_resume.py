"""Replay: a second answer is matched against what was delivered, however it is cut this time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio import Delta, ToolCallDelta, Usage
from gz_trio._protocol.resume import Delivered, Diverged

T = TypeVar("T")


@dataclass
class Reader:
    """Joins what a reader is given, per channel."""

    delivered: Delivered = field(default_factory=Delivered)
    parts: dict[tuple[object, ...], str] = field(default_factory=dict[tuple[object, ...], str])
    finish_reasons: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    ids: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def feed(self, *deltas: Delta | str) -> None:
        for delta in deltas:
            new = self.delivered.new_part(Delta(text=delta) if isinstance(delta, str) else delta)
            for part in (*self.delivered.no_longer_held_back(), new):
                if part is not None:
                    self._take(part)

    def feed_whole(self, *deltas: Delta | str) -> None:
        self.feed(*deltas)
        self.end()

    def end(self) -> None:
        for part in self.delivered.end_attempt():
            self._take(part)

    def _take(self, new: Delta) -> None:
        self._add((new.choice, "text"), new.text)
        self._add((new.choice, "reasoning"), new.reasoning)
        for call in new.tool_calls:
            self._add((new.choice, call.index, "name"), call.name or "")
            self._add((new.choice, call.index, "arguments"), call.arguments)
            if call.id is not None:
                self.ids.append((call.index, call.id))
        if new.finish_reason is not None:
            self.finish_reasons.append((new.choice, new.finish_reason))

    def _add(self, channel: tuple[object, ...], text: str) -> None:
        if text:
            self.parts[channel] = self.parts.get(channel, "") + text

    @property
    def text(self) -> str:
        return self.parts.get((0, "text"), "")


# One answer, asked for again and again, cut differently each time


@dataclass(frozen=True)
class Answer:
    """What the server means to say, per choice."""

    texts: tuple[str, ...]
    reasonings: tuple[str, ...]
    calls: tuple[tuple[tuple[str, str], ...], ...]

    @property
    def parts(self) -> dict[tuple[object, ...], str]:
        parts: dict[tuple[object, ...], str] = {}
        for choice, text in enumerate(self.texts):
            parts[choice, "text"] = text
            parts[choice, "reasoning"] = self.reasonings[choice]
            for index, (name, arguments) in enumerate(self.calls[choice]):
                parts[choice, index, "name"] = name
                parts[choice, index, "arguments"] = arguments
        return {channel: text for channel, text in parts.items() if text}


# Few letters: repeated text is what confuses a matcher.
texts = st.text("ab 日🦊", max_size=12)
names = st.text("fg", min_size=1, max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    choices = draw(st.integers(1, 3))

    def each(strategy: st.SearchStrategy[T]) -> tuple[T, ...]:
        return tuple(draw(st.lists(strategy, min_size=choices, max_size=choices)))

    calls = st.lists(st.tuples(names, texts), max_size=2).map(tuple)
    return Answer(each(texts), each(texts), each(calls))


def cut(draw: st.DrawFn, text: str) -> list[str]:
    points = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[a:b] for a, b in zip([0, *points], [*points, len(text)], strict=True)]


def attempt(draw: st.DrawFn, answer: Answer) -> list[Delta]:
    """All deltas of one attempt: cut anywhere, interleaved anyhow, the calls under new ids."""
    queues: list[list[Delta]] = []
    for choice, text in enumerate(answer.texts):
        queues.append([Delta(choice=choice, text=part) for part in cut(draw, text)])
        reasoning = cut(draw, answer.reasonings[choice])
        queues.append([Delta(choice=choice, reasoning=part) for part in reasoning])
        for index, (name, arguments) in enumerate(answer.calls[choice]):
            call_id = f"call_{draw(st.integers(0, 10**6))}"
            first, *rest = cut(draw, arguments)
            begin = ToolCallDelta(index, call_id, name, first)
            pieces = [begin, *(ToolCallDelta(index, arguments=part) for part in rest)]
            queues.append([Delta(choice=choice, tool_calls=(piece,)) for piece in pieces])
    order = draw(st.permutations([n for n, queue in enumerate(queues) for _ in queue]))
    deltas = [queues[number].pop(0) for number in order]
    ends = [Delta(choice=choice, finish_reason="stop") for choice in range(len(answer.texts))]
    return [*deltas, *draw(st.permutations(ends))]


@given(st.data())
def test_any_cuts_of_any_attempts_give_every_character_exactly_once(data: st.DataObject) -> None:
    answer = data.draw(answers())

    @st.composite
    def attempts(draw: st.DrawFn) -> list[list[Delta]]:
        broken = [attempt(draw, answer) for _ in range(draw(st.integers(1, 3)))]
        broken = [deltas[: draw(st.integers(0, len(deltas)))] for deltas in broken]
        return [*broken, attempt(draw, answer)]

    reader = Reader()
    for number, deltas in enumerate(data.draw(attempts())):
        if number:
            reader.delivered.begin_attempt()
        reader.feed(*deltas)
    reader.end()

    assert reader.parts == answer.parts
    assert sorted(reader.finish_reasons) == [(n, "stop") for n in range(len(answer.texts))]
    # Each call has the id under which it was handed out first, and no other.
    assert len(reader.ids) == sum(map(len, answer.calls))


@given(texts, texts, st.data())
def test_another_answer_diverges_before_any_of_it_is_given(
    first: str, second: str, data: st.DataObject
) -> None:
    reader = Reader()
    reader.feed(first)
    reader.delivered.begin_attempt()

    @st.composite
    def pieces(draw: st.DrawFn) -> list[str]:
        return cut(draw, second)

    try:
        reader.feed_whole(*data.draw(pieces()))
    except Diverged:
        assert not second.startswith(first)
        assert reader.text == first
    else:
        assert second.startswith(first)
        assert reader.text == second


def call(arguments: str = "", *, name: str | None = None, index: int = 0) -> Delta:
    call_id = None if name is None else f"id-{name}"
    return Delta(tool_calls=(ToolCallDelta(index, call_id, name, arguments),))


def stop(choice: int = 0, reason: str = "stop") -> Delta:
    return Delta(choice=choice, finish_reason=reason)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(["Once upon"], ["Once, long"], id="other text"),
        pytest.param(["Once upon"], ["Once", stop()], id="it stops earlier"),
        pytest.param(["Once upon"], [], id="it says nothing"),
        pytest.param(["a", Delta(text="b", choice=1)], ["a", stop()], id="a choice is missing"),
        pytest.param([Delta(reasoning="Hm")], [Delta(text="Hm"), stop()], id="aloud, not thought"),
        pytest.param(["Once", stop()], ["Once upon", stop()], id="it goes on after the end"),
        pytest.param(
            ["Once", stop()], ["Once", call("{}", name="f"), stop()], id="a call after the end"
        ),
        pytest.param([call("{}", name="f")], ["no call", stop()], id="the call is missing"),
        pytest.param([call("{", name="f")], [call("{", name="g")], id="the call has another name"),
        pytest.param([call("{1", name="f")], [call("{2", name="f")], id="other arguments"),
    ],
)
def test_a_different_second_answer_has_diverged(
    first: list[Delta | str], second: list[Delta | str]
) -> None:
    reader = Reader()
    reader.feed(*first)
    before = dict(reader.parts)
    reader.delivered.begin_attempt()
    with pytest.raises(Diverged):
        reader.feed_whole(*second)
    assert {channel: reader.parts[channel] for channel in before} == before


def test_a_delta_that_straddles_the_join_is_given_in_part_without_its_raw_bytes() -> None:
    reader = Reader()
    reader.feed("Once upon")
    reader.delivered.begin_attempt()
    new = reader.delivered.new_part(Delta(text="Once upon a time", raw=b"{...}"))
    assert new == Delta(text=" a time")


def test_a_delta_that_is_new_as_a_whole_is_given_as_it_came() -> None:
    delivered = Delivered()
    delivered.new_part(Delta(text="Once"))
    delivered.begin_attempt()
    delivered.new_part(Delta(text="Once"))
    delta = Delta(text=" upon", raw=b"{...}")
    assert delivered.new_part(delta) is delta


def test_usage_comes_through_a_swallowed_delta() -> None:
    delivered = Delivered()
    delivered.new_part(Delta(text="Once"))
    delivered.begin_attempt()
    usage = Usage(total_tokens=3)
    assert delivered.new_part(Delta(text="Once", usage=usage)) == Delta(usage=usage)


def test_before_a_failure_every_delta_is_given_as_it_is_even_an_empty_one() -> None:
    delta = Delta(raw=b'{"choices":[{"delta":{"role":"assistant"}}]}')
    assert Delivered().new_part(delta) is delta


def test_after_a_restart_the_next_answer_is_matched_against_the_new_text_alone() -> None:
    reader = Reader()
    reader.feed("Once", stop())
    reader.delivered.restart()
    assert not reader.delivered.content
    assert reader.delivered.finish_reasons == []
    reader.feed("Long ago")
    reader.delivered.begin_attempt()
    with pytest.raises(Diverged):
        reader.feed("Once")


@pytest.mark.parametrize(
    ("deltas", "reasons"),
    [
        ([], []),
        (["text"], []),
        ([stop(reason="length")], ["length"]),
        ([stop(2, "length"), "text", stop(1, "stop")], ["stop", "length"]),
    ],
)
def test_finish_reasons_are_in_the_order_of_the_choices(
    deltas: list[Delta | str], reasons: list[str]
) -> None:
    reader = Reader()
    reader.feed(*deltas)
    assert reader.delivered.finish_reasons == reasons


def test_the_finish_reason_of_what_may_be_an_empty_answer_is_held_back() -> None:
    reader = Reader()
    reader.feed(stop())
    assert reader.finish_reasons == []
    reader.delivered.begin_attempt()
    reader.feed("Once")
    reader.delivered.begin_attempt()
    reader.feed_whole("Once upon", stop(reason="length"))
    assert (reader.text, reader.finish_reasons) == ("Once upon", [(0, "length")])


def test_what_was_held_back_comes_with_content_or_at_the_end() -> None:
    reader = Reader()
    reader.feed(stop(1), "Once")
    assert reader.finish_reasons == [(1, "stop")]
    reader = Reader()
    reader.feed_whole(stop(reason="length"))
    assert reader.finish_reasons == [(0, "length")]


@pytest.mark.parametrize(
    ("delta", "content", "tool_calls"),
    [
        (Delta(), False, False),
        (stop(), False, False),
        (Delta(text="x"), True, False),
        (Delta(reasoning="x"), True, False),
        (Delta(tool_calls=(ToolCallDelta(0),)), True, True),
    ],
)
def test_text_reasoning_and_tool_calls_are_content(
    delta: Delta, content: bool, tool_calls: bool
) -> None:
    delivered = Delivered()
    delivered.new_part(delta)
    assert (delivered.content, delivered.tool_calls) == (content, tool_calls)
