"""The shortcut for plain text comes to what the long way comes to, whatever a server sends.

Nearly every event of a reply is some more text and nothing else, so that has a way of its own
through `Taking`. Here the same bytes, in the same pieces, are taken twice: as they are taken in
earnest, and with one or all of the shortcuts giving nothing.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import cast
from unittest.mock import Mock

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from gz_trio import Delta, GatewayError, Paused, ReplyEvent, ResumePolicy, Timeouts
from gz_trio._chat.attempts import Attempt
from gz_trio._chat.buffer import EventBuffer
from gz_trio._chat.recovering import Recovering
from gz_trio._chat.taking import ErrorFrame, Taking
from gz_trio._chat.telemetry import ReplyTelemetry
from gz_trio._protocol.chat import ChatDecoder
from gz_trio._protocol.resume import Diverged
from gz_trio._protocol.resumption import CannotResume, NextRequest, Resumption, StartedOver
from gz_trio._protocol.sse import EventStreamDecoder

BODY: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}

SHORTCUTS: dict[str, tuple[type, str, object]] = {
    "of whole events": (EventStreamDecoder, "split", Mock(return_value=None)),
    "of chunks that are text": (ChatDecoder, "decode_texts", Mock(return_value=None)),
    "of text that is new": (Resumption, "open_text", property(lambda _: None, lambda _, __: None)),
}


@contextmanager
def without(*names: str) -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(*SHORTCUTS[name])
        yield


@contextmanager
def counted() -> Generator[list[str]]:
    """The texts that went the short way, to its end."""
    texts: list[str] = []
    append = Resumption.append

    def noted(resumption: Resumption, deltas: Sequence[Delta]) -> None:
        texts.extend(delta.text for delta in deltas)
        append(resumption, deltas)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resumption, "append", noted)
        yield texts


# A reply without a connection


class Told:
    """In place of `Recovering`: what the reply's fate is decided by."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def accepted(self) -> None:
        self.calls.append("accepted")

    def progressed(self) -> None:
        self.calls.append("progressed")

    def restarted(self) -> None:
        self.calls.append("restarted")


class Nobody:
    """In place of `Receiver`."""

    def answer_stopped(self, error: BaseException | None) -> None: ...

    def reader_has_room(self) -> None: ...


@dataclass
class Outcome:
    """All that came of some attempts' bytes."""

    given: list[tuple[ReplyEvent, int, int]] = field(
        default_factory=list[tuple[ReplyEvent, int, int]]
    )
    raised: list[str] = field(default_factory=list[str])
    requests: list[object] = field(default_factory=list[object])
    told: list[str] = field(default_factory=list[str])
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    state: list[object] = field(default_factory=list[object])
    timing: dict[str, object] = field(default_factory=dict[str, object])

    @property
    def text(self) -> str:
        return "".join(event.text for event, _, _ in self.given if isinstance(event, Delta))


Pieces = Sequence[bytes]


async def _take(attempts: Sequence[Pieces], policy: ResumePolicy, clock: MockClock) -> Outcome:
    """As `Receiver` does it: attempt after attempt, each of which is broken behind its pieces."""
    outcome, buffer, told = Outcome(), EventBuffer(), Told()
    resumption = Resumption(BODY, policy)
    taking = Taking(
        resumption,
        cast("Recovering", told),
        timeouts=Timeouts(),
        buffer=buffer,
        telemetry=ReplyTelemetry(BODY, "http://gateway.test"),
        owner=Nobody(),
    )
    for pieces in attempts:
        try:
            outcome.requests.append(resumption.next_request())
        except CannotResume:
            break
        told.calls.append("attempt")
        attempt = Attempt(trio.current_time(), 1)
        outcome.attempts.append(attempt)
        taking.begin(attempt)
        try:
            for piece in pieces:
                clock.jump(0.25)
                if taking.receive(piece, int(trio.current_time() * 1e9)):
                    break  # The reader has enough for now.
            if not taking.done:
                taking.finish()
        except ErrorFrame as frame:
            outcome.raised.append(f"frame: {frame.error!r}")
            resumption.ended_early(frame.error)
        except (GatewayError, StartedOver) as error:
            outcome.raised.append(repr(error))
        except (Diverged, CannotResume) as error:
            outcome.raised.append(repr(error))
            break
        else:
            break
        finally:
            outcome.state.append(
                (
                    resumption.content,
                    resumption.finish_reasons,
                    resumption.repeated,
                    resumption.decoder.complete,
                    sorted(resumption.decoder.choices),
                    taking.answer({}),
                    taking.last_usage,
                    taking.done,
                    taking.deadline(),
                )
            )
        clock.jump(1)
        taking.pause(Paused("reconnect"))
        clock.jump(1)
    taking.end(None)
    with suppress(CannotResume):
        outcome.requests.append(resumption.next_request())
    outcome.given = [*reversed(buffer._next), *buffer._came]
    # That new text came is told once for many in a row, or for each.
    outcome.told = [call for call, _ in groupby(told.calls)]
    outcome.timing = asdict(taking.timing)
    return outcome


def taken(attempts: Sequence[Pieces], policy: ResumePolicy | None = None) -> Outcome:
    clock = MockClock()
    return trio.run(_take, attempts, policy or ResumePolicy(), clock, clock=clock)


def both_ways(attempts: Sequence[Pieces], policy: ResumePolicy | None = None) -> Outcome:
    outcome = taken(attempts, policy)
    for names in (SHORTCUTS.keys(), *([name] for name in SHORTCUTS)):
        with without(*names):
            assert taken(attempts, policy) == outcome, names
    return outcome


# What servers send


def frame(chunk: object) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunk(content: object = None, finish_reason: str | None = None, **more: object) -> bytes:
    index = more.pop("index", 0)
    top = {name[4:]: more.pop(name) for name in list(more) if name.startswith("top_")}
    delta = more if content is None else {"content": content, **more}
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
    return frame({"id": "chatcmpl-1", "choices": [choice], **top})


def escaped(content: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"' + content.encode() + b'"}}]}\n\n'


DONE = b"data: [DONE]\n\n"
CALL = {"index": 0, "id": "call_1", "function": {"name": "f", "arguments": "{}"}}
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
ERROR = {"error": {"type": "provider_error", "message": "no", "code": 502}}

PLAIN_TEXTS = ["Once", " upon", " a", " time", " \u00e9", "\U0001f98a", "\n\n"]
PLAIN = [chunk(text) for text in PLAIN_TEXTS]

# All that is not some more text of the first choice and nothing else.
OTHERS = {
    "a role": chunk("", role="assistant"),
    "a role and text": chunk(" in", role="assistant"),
    "no text": chunk(""),
    "null": chunk(None),
    "a finish reason": chunk(None, "stop"),
    "text and a finish reason": chunk(" end", "stop"),
    "the finish reason error": chunk(" end", "error"),
    "usage": frame({"choices": [], "usage": USAGE}),
    "text and usage": chunk(" cost", top_usage=USAGE),
    "text and empty usage": chunk(" cost", top_usage={}),
    "reasoning": chunk(None, reasoning_content="Hm"),
    "text and reasoning": chunk(" so", reasoning="Hm"),
    "reasoning details": chunk(" so", reasoning_details=[{"type": "reasoning.text", "text": "H"}]),
    "a refusal": chunk(None, refusal="I cannot"),
    "text and a refusal": chunk(" but", refusal="I cannot"),
    "a tool call": chunk(None, tool_calls=[CALL]),
    "text and a tool call": chunk(" look", tool_calls=[CALL]),
    "text and no tool calls": chunk(" look", tool_calls=[]),
    "another choice": chunk(" else", index=1),
    "another choice's finish reason": chunk(None, "stop", index=1),
    "an index that is none": chunk(" else", index="0"),
    "an index that is true": chunk(" else", index=True),
    "an index that is 1.0": chunk(" else", index=1.0),
    "two choices": frame(
        {"choices": [{"index": i, "delta": {"content": f" {i}"}} for i in (0, 1)]}
    ),
    "the same choice twice": frame(
        {"choices": [{"index": 0, "delta": {"content": f" {i}"}} for i in (0, 1)]}
    ),
    "no choices": frame({"choices": []}),
    "content in parts": chunk([{"type": "text", "text": " part"}]),
    "a number for text": chunk(7),
    "half a surrogate pair": escaped("\\ud83e"),
    "its other half": escaped("\\udd8a"),
    "a lone half and text": escaped("\\udd8a!"),
    "an escaped pair": escaped("\\ud83e\\udd8a"),
    "broken UTF-8": b'data: {"choices":[{"index":0,"delta":{"content":"caf\xc3"}}]}\n\n',
    "broken UTF-8 elsewhere": b'data: {"x":"\xc3","choices":[{"delta":{"content":"caf"}}]}\n\n',
    "a control character": b'data: {"choices":[{"index":0,"delta":{"content":"\x01"}}]}\n\n',
    "an error": frame(ERROR),
    "an error beside text": chunk(" oops", top_error=ERROR["error"]),
    "an empty error beside text": chunk(" fine", top_error={}),
    "an error of the key": frame({"error": {"type": "auth_error", "code": "401"}}),
    "an error by its name": b"event: error\n" + chunk(" oops"),
    "an error without a name": frame({"detail": "Invalid API key"}),
    "a warning": frame({"error": {"type": "stream_normalization_warning"}}),
    "a tool's result": frame({"type": "tool_result", "name": "f", "result": "1"}),
    "text that says what type it is": chunk(" typed", top_type="error", top_object="error"),
    "Fireworks": frame({"output": [{"index": 0, "delta": {"content": " fire"}}]}),
    "Responses": frame({"type": "response.output_text.delta", "delta": " works"}),
    "something unknown": frame({"type": "news"}),
    "no JSON": b"data: {no\n\n",
    "no JSON object": b"data: [1]\n\n",
    "no data": b"data:\n\n",
    "empty data": b"data: \n\n",
    "the end": DONE,
    "the end, padded": b"data:  [DONE] \n\n",
    "a comment": b": ping\n\n",
    "a comment before text": b": ping\n" + chunk(" late"),
    "a name": b"event: message\n" + chunk(" named"),
    "another name": b"event: delta\n" + chunk(" named"),
    "a reconnection time": b"retry: 10\n\n",
    "a reconnection time and text": b"retry: 10\n" + chunk(" again"),
    "an id": b"id: 5\n" + chunk(" five"),
    "an id behind": chunk(" five").removesuffix(b"\n") + b"id: 5\n\n",
    "an id alone": b"id: 6\n\n",
    "an id taken back": b"id:\n\n",
    "an id taken back, with text": b"id:\n" + chunk(" none"),
    "no space": chunk(" tight").replace(b"data: ", b"data:"),
    "two spaces": chunk(" wide").replace(b"data: ", b"data:  "),
    "CR LF": chunk(" crlf").replace(b"\n", b"\r\n"),
    "CR": chunk(" cr").replace(b"\n", b"\r"),
    "a CR within": chunk(" cr").replace(b', "ch', b',\r\ndata: "ch'),
    "two lines of data": chunk(" two").replace(b', "ch', b',\ndata: "ch'),
    "a byte order mark": b"\xef\xbb\xbf" + chunk(" mark"),
    "a blank line too many": chunk(" blank") + b"\n",
    "a field of another name": chunk(" more").replace(b"data: ", b"datas: "),
    "an event without its end": chunk(" cut").removesuffix(b"\n"),
}

FINISH = [chunk(None, "stop"), DONE]


@pytest.mark.parametrize("other", OTHERS.values(), ids=[*OTHERS])
@pytest.mark.parametrize("joined", [False, True], ids=["pieces", "one piece"])
def test_what_is_not_just_more_text_comes_to_the_same_amid_text(other: bytes, joined: bool) -> None:
    """And what comes behind it; in a second attempt too, which repeats the first."""
    wire = [*PLAIN[:3], other, *PLAIN[3:5], other, *PLAIN[5:]]
    first = [b"".join(wire[:6])] if joined else wire[:6]
    second = [PLAIN[0], b"".join([*wire[1:], *FINISH])] if joined else [*wire, *FINISH]
    for policy in (ResumePolicy(), ResumePolicy(on_divergence="restart")):
        both_ways([first, second], policy)


@pytest.mark.parametrize("other", OTHERS.values(), ids=[*OTHERS])
def test_what_is_not_just_more_text_comes_to_the_same_where_it_comes_first(other: bytes) -> None:
    both_ways([[other, *PLAIN[:2], *FINISH], [other, *PLAIN, *FINISH]])


# Which of it goes the short way


def test_text_behind_the_first_text_of_an_attempt_goes_the_short_way() -> None:
    with counted() as texts:
        taken([PLAIN[:4], [*PLAIN[:5], b"".join(PLAIN[5:]), *FINISH]])
    first, second = PLAIN_TEXTS[1:4], PLAIN_TEXTS[5:]
    assert texts == [*first, *second]


def test_and_nothing_else_does() -> None:
    short: set[str] = set()
    for name, other in OTHERS.items():
        with counted() as texts:
            taken([[PLAIN[0], other]])
        if texts:
            short.add(name)
    assert short == {
        "a role and text",
        "two spaces",
        "an escaped pair",
        "broken UTF-8 elsewhere",
        "text that says what type it is",
    }


@pytest.mark.parametrize(
    "before",
    [
        [],
        [chunk("", role="assistant")],
        [chunk(None, reasoning="Hm")],
        [PLAIN[0], chunk(None, reasoning="Hm")],
        [PLAIN[0], chunk(" so", reasoning="Hm")],
        [PLAIN[0], chunk(None, tool_calls=[CALL])],
        [PLAIN[0], chunk(" end", "stop")],
        [chunk(None, "stop")],
        [chunk(None, "stop"), chunk("held back")],
        [PLAIN[0], chunk(" else", index=1)],
        [PLAIN[0], escaped("\\ud83e")],
        [PLAIN[0], PLAIN[1].removesuffix(b"\n")],
        [PLAIN[0], b"event: delta\n"],
        [PLAIN[0], b"data: 1\n"],
        [b"id: 1\n" + PLAIN[0]],
        [PLAIN[0], b"id: 1\n\n"],
    ],
)
def test_nor_does_text_behind_what_bears_on_it(before: list[bytes]) -> None:
    with counted() as texts:
        taken([[*before, chunk(" more")]])
    assert texts == []


def test_nor_does_text_that_repeats_the_first_attempts_or_the_first_that_is_new() -> None:
    with counted() as texts:
        taken([[PLAIN[0]], PLAIN[:2]])
    assert texts == []


# What comes of it


def test_the_first_new_text_of_a_replay_announces_that_it_goes_on_and_counts_as_progress() -> None:
    first, second = PLAIN[:3], [b"".join(PLAIN)]
    outcome = both_ways([first, second, PLAIN])
    kinds = [type(event).__name__ for event, _, _ in outcome.given]
    assert kinds == ["Delta"] * 3 + ["Paused", "Resumed"] + ["Delta"] * 4 + ["Paused"] * 2
    assert outcome.text == "".join(PLAIN_TEXTS)
    assert outcome.told == [
        *("attempt", "accepted", "progressed"),
        *("attempt", "accepted", "progressed"),
        *("attempt", "accepted"),
    ]


def test_text_within_an_event_of_the_repeated_part_is_given_from_where_it_is_new() -> None:
    outcome = both_ways([[chunk("Once up")], [chunk("On"), chunk("ce upon"), chunk(" a")]])
    deltas = [event for event, _, _ in outcome.given if isinstance(event, Delta)]
    assert [delta.text for delta in deltas] == ["Once up", "on", " a"]
    told = [json.loads(delta.raw)["choices"][0]["delta"]["content"] for delta in deltas]
    assert told == ["Once up", "on", " a"]


def test_an_id_that_is_taken_back_is_no_place_to_go_on_from() -> None:
    """Else the server would send all behind it once more."""
    wire = [b"id: 5\n" + PLAIN[0], b"id:\n\n", PLAIN[1], PLAIN[2]]
    outcome = both_ways([wire])
    last = cast("NextRequest", outcome.requests[-1])
    assert (last.way, last.headers) == ("replay", {})


def test_text_behind_an_id_goes_on_with_it() -> None:
    wire = [b"id: 5\n" + PLAIN[0], PLAIN[1], b"id: 6\n" + PLAIN[2]]
    outcome = both_ways([wire])
    last = cast("NextRequest", outcome.requests[-1])
    assert (last.way, last.headers) == ("cursor", {"Last-Event-ID": "6"})


def test_a_choice_that_only_the_short_way_saw_would_have_begun_all_the_same() -> None:
    """A server that was to go on with the one text has another choice first."""
    wire = [chunk("x", index=1), chunk("y"), chunk(None, "stop", index=1)]
    outcome = both_ways([PLAIN[:2], wire], ResumePolicy(continue_="vllm"))
    assert any("closed before the reply was complete" in error for error in outcome.raised[1:])


def test_where_the_reader_lags_the_short_way_stops_too() -> None:
    large = [chunk("x" * 1000) for _ in range(400)]
    for pieces in (large, [b"".join(large[at : at + 50]) for at in range(0, 400, 50)]):
        outcome = both_ways([pieces])
        assert len(outcome.given) < 400


POLICIES = [
    ResumePolicy(),
    ResumePolicy(on_divergence="restart"),
    ResumePolicy(continue_="vllm"),
    ResumePolicy(continue_="prefill", echo=True, on_divergence="restart"),
    ResumePolicy(max_replay=10),
]


@st.composite
def wires(draw: st.DrawFn) -> list[list[bytes]]:
    """The pieces of up to four attempts at a reply."""
    blocks = st.sampled_from(PLAIN) | st.sampled_from(PLAIN) | st.sampled_from([*OTHERS.values()])
    script = draw(st.lists(blocks, min_size=1, max_size=12)) + draw(st.sampled_from([[], FINISH]))
    numbered = draw(st.sampled_from(["none", "none", "all", "some"]))
    if numbered != "none":
        script = [
            b"id: %d\n" % number + block if numbered == "all" or draw(st.booleans()) else block
            for number, block in enumerate(script)
        ]
    attempts: list[list[bytes]] = []
    left = 0
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.sampled_from([0, 0, left]))
        end = draw(st.integers(begin, len(script)))
        sent = script[begin:end]
        if draw(st.integers(0, 5)) == 0:
            sent = draw(st.lists(blocks, max_size=6))
        left = end
        attempts.append(list(_pieces(draw, sent)))
    return attempts


def _pieces(draw: st.DrawFn, blocks: Sequence[bytes]) -> Iterator[bytes]:
    """The blocks, most of them alone, some joined, some cut in two."""
    rest = b""
    for block in blocks:
        match draw(st.sampled_from(["alone", "alone", "alone", "join", "cut"])):
            case "alone":
                yield rest + block
                rest = b""
            case "join":
                rest += block
            case _:
                place = draw(st.integers(0, len(block)))
                if rest + block[:place]:
                    yield rest + block[:place]
                rest = block[place:]
    if rest:
        yield rest


@given(wires(), st.sampled_from(POLICIES))
def test_any_bytes_in_any_pieces_come_to_the_same(
    attempts: list[list[bytes]], policy: ResumePolicy
) -> None:
    both_ways(attempts, policy)
