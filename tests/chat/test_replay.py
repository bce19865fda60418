"""A broken reply is asked for again: what was delivered is swallowed, what differs has diverged."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from gz_trio import (
    Delta,
    Finished,
    Paused,
    Restarted,
    Resumed,
    ResumePolicy,
    StreamInterrupted,
    ToolCallDelta,
    Usage,
)
from gz_trio.testing import Cut, EarlyDone, FakeGateway, OtherText, Reset
from tests.chats import BODY, RESTART, deltas_of, open_over, tell


@pytest.mark.parametrize("resume", [None, RESTART])
async def test_the_same_answer_goes_on_where_it_stopped(
    autojump_clock: MockClock, resume: ResumePolicy | None
) -> None:
    fake = FakeGateway(tokens=40)
    for request in range(1, 6):
        fake.fault(Cut(after_bytes=request * 1300), token=0, request=request)
    async with open_over(fake, resume=resume) as gateway:
        told = await tell(gateway)
    assert told.text == told.reply.text == fake.intended(BODY)
    assert Restarted() not in told.events
    assert len(fake.requests) == 6


async def test_several_choices_each_go_on_where_they_stopped(autojump_clock: MockClock) -> None:
    body = {**BODY, "n": 3}
    fake = FakeGateway()
    fake.fault(Cut(), token=8)
    fake.fault(Reset(), token=17)
    async with open_over(fake) as gateway:
        told = await tell(gateway, body)
        again = await tell(gateway, body)
    for choice in range(3):
        first, second = (
            "".join(delta.text for delta in deltas_of(reply) if delta.choice == choice)
            for reply in (told, again)
        )
        assert first == second
        assert first
    assert told.text == fake.intended(body)


async def test_reasoning_is_matched_apart_from_text(autojump_clock: MockClock) -> None:
    whole = [Delta(reasoning="Hm"), Delta(text="Hm"), Delta(reasoning=", so"), Delta(text=", yes")]
    fake = FakeGateway(answer=lambda _, __: whole)
    for token in (1, 2, 3):
        fake.fault(Cut(), token=token)
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert told.text == "Hm, yes"
    assert "".join(delta.reasoning for delta in deltas_of(told)) == "Hm, so"


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (["Once", " upon", " the", " hills"], "other words"),
        (["Once"], "shorter"),
        (["ONCE", " upon", " a", " time"], "other from the start"),
    ],
)
async def test_a_diverged_reply_is_interrupted_with_the_exact_text_that_was_delivered(
    autojump_clock: MockClock, second: list[str], why: str
) -> None:
    first = ["Once", " upon", " a", " time"]
    fake = FakeGateway(answer=lambda _, attempt: first if attempt == 1 else second)
    fake.fault(Cut(), token=3)
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert type(told.error) is StreamInterrupted, why
    assert told.error.partial == told.text == told.reply.text == "Once upon a"
    assert told.happened == [Paused("reconnect")]
    assert not told.reply.complete
    assert len(fake.requests) == 2


@pytest.mark.parametrize("second", [["Long", " ago"], ["Once", " and"], ["Once"]])
async def test_where_it_may_restart_there_is_one_restarted_event_and_the_second_text(
    autojump_clock: MockClock, second: list[str]
) -> None:
    first = ["Once", " upon", " a", " time"]
    fake = FakeGateway(answer=lambda _, attempt: first if attempt == 1 else second)
    fake.fault(Cut(), token=3)
    async with open_over(fake, resume=RESTART) as gateway:
        told = await tell(gateway)
    assert told.error is None
    assert told.text == told.reply.text == "".join(second)
    assert told.reply.message["content"] == "".join(second)
    assert told.happened[:-1] == [Paused("reconnect"), Restarted(), Resumed()]
    assert isinstance(told.events[-1], Finished)


async def test_each_divergence_restarts_anew(autojump_clock: MockClock) -> None:
    fake = FakeGateway(answer=lambda _, attempt: [f"attempt {attempt}", ", not", " more"])
    fake.fault(Cut(), token=2, times=3)
    async with open_over(fake, resume=RESTART) as gateway:
        told = await tell(gateway)
    assert told.text == told.reply.text == "attempt 4, not more"
    assert told.events.count(Restarted()) == 3


async def test_what_is_new_on_one_choice_is_given_before_another_diverges(
    autojump_clock: MockClock,
) -> None:
    def answer(_: object, attempt: int) -> list[Delta]:
        other = "x" if attempt == 1 else "y"
        return [Delta(text="a"), Delta(text="b"), Delta(text=other, choice=1), Delta(text="c")]

    fake = FakeGateway(answer=answer)
    fake.fault(Cut(), token=3)
    async with open_over(fake, resume=RESTART) as gateway:
        told = await tell(gateway)
    restarted = told.events.index(Restarted())
    after = [event for event in told.events[restarted:] if isinstance(event, Delta)]
    assert told.text == "abc"
    assert "".join(delta.text for delta in after if delta.choice == 1) == "y"


# Where the second answer is another one

FAMILY, OTHER_FAMILY = "\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f466"


def event(content: str, choice: int = 0) -> Delta:
    """A token whose event is what `json` makes of it: ASCII, with surrogates for an emoji."""
    chunk = {"choices": [{"index": choice, "delta": {"content": content}}]}
    return Delta(text=content, choice=choice, raw=json.dumps(chunk).encode())


@dataclass(frozen=True)
class Divergence:
    """The first answer, of which `delivered` tokens come, and the second."""

    first: list[str | Delta]
    delivered: int
    second: list[str | Delta]


DIVERGENCES: dict[str, Divergence] = {
    "at the first character": Divergence(["Once", " upon"], 1, ["Twice", " upon"]),
    "at the first character, in its case": Divergence(["Once", " upon"], 1, ["once", " upon"]),
    "at the last character": Divergence(["Once", " upon", " a"], 2, ["Once", " upom", " a"]),
    "within a token, cut elsewhere": Divergence(["Once upon a"], 1, ["On", "ce u", "pin a"]),
    "in the second byte of a character": Divergence(["caf", "\u00e9", "s"], 2, ["caf\u00e8s"]),
    "in the fourth byte of an emoji": Divergence(["a ", "\U0001f98a", "!"], 2, ["a \U0001f98b!"]),
    "in the second surrogate of an emoji": Divergence(
        [event("a "), event("\U0001f98a"), event("!")], 2, [event("a \U0001f98b!")]
    ),
    "in the last code point of an emoji": Divergence([FAMILY, "."], 1, [OTHER_FAMILY, "."]),
    "by a code point that joins on": Divergence(["\U0001f469", "."], 1, ["\U0001f468", "."]),
    "in its accents' normal form": Divergence(["\u00e9", "t\u00e9"], 1, ["e\u0301", "te\u0301"]),
    "in the kind of line": Divergence(["one\n", "two"], 1, ["one\r\n", "two"]),
    "in a space at the end": Divergence(["one ", "two"], 1, ["one", "\u00a0two"]),
    "shorter": Divergence(["Once", " upon", " a"], 2, ["Once"]),
    "shorter by one character": Divergence(["Once", " upon", " a"], 2, ["Once", " upo"]),
    "without any text": Divergence(["Once", " upon"], 1, [Delta(reasoning="I had better not.")]),
    "in the reasoning": Divergence(
        [Delta(reasoning="Hm"), Delta(reasoning=", so"), "Yes", "."],
        3,
        [Delta(reasoning="Hm, no"), "Yes", "."],
    ),
    "in the reasoning, which is shorter": Divergence(
        [Delta(reasoning="Hm"), Delta(reasoning=", so"), "Yes", "."],
        3,
        [Delta(reasoning="Hm"), "Yes", "."],
    ),
    "with the reasoning as text": Divergence(
        [Delta(reasoning="Hm"), Delta(text="Yes"), "."], 2, ["Hm", "Yes", "."]
    ),
    "in the second choice alone": Divergence(
        ["same", Delta(text="one", choice=1), " here"],
        2,
        ["same", Delta(text="two", choice=1), " here"],
    ),
    "in the second choice alone, which is shorter": Divergence(
        ["same", Delta(text="one", choice=1), Delta(text=" two", choice=1), " here"],
        3,
        ["same", Delta(text="one", choice=1), " here"],
    ),
    "in the number of choices": Divergence(
        ["same", Delta(text="one", choice=1), " here"], 2, ["same", " here"]
    ),
}

each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=[*DIVERGENCES])

Content = dict[tuple[int, str], str]


def content_of(deltas: Iterable[str | Delta]) -> Content:
    """Text and reasoning by choice."""
    content: defaultdict[tuple[int, str], str] = defaultdict(str)
    for delta in deltas:
        if isinstance(delta, str):
            content[0, "text"] += delta
        else:
            content[delta.choice, "text"] += delta.text
            content[delta.choice, "reasoning"] += delta.reasoning
    return {channel: text for channel, text in content.items() if text}


def diverging(divergence: Divergence) -> FakeGateway:
    def answer(_: object, attempt: int) -> list[str | Delta]:
        return divergence.first if attempt == 1 else divergence.second

    fake = FakeGateway(answer=answer)
    fake.fault(Cut(), token=divergence.delivered, request=1)
    return fake


@each_divergence
async def test_a_reply_that_diverges_raises_by_default_with_the_partial_text(
    autojump_clock: MockClock, divergence: Divergence
) -> None:
    delivered = content_of(divergence.first[: divergence.delivered])
    second = content_of(divergence.second)
    fake = diverging(divergence)
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert type(told.error) is StreamInterrupted
    assert told.error.partial == told.reply.text == told.text
    got = content_of(deltas_of(told))
    for channel, text in delivered.items():
        if second.get(channel, "").startswith(text):
            # It goes on alike here, and what is new may be given before it diverges elsewhere.
            assert got[channel].startswith(text)
            assert second[channel].startswith(got[channel])
        else:
            assert got[channel] == text
    assert [type(event) for event in told.happened if event != Resumed()] == [Paused]
    assert (len(fake.requests), told.reply.complete) == (2, False)


@each_divergence
async def test_a_reply_that_diverges_restarts_once_where_it_may_and_has_the_second_text(
    autojump_clock: MockClock, divergence: Divergence
) -> None:
    second = content_of(divergence.second)
    fake = diverging(divergence)
    async with open_over(fake, resume=RESTART) as gateway:
        told = await tell(gateway)
    assert told.error is None
    assert told.events.count(Restarted()) == 1
    anew = told.events[told.events.index(Restarted()) + 1 :]
    assert content_of(event for event in anew if isinstance(event, Delta)) == second
    assert told.reply.text == second.get((0, "text"), "")
    assert (told.reply.message["content"] or "") == told.reply.text
    assert isinstance(told.events[-1], Finished)
    assert (len(fake.requests), told.reply.complete) == (2, True)


@pytest.mark.parametrize("resume", [None, RESTART])
async def test_new_text_of_a_second_answer_counts_as_delivered_when_a_third_diverges(
    autojump_clock: MockClock, resume: ResumePolicy | None
) -> None:
    answers = [["Once", " upon", " a"], ["Once", " upon", " a", " time"], ["Once", " upon", " it"]]
    fake = FakeGateway(answer=lambda _, attempt: answers[min(attempt, 3) - 1])
    fake.fault(Cut(), token=2, request=1)
    fake.fault(Cut(), token=3, request=2)
    async with open_over(fake, resume=resume) as gateway:
        told = await tell(gateway)
    if resume is None:
        assert type(told.error) is StreamInterrupted
        assert told.error.partial == told.text == "Once upon a"
    else:
        assert told.events.count(Restarted()) == 1
        assert told.text == told.reply.text == "Once upon it"


async def test_a_second_answer_that_breaks_too_is_what_the_third_is_matched_against(
    autojump_clock: MockClock,
) -> None:
    """One restart: the third answer is the second."""
    first, second = ["Once", " upon", " a", " time"], ["Long", " ago", ",", " far"]
    fake = FakeGateway(answer=lambda _, attempt: first if attempt == 1 else second)
    fake.fault(Cut(), token=2, request=1)
    fake.fault(Cut(), token=3, request=2)
    async with open_over(fake, resume=RESTART) as gateway:
        told = await tell(gateway)
    assert told.error is None
    assert told.events.count(Restarted()) == 1
    assert told.text == told.reply.text == "Long ago, far"
    assert len(fake.requests) == 3


@pytest.mark.parametrize("cut_second", range(6))
@pytest.mark.parametrize("text", ["a \U0001f98a\U0001f98b b", f"{FAMILY}{OTHER_FAMILY}", "e\u0301"])
async def test_the_same_text_has_not_diverged_however_its_characters_are_cut_into_events(
    autojump_clock: MockClock, text: str, cut_second: int
) -> None:
    """Within an emoji of several code points too, and with surrogates in the JSON or without."""
    whole, pieces = [event(text), "."], [*text, "."]
    in_two = [text[:cut_second], event(text[cut_second:]), "."]
    answers = [pieces, [part for part in in_two if part], whole]
    fake = FakeGateway(answer=lambda _, attempt: answers[attempt - 1])
    fake.fault(Cut(), token=min(cut_second, len(text) - 1), request=1)
    fake.fault(Cut(), token=1, request=2)
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert (told.error, told.text, told.reply.text) == (None, f"{text}.", f"{text}.")


HIGH, LOW = event("\ud83e"), event("\udd8a")


@pytest.mark.parametrize(
    ("first", "delivered", "second"),
    [
        ([HIGH, LOW, "."], 1, [HIGH, LOW, "."]),
        ([HIGH, LOW, "."], 1, [event("\U0001f98a"), "."]),
        ([HIGH, LOW, "."], 2, [event("\U0001f98a"), "."]),
        ([event("\U0001f98a"), "."], 1, [HIGH, LOW, "."]),
    ],
)
async def test_the_same_emoji_has_not_diverged_where_an_event_holds_half_of_it(
    autojump_clock: MockClock, first: list[str | Delta], delivered: int, second: list[str | Delta]
) -> None:
    """One surrogate each, as engines send it whose tokens end within a character."""
    fake = diverging(Divergence(first, delivered, second))
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert (told.error, told.text, told.reply.text) == (None, "\U0001f98a.", "\U0001f98a.")


# Tool calls


def tool_call(*arguments: str, call_id: str, name: str = "weather") -> list[Delta]:
    first, *rest = arguments
    pieces = [
        ToolCallDelta(0, call_id, name, first),
        *(ToolCallDelta(0, arguments=r) for r in rest),
    ]
    return [Delta(tool_calls=(piece,)) for piece in pieces]


async def test_a_tool_call_is_handed_out_once_however_often_it_is_replayed(
    autojump_clock: MockClock,
) -> None:
    def answer(_: object, attempt: int) -> list[Delta]:
        return tool_call('{"ci', 'ty": ', '"Bonn"}', call_id=f"call_{attempt}")

    fake = FakeGateway(answer=answer)
    for token in (1, 2, 3):
        fake.fault(Cut(), token=token)
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert told.reply.message["tool_calls"] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Bonn"}'},
        }
    ]
    pieces = [piece for delta in deltas_of(told) for piece in delta.tool_calls]
    assert "".join(piece.arguments for piece in pieces) == '{"city": "Bonn"}'
    assert [piece.id for piece in pieces if piece.id] == ["call_1"]
    assert (told.reply.finish_reason, len(fake.requests)) == ("tool_calls", 4)


@pytest.mark.parametrize("second", [["I do not know."], tool_call("{}", call_id="call_2")])
async def test_a_tool_call_that_was_handed_out_is_never_replayed_silently(
    autojump_clock: MockClock, second: list[str] | list[Delta]
) -> None:
    """Somebody may have acted on it, so not even a restart takes it back."""
    first = tool_call('{"city"', ': "Bonn"}', call_id="call_1")
    fake = FakeGateway(answer=lambda _, attempt: first if attempt == 1 else second)
    fake.fault(Cut(), token=2)
    async with open_over(fake, resume=RESTART) as gateway:
        told = await tell(gateway)
    assert type(told.error) is StreamInterrupted
    assert Restarted() not in told.events


@pytest.mark.parametrize(
    ("delivered", "second"),
    [
        (1, ["I will not look."]),
        (2, ["Let me look.", *tool_call('{"city', '": "Bonn"}', call_id="2")]),
        (2, ["I look.", *tool_call('{"city', '": "Ulm"}', call_id="2")]),
        (3, ["I look.", *tool_call('{"town', '": "Bonn"}', call_id="2")]),
        (3, ["I look.", *tool_call('{"city', '": "Bonn"}', call_id="2", name="map")]),
        (3, ["I look.", *tool_call('{"city"', call_id="2")]),
        (3, ["I look."]),
    ],
)
@pytest.mark.parametrize("resume", [None, RESTART])
async def test_a_reply_that_diverges_takes_no_tool_call_back_and_hands_none_out_twice(
    autojump_clock: MockClock,
    resume: ResumePolicy | None,
    delivered: int,
    second: list[str | Delta],
) -> None:
    """Where one was begun, there is no restart: somebody may have acted on it."""
    calls = tool_call('{"city', '": "Bonn"}', call_id="1")
    first: list[str | Delta] = ["I look.", *calls, "There."]
    fake = FakeGateway(answer=lambda _, attempt: first if attempt == 1 else second)
    fake.fault(Cut(), token=delivered, request=1)
    async with open_over(fake, resume=resume) as gateway:
        told = await tell(gateway)
    ids = [piece.id for delta in deltas_of(told) for piece in delta.tool_calls if piece.id]
    if delivered == 1:  # text alone
        assert isinstance(told.error, StreamInterrupted) is (resume is None)
        assert told.events.count(Restarted()) == (resume is RESTART)
        return
    assert Restarted() not in told.events
    assert ids == ["1"]
    assert told.error is not None or told.reply.message["tool_calls"]


# What a reply tells in the end


async def test_usage_comes_at_the_end_and_with_the_last_event(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=5)
    fake.fault(Cut(), token=3)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        assert (reply.usage, reply.finish_reason, reply.complete) == (None, None, False)
        events = [event async for event in reply.events()]
    assert isinstance(reply.usage, Usage)
    assert reply.usage.completion_tokens == 5
    assert events[-1] == Finished("stop", reply.usage)
    assert reply.finish_reason == "stop"
    assert reply.message == {"role": "assistant", "content": fake.intended(BODY)}
    assert reply.complete


async def test_without_include_usage_the_usage_is_unknown(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    body = {key: value for key, value in BODY.items() if key != "stream_options"}
    async with open_over(fake) as gateway:
        told = await tell(gateway, body)
    assert told.reply.usage is None
    assert told.events[-1] == Finished("stop", None)


async def test_the_last_usage_wins(autojump_clock: MockClock) -> None:
    def chunk(tokens: int) -> Delta:
        data = b'{"choices":[{"index":0,"delta":{"content":"x"}}],"usage":{"total_tokens":%d}}'
        return Delta(text="x", raw=data % tokens)

    fake = FakeGateway(answer=lambda _, __: [chunk(1), chunk(2), chunk(3)])
    fake.fault(Cut(), token=2)
    body = {key: value for key, value in BODY.items() if key != "stream_options"}
    async with open_over(fake) as gateway:
        told = await tell(gateway, body)
    assert told.text == "xxx"
    assert told.reply.usage is not None
    assert told.reply.usage.total_tokens == 3


async def test_the_finish_reason_is_the_servers(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        told = await tell(gateway, {**BODY, "max_tokens": 2})
    assert told.reply.finish_reason == "length"
    assert isinstance(told.events[-1], Finished)
    assert told.events[-1].finish_reason == "length"


async def test_reasoning_details_are_those_of_one_attempt(autojump_clock: MockClock) -> None:
    def answer(_: object, attempt: int) -> list[Delta]:
        def part(text: str, signature: str | None = None) -> Delta:
            detail: dict[str, object] = {
                "type": "reasoning.text",
                "text": text,
                "signature": signature,
            }
            return Delta(reasoning=text, reasoning_details=(detail,))

        return [part("Hm, "), part("so", f"signed by {attempt}"), Delta(text="Yes")]

    fake = FakeGateway(answer=answer)
    fake.fault(Cut(), token=2)
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert told.reply.message == {
        "role": "assistant",
        "content": "Yes",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "Hm, so", "signature": "signed by 2"}
        ],
    }


async def test_attempts_tell_of_every_request(autojump_clock: MockClock) -> None:
    fake = FakeGateway(key="sk-2", token_interval=1.0, tokens=5)
    fake.fault(Cut(), token=3)
    async with open_over(fake, key="sk-1") as gateway:
        told = await tell(gateway)
    rejected, cut, whole = told.reply.attempts
    assert [type(a.cause).__name__ for a in told.reply.attempts] == [
        "AuthenticationError",
        "APIConnectionError",
        "NoneType",
    ]
    assert [a.accepted for a in told.reply.attempts] == [False, True, True]
    assert (rejected.generation, cut.generation, whole.generation) == (1, 2, 2)
    assert rejected.tokens == 0
    assert cut.tokens >= 3
    assert whole.tokens >= 5  # repeated ones included
    for earlier, later in pairwise(told.reply.attempts):
        assert earlier.ended is not None
        assert earlier.started <= earlier.ended <= later.started


async def test_timing_tells_when_the_first_token_came_and_how_long_it_paused(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-2", token_interval=1.0, tokens=5, auth_latency=7.0)
    fake.fault(Cut(), token=3)
    async with open_over(fake, key="sk-1") as gateway:
        await trio.sleep(100)
        told = await tell(gateway)
    timing = told.reply.timing
    assert timing.started == 100
    assert timing.first_token == 7  # the refresh
    assert timing.paused == 7 + 3  # and the replay of three tokens, until a new one came
    # Three tokens at 7, 8, 9 and the cut at 10; five again.
    assert timing.ended == told.seconds == 7 + 3 + 4


async def test_a_reply_that_was_cut_after_its_last_token_ends_without_new_text(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(EarlyDone(done=False), token=12)
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert (told.error, told.text) == (None, fake.intended(BODY))
    assert told.reply.finish_reason == "stop"


async def test_a_mark_in_the_text_that_was_not_delivered_yet_cannot_be_told(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), token=5)
    fake.fault(OtherText(), request=2, token=5)
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert told.error is None
    assert "≠" in told.text


# Session.ask


async def test_ask_takes_the_second_answer_where_it_differs(autojump_clock: MockClock) -> None:
    fake = FakeGateway(answer=lambda _, attempt: [f"attempt {attempt}", ", not", " more"])
    fake.fault(Cut(), token=2)
    async with open_over(fake) as gateway, gateway.open_session("fake-model") as session:
        assert await session.ask("Tell me a story.") == "attempt 2, not more"
    assert session.messages[-1] == {"role": "assistant", "content": "attempt 2, not more"}
