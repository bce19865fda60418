"""The fake gateway's Messages API, held against the Anthropic SDK: its types, and its client."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, cast

import anthropic
import httpx2
import pytest
import trio
import trio.testing
from anthropic.types import (
    ContentBlock,
    ErrorResponse,
    Message,
    MessageParam,
    RawContentBlockDeltaEvent,
    RawContentBlockStartEvent,
    RawContentBlockStopEvent,
    RawMessageDeltaEvent,
    RawMessageStartEvent,
    RawMessageStopEvent,
    RawMessageStreamEvent,
)
from pydantic import BaseModel, TypeAdapter

from gz_trio._protocol.events import Delta, ToolCallDelta
from gz_trio.testing import Answer as Model
from gz_trio.testing import (
    Comment,
    Cut,
    Drip,
    EarlyDone,
    EmptyStream,
    ErrorFrame,
    FakeGateway,
    Fault,
    Insert,
    OtherText,
    Reset,
    Stall,
    Status,
    Warning_,
)
from tests.testing.fake_gateway_wire import JSON, Answer, Connect, in_memory
from tests.testing.sdk_models import frames, says, unknown_fields

PATH: Final = "/v1/messages"
VERSION = {"anthropic-version": "2023-06-01"}
QUESTION: MessageParam = {"role": "user", "content": "Hello"}
EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
# The SDK reads a stream by generators that it leaves, and httpx's, to the garbage collector.
leaves_generators = pytest.mark.filterwarnings(
    "ignore:Async generator '(anthropic|httpx2|httpcore2):ResourceWarning"
)


def call(index: int, arguments: str, name: str | None = None) -> Delta:
    call_id = None if name is None else f"toolu_{name}"
    return Delta(tool_calls=(ToolCallDelta(index, call_id, name, arguments),))


rich = says(
    Delta(reasoning="Let me "),
    Delta(reasoning="look."),
    "The ",
    "weather:\n",
    call(0, '{"place":', "weather"),
    call(0, '"Zürich"}'),
    call(1, "", "time"),
    "and ",
    Delta(reasoning="Is that all?"),
    "so on",
)


def question(
    sent: str | Sequence[Mapping[str, object]] = "Hello", *, max_tokens: int = 100, **more: object
) -> JSON:
    messages = [{"role": "user", "content": sent}] if isinstance(sent, str) else sent
    body: JSON = {"model": "fake-model", "max_tokens": max_tokens, "messages": messages}
    return {**body, "stream": True, **more}


async def ask(
    gateway: FakeGateway,
    body: JSON | None = None,
    *,
    connect: Connect = in_memory,
    key: str | None = None,
    headers: Mapping[str, str] = VERSION,
) -> Answer:
    async with connect(gateway) as wire:
        return await wire.ask(body or question(), key or gateway.key, path=PATH, headers=headers)


def parts(frame: bytes) -> tuple[str, str]:
    """The name and the data of a frame that has both."""
    name, data = frame.decode().removesuffix("\n\n").split("\n")
    assert name.startswith("event: ")
    assert data.startswith("data: ")
    return name.removeprefix("event: "), data.removeprefix("data: ")


def check(model: BaseModel, data: str) -> None:
    """Nothing was made to fit, nor is there anything that the SDK has no name for."""
    dumped = model.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings="error")
    assert dumped == json.loads(data)
    assert unknown_fields(model) == set()


def event_of(frame: bytes) -> RawMessageStreamEvent:
    """The event that the SDK makes of a frame, if it is one to the letter."""
    name, data = parts(frame)
    event = EVENT.validate_json(data, strict=True)
    assert name == event.type
    check(event, data)
    return event


def events(answer: Answer) -> list[RawMessageStreamEvent]:
    """All but the pings, for which the SDK has no type: it reads over them."""
    found = frames(answer)
    pings = [frame for frame in found if parts(frame)[0] == "ping"]
    assert all(json.loads(parts(ping)[1]) == {"type": "ping"} for ping in pings)
    return [event_of(frame) for frame in found if frame not in pings]


def error_of(answer: Answer) -> ErrorResponse:
    """The error that the last frame of a stream is, if it is one to the letter."""
    name, data = parts(frames(answer)[-1])
    assert name == "error"
    error = ErrorResponse.model_validate_json(data, strict=True)
    check(error, data)
    return error


def text(answer: Answer) -> str:
    """The text in a stream, whatever else is in it."""
    deltas = [cast("JSON", chunk.get("delta", {})) for chunk in answer.chunks]
    return "".join(str(delta.get("text", "")) for delta in deltas)


def whole_of(answer: Answer) -> Message:
    """The message of an answer in one piece, if it is one to the letter."""
    assert answer.status == 200, answer.body
    message = Message.model_validate_json(answer.body, strict=True)
    check(message, answer.body.decode())
    return message


def gather(stream: Sequence[RawMessageStreamEvent]) -> Message:
    """The message that a stream makes up, by the order that Anthropic documents."""
    start, *between, end, stop = stream
    assert isinstance(start, RawMessageStartEvent)
    assert isinstance(end, RawMessageDeltaEvent)
    assert isinstance(stop, RawMessageStopEvent)
    message = start.message.model_copy(deep=True)
    assert (message.content, message.stop_reason) == ([], None)
    blocks: list[ContentBlock] = []
    arguments = ""
    is_open = False
    for event in between:
        if isinstance(event, RawContentBlockStartEvent):
            assert (event.index, is_open) == (len(blocks), False)
            blocks.append(event.content_block.model_copy(deep=True))
            arguments, is_open = "", True
            continue
        assert isinstance(event, RawContentBlockDeltaEvent | RawContentBlockStopEvent)
        assert (event.index, is_open) == (len(blocks) - 1, True)
        block = blocks[-1]
        if isinstance(event, RawContentBlockStopEvent):
            is_open = False
            if block.type == "tool_use":
                assert block.input == {}
                block.input = json.loads(arguments or "{}")
        elif event.delta.type == "text_delta":
            assert block.type == "text"
            block.text += event.delta.text
        elif event.delta.type == "thinking_delta":
            assert block.type == "thinking"
            assert block.signature == ""
            block.thinking += event.delta.thinking
        elif event.delta.type == "signature_delta":
            assert block.type == "thinking"
            block.signature = event.delta.signature
        else:
            assert event.delta.type == "input_json_delta"
            assert block.type == "tool_use"
            arguments += event.delta.partial_json
    assert not is_open
    message.content = blocks
    message.stop_reason = end.delta.stop_reason
    message.stop_sequence = end.delta.stop_sequence
    message.usage.output_tokens = end.usage.output_tokens
    return message


async def message_of(gateway: FakeGateway, body: JSON) -> Message:
    """The answer, streamed or whole as the body asks."""
    answer = await ask(gateway, body)
    return gather(events(answer)) if body["stream"] is True else whole_of(answer)


@dataclass
class Case:
    """What the model says to which question, and why it stops."""

    model: Model | None = None
    stop_reason: str = "end_turn"
    body: JSON = field(default_factory=question)

    async def stream(self) -> Answer:
        return await ask(FakeGateway(answer=self.model), self.body)


CASES = {
    "text": Case(),
    "nothing": Case(says()),
    "thinking": Case(says(Delta(reasoning="Hm"))),
    "a tool call": Case(says(call(0, "{}", "f")), "tool_use"),
    "a tool call without arguments": Case(says(call(0, "", "f")), "tool_use"),
    "all of it": Case(rich, "tool_use"),
    "the request's limit": Case(None, "max_tokens", question(max_tokens=3)),
    "its limit among thoughts": Case(rich, "max_tokens", question(max_tokens=1)),
    "much in the request": Case(
        None, body=question(system="Be brief", temperature=0.5, metadata={"user_id": "a"})
    ),
    "stop": Case(says("a", Delta(text="b", finish_reason="stop"))),
    "tool_calls": Case(says(call(0, "{}", "f"), Delta(finish_reason="tool_calls")), "tool_use"),
    "length": Case(says("a", Delta(text="b", finish_reason="length")), "max_tokens"),
    "content_filter": Case(says("a", Delta(finish_reason="content_filter")), "refusal"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
class TestAnyAnswer:
    """Whatever the model says and however it ends."""

    async def test_each_frame_is_an_event_by_the_anthropic_sdk(self, case: Case) -> None:
        stream = await case.stream()
        assert (stream.status, stream.end) == (200, "complete")
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert len(events(stream)) >= 3
        assert "[DONE]" not in stream.data  # that end is of chat completions alone

    async def test_the_blocks_are_opened_filled_and_closed_one_by_one(self, case: Case) -> None:
        message = gather(events(await case.stream()))
        for block in message.content:
            assert block.type != "thinking" or block.signature
            assert block.type != "tool_use" or (block.id and block.name)

    async def test_the_end_says_why(self, case: Case) -> None:
        message = gather(events(await case.stream()))
        assert (message.stop_reason, message.stop_sequence) == (case.stop_reason, None)

    async def test_the_answer_in_one_piece_is_the_same(self, case: Case) -> None:
        whole = await ask(FakeGateway(answer=case.model), {**case.body, "stream": False})
        assert whole.headers["content-type"] == "application/json"
        assert whole_of(whole).stop_reason == case.stop_reason
        assert whole_of(whole).content == gather(events(await case.stream())).content
        assert whole_of(whole).usage == gather(events(await case.stream())).usage


class TestWhatAnAnswerHolds:
    """Blocks, usage, and the text that was meant."""

    async def test_a_stream_of_text(self, connect: Connect) -> None:
        gateway = FakeGateway(tokens=2)
        answer = await ask(gateway, connect=connect)
        assert [parts(frame)[0] for frame in frames(answer)] == [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert text(answer) == gateway.intended(question())
        seen = gateway.requests[0]
        assert (seen.path, seen.status, seen.tokens, seen.complete) == (PATH, 200, 2, True)

    @pytest.mark.parametrize("stream", [True, False])
    async def test_thinking_text_and_tool_calls_are_blocks_in_their_order(
        self, stream: bool
    ) -> None:
        message = await message_of(FakeGateway(answer=rich), question(stream=stream))
        blocks = [block.to_dict(mode="json") for block in message.content]
        signatures = [block.pop("signature") for block in blocks if "signature" in block]
        assert blocks == [
            {"type": "thinking", "thinking": "Let me look."},
            {"type": "text", "text": "The weather:\n"},
            {
                "type": "tool_use",
                "id": "toolu_weather",
                "name": "weather",
                "input": {"place": "Zürich"},
            },
            {"type": "tool_use", "id": "toolu_time", "name": "time", "input": {}},
            {"type": "text", "text": "and "},
            {"type": "thinking", "thinking": "Is that all?"},
            {"type": "text", "text": "so on"},
        ]
        assert len(set(signatures)) == 2

    async def test_a_tool_call_without_an_id_gets_one_of_its_own(self) -> None:
        gateway = FakeGateway(
            answer=says(
                Delta(tool_calls=(ToolCallDelta(0, None, "f", "{}"),)),
                Delta(tool_calls=(ToolCallDelta(1, None, "f", "{}"),)),
            )
        )
        message = await message_of(gateway, question())
        assert len({block.id for block in message.content if block.type == "tool_use"}) == 2

    @pytest.mark.parametrize("stream", [True, False])
    async def test_tool_calls_whose_pieces_interleave_are_whole(self, stream: bool) -> None:
        gateway = FakeGateway(
            answer=says(call(0, '{"a"', "f"), call(1, '{"b"', "g"), call(0, ":1}"), call(1, ":2}"))
        )
        message = await message_of(gateway, question(stream=stream))
        inputs = [block.input for block in message.content if block.type == "tool_use"]
        assert inputs == [{"a": 1}, {"b": 2}]

    async def test_a_tool_call_that_the_limit_cut_is_in_an_answer_in_one_piece_too(self) -> None:
        gateway = FakeGateway(answer=says(call(0, '{"place":', "weather"), call(0, '"Zürich"}')))
        message = await message_of(gateway, question(max_tokens=1, stream=False))
        assert message.stop_reason == "max_tokens"
        assert [block.type for block in message.content] == ["tool_use"]

    @pytest.mark.parametrize("stream", [True, False])
    async def test_usage_counts_the_words_that_were_sent_and_the_tokens(self, stream: bool) -> None:
        gateway = FakeGateway(tokens=4)
        body = question("three words here", system="Be brief", stream=stream)
        usage = (await message_of(gateway, body)).usage
        assert (usage.input_tokens, usage.output_tokens) == (5, 4)

    async def test_usage_grows_from_the_first_event_to_the_last(self) -> None:
        start, *_, end, _ = events(await ask(FakeGateway(tokens=4)))
        assert isinstance(start, RawMessageStartEvent)
        assert isinstance(end, RawMessageDeltaEvent)
        assert (start.message.usage.input_tokens, start.message.usage.output_tokens) == (1, 1)
        assert end.usage.output_tokens == 4

    async def test_max_tokens_limits_the_answer(self) -> None:
        gateway = FakeGateway(tokens=5)
        answer = await ask(gateway, question(max_tokens=2))
        assert text(answer) == gateway.intended(question(max_tokens=2))
        assert gateway.intended(question()).startswith(text(answer))
        assert gateway.requests[0].tokens == 2

    def test_the_text_follows_from_the_messages_and_the_system(self) -> None:
        gateway = FakeGateway()
        texts = [
            gateway.intended(body)
            for body in (
                question(),
                question("Other"),
                question(system="Be brief"),
                question([QUESTION, {"role": "assistant", "content": "Hi"}, QUESTION]),
            )
        ]
        assert len(set(texts)) == 4
        assert gateway.intended(question(stream=False, temperature=1)) == texts[0]

    @pytest.mark.parametrize("event_ids", [True, "ignored"])
    async def test_no_event_has_an_id_of_the_event_stream(
        self, event_ids: Literal[True, "ignored"]
    ) -> None:
        answer = await ask(FakeGateway(event_ids=event_ids))
        assert len(events(answer)) > 3
        assert not any(frame.startswith(b"id:") for frame in frames(answer))


class TestARequestThatCannotBeServed:
    """Refused before there is any answer."""

    @pytest.mark.parametrize(
        "body",
        [
            {"model": "fake-model", "max_tokens": 1},
            {"model": "fake-model", "messages": [QUESTION]},
            {"model": "fake-model", "messages": "Hello", "max_tokens": 1},
            {"model": "fake-model", "messages": [QUESTION], "max_tokens": "1"},
        ],
    )
    async def test_without_messages_and_max_tokens_is_a_bad_one(self, body: JSON) -> None:
        answer = await ask(FakeGateway(), body)
        assert answer.status == 400
        error = ErrorResponse.model_validate_json(answer.body, strict=True)
        assert (error.error.type, error.request_id) == ("invalid_request_error", "req_1")

    async def test_without_a_version_of_the_api_is_a_bad_one(self) -> None:
        gateway = FakeGateway()
        answer = await ask(gateway, headers={})
        assert answer.status == 400
        error = ErrorResponse.model_validate_json(answer.body, strict=True)
        assert "anthropic-version" in error.error.message
        assert gateway.requests[0].tokens == 0

    async def test_without_a_body_is_a_bad_one(self) -> None:
        gateway = FakeGateway()
        async with in_memory(gateway) as wire:
            answer = await wire.ask(None, gateway.key, path=PATH, headers=VERSION)
        assert answer.status == 400

    async def test_for_an_unknown_model_is_not_found(self) -> None:
        assert (await ask(FakeGateway(), question(model="other"))).status == 404
        assert (await ask(FakeGateway(models=None), question(model="other"))).status == 200

    async def test_with_another_key_is_rejected(self) -> None:
        gateway = FakeGateway()
        assert (await ask(gateway, key="wrong")).status == 401
        assert (gateway.rejected, gateway.requests[0].tokens) == (1, 0)

    async def test_may_have_its_key_in_the_header_that_anthropic_names(self) -> None:
        gateway = FakeGateway()
        async with in_memory(gateway) as wire:
            headers = {**VERSION, "x-api-key": gateway.key}
            answer = await wire.ask(question(), path=PATH, headers=headers)
        assert answer.status == 200
        assert gateway.requests[0].headers["x-api-key"] == "[secret]"

    @pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
    async def test_by_the_wrong_method_is_refused(self, method: str) -> None:
        gateway = FakeGateway()
        async with in_memory(gateway) as wire:
            answer = await wire.ask(None, gateway.key, method=method, path=PATH, headers=VERSION)
        assert answer.status == 405


class TestAThoughtThatComesBack:
    """Thinking blocks are signed, and come back as they were."""

    async def answered(self, **changes: str) -> tuple[int | None, int]:
        """The status of a second turn with a changed thought, and the tokens made for it."""
        gateway = FakeGateway(answer=rich)
        first = await message_of(gateway, question())
        content = [block.to_dict(mode="json") for block in first.content]
        content[0] |= changes
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": "sun"}
            for block in content
            if block["type"] == "tool_use"
        ]
        assistant = {"role": "assistant", "content": content}
        answer = await ask(
            gateway, question([QUESTION, assistant, {"role": "user", "content": results}])
        )
        if answer.status != 200:
            error = ErrorResponse.model_validate_json(answer.body, strict=True)
            assert error.error.type == "invalid_request_error"
        return answer.status, gateway.requests[-1].tokens

    async def test_unchanged_is_taken(self) -> None:
        assert await self.answered() == (200, 10)

    @pytest.mark.parametrize(
        "changes", [{"signature": "0" * 32}, {"signature": ""}, {"thinking": "Let me see."}]
    )
    async def test_changed_is_refused(self, changes: dict[str, str]) -> None:
        assert await self.answered(**changes) == (400, 0)


class TestAPartialAnswer:
    """`continues="prefill"`, as Anthropic's older models go on from one."""

    @pytest.mark.parametrize("stream", [True, False])
    async def test_is_gone_on_from(self, stream: bool) -> None:
        gateway = FakeGateway(answer=says("one ", "two ", "three"), continues="prefill")
        parts = [{"type": "text", "text": "one tw"}]
        for content in ("one tw", parts):
            body = question([QUESTION, {"role": "assistant", "content": content}], stream=stream)
            (block,) = (await message_of(gateway, body)).content
            assert block.type == "text"
            assert block.text == "o three"
            assert gateway.intended(body) == "one two three"

    async def test_that_ends_with_whitespace_is_refused(self) -> None:
        gateway = FakeGateway(continues="prefill")
        answer = await ask(gateway, question([QUESTION, {"role": "assistant", "content": "one "}]))
        assert answer.status == 400
        error = ErrorResponse.model_validate_json(answer.body, strict=True)
        assert error.error.type == "invalid_request_error"


# Gatewayz's name of an error, and what the Messages API calls it.
ERROR_TYPES = {
    "rate_limit_error": "rate_limit_error",
    "capacity_error": "overloaded_error",
    "provider_error": "api_error",
    "timeout_error": "timeout_error",
    "not_found_error": "not_found_error",
    "auth_error": "authentication_error",
    "stream_error": "api_error",
    "stream_timeout": "timeout_error",
    "empty_stream_error": "api_error",
    "plan_limit_exceeded": "billing_error",
    "overloaded_error": "overloaded_error",
    "permission_error": "permission_error",
}


class TestAFault:
    """What goes wrong in a stream of the Messages API."""

    @pytest.mark.parametrize(("fault", "end"), [(Cut, "cut"), (Reset, "reset")])
    async def test_that_breaks_the_connection_lets_the_events_before_it_arrive(
        self, fault: type[Cut | Reset], end: str, connect: Connect
    ) -> None:
        gateway = FakeGateway(tokens=5)
        gateway.fault(fault(), token=2, path=PATH)
        answer = await ask(gateway, connect=connect)
        assert (answer.status, answer.end) == (200, end)
        assert [event.type for event in events(answer)] == [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
        ]
        assert gateway.intended(question()).startswith(text(answer))
        assert (gateway.requests[0].tokens, gateway.requests[0].complete) == (2, False)

    @pytest.mark.parametrize(("fault", "end"), [(Cut(10), "cut"), (Reset(10), "reset")])
    @pytest.mark.parametrize("stream", [True, False])
    async def test_that_breaks_the_connection_breaks_a_whole_answer_too(
        self, fault: Fault, end: str, stream: bool
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, path=PATH)
        answer = await ask(gateway, question(stream=stream))
        assert (answer.status, answer.end, len(answer.body)) == (200, end, 10)

    @pytest.mark.parametrize("token", [None, 0, 3])
    async def test_that_stalls_is_over_some_day(
        self, token: int | None, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(5), token=token, path=PATH)
        answer = await ask(gateway)
        assert trio.current_time() == 5
        assert text(answer) == gateway.intended(question())

    async def test_that_lets_it_drip_loses_nothing(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Drip(), path=PATH)
        assert text(await ask(gateway)) == gateway.intended(question())

    @pytest.mark.parametrize(("type", "error_type"), ERROR_TYPES.items())
    async def test_that_is_an_error_is_the_last_event_and_one_by_the_anthropic_sdk(
        self, type: str, error_type: str
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(ErrorFrame(type), token=3, path=PATH)
        answer = await ask(gateway)
        error = error_of(answer)
        assert error.error.type == error_type
        assert error.error.message
        assert error.request_id == answer.headers["x-request-id"]
        assert (answer.status, answer.end) == (200, "complete")
        assert [event_of(frame).type for frame in frames(answer)[2:-1]] == [
            "content_block_start",
            *["content_block_delta"] * 3,
        ]
        seen = gateway.requests[0]
        assert (seen.tokens, seen.complete, seen.faults) == (3, False, [ErrorFrame(type)])
        assert gateway.auth_errors == (type == "auth_error")

    async def test_that_is_an_error_says_what_it_is_told(self) -> None:
        gateway = FakeGateway()
        gateway.fault(ErrorFrame("overloaded_error", "Overloaded"), path=PATH)
        gateway.fault(ErrorFrame("unheard_of"), path=PATH)
        answer = await ask(gateway)
        assert len(frames(answer)) == 1
        assert error_of(answer).error.message == "Overloaded"
        (unheard_of,) = (await ask(gateway)).chunks
        assert cast("JSON", unheard_of["error"])["type"] == "unheard_of"

    async def test_that_is_an_error_of_any_data_is_still_one_by_its_name(self) -> None:
        gateway = FakeGateway()
        data = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        gateway.fault(ErrorFrame(data=data), token=3, path=PATH)
        assert error_of(await ask(gateway)).error.message == "Overloaded"

    @pytest.mark.parametrize(
        ("finish_reason", "stop_reason"),
        [
            ("stop", "end_turn"),
            ("length", "max_tokens"),
            ("tool_calls", "tool_use"),
            ("content_filter", "refusal"),
        ],
    )
    async def test_that_ends_the_stream_early_ends_it_in_good_order(
        self, finish_reason: str, stop_reason: str
    ) -> None:
        gateway = FakeGateway(tokens=5)
        gateway.fault(EarlyDone(finish_reason), token=2, path=PATH)
        answer = await ask(gateway)
        assert (answer.status, answer.end) == (200, "complete")
        message = gather(events(answer))
        assert (message.stop_reason, message.usage.output_tokens) == (stop_reason, 2)
        assert 0 < len(text(answer)) < len(gateway.intended(question()))
        assert not gateway.requests[0].complete

    async def test_that_ends_the_stream_early_may_leave_its_end_out(self) -> None:
        gateway = FakeGateway(tokens=5)
        gateway.fault(EarlyDone(), token=2, path=PATH)
        answer = await ask(gateway)
        assert (answer.status, answer.end) == (200, "complete")
        assert events(answer)[-1].type == "content_block_delta"

    async def test_that_empties_the_stream_leaves_nothing(self) -> None:
        gateway = FakeGateway()
        gateway.fault(EmptyStream(), path=PATH)
        answer = await ask(gateway)
        assert (answer.status, answer.end, answer.body) == (200, "complete", b"")

    @pytest.mark.parametrize("stream", [True, False])
    async def test_that_changes_the_text_lies(self, stream: bool) -> None:
        gateway = FakeGateway(answer=says("a", "b"))
        gateway.fault(OtherText("X"), path=PATH)
        told: list[JSON] = []
        for _ in range(2):
            (block,) = (await message_of(gateway, question(stream=stream))).content
            told.append(block.to_dict(mode="json"))
        assert told == [{"type": "text", "text": "XaXb"}, {"type": "text", "text": "ab"}]
        assert gateway.requests[0].complete

    async def test_that_changes_a_thought_signs_what_it_tells(self) -> None:
        gateway = FakeGateway(answer=says(Delta(reasoning="a")))
        gateway.fault(OtherText("X"), path=PATH)
        (block,) = (await message_of(gateway, question())).content
        assert block.type == "thinking"
        assert block.thinking == "Xa"
        assistant = {"role": "assistant", "content": [block.to_dict(mode="json")]}
        assert (await ask(gateway, question([QUESTION, assistant, QUESTION]))).status == 200

    @pytest.mark.parametrize(
        ("fault", "between"),
        [
            (Comment(), b": OPENROUTER PROCESSING\n\n"),
            (Insert(b": ping\n\n"), b": ping\n\n"),
            (
                Insert(b'event: ping\ndata: {"type": "ping"}\n\n'),
                b'event: ping\ndata: {"type": "ping"}\n\n',
            ),
        ],
    )
    async def test_that_only_comes_in_between_stands_before_its_token(
        self, fault: Fault, between: bytes
    ) -> None:
        gateway = FakeGateway(tokens=3)
        own = frames(await ask(gateway))
        gateway.fault(fault, token=2, path=PATH)
        struck = frames(await ask(gateway))
        place = struck.index(between)
        others = [frame.replace(b"msg_2", b"msg_1") for frame in struck if frame != between]
        assert others == own
        assert event_of(struck[place + 1]).type == "content_block_delta"
        assert gateway.requests[-1].complete

    async def test_that_is_a_warning_does_not_end_the_stream(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Warning_("careful"), token=2, path=PATH)
        answer = await ask(gateway)
        (warning,) = [
            json.loads(data)
            for name, data in map(parts, frames(answer))
            if name.endswith("stream_normalization_warning")
        ]
        assert warning["message"] == "careful"
        assert answer.chunks[-1] == {"type": "message_stop"}
        assert text(answer) == gateway.intended(question())
        assert gateway.requests[0].complete


class TestAKeyThatDiesInMidStream:
    """`on_rotation`, where the stream is one of the Messages API."""

    async def test_ends_the_stream_with_an_error(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(token_interval=1)
        old = gateway.key
        async with in_memory(gateway) as wire:
            await wire.send(question(), old, path=PATH, headers=VERSION)
            await trio.sleep(2.5)
            gateway.rotate()
            answer = await wire.answer()
        assert error_of(answer).error.type == "authentication_error"
        assert (answer.end, gateway.auth_errors, gateway.requests[0].tokens) == ("complete", 1, 3)
        assert gateway.intended(question()).startswith(text(answer))
        assert (await ask(gateway, key=old)).status == 401
        assert text(await ask(gateway)) == gateway.intended(question())

    @pytest.mark.parametrize(("on_rotation", "end"), [("cut", "cut"), ("ignore", "complete")])
    async def test_may_cut_the_connection_or_change_nothing(
        self,
        on_rotation: Literal["cut", "ignore"],
        end: str,
        autojump_clock: trio.testing.MockClock,
    ) -> None:
        gateway = FakeGateway(token_interval=1, on_rotation=on_rotation)
        async with in_memory(gateway) as wire:
            await wire.send(question(), gateway.key, path=PATH, headers=VERSION)
            await trio.sleep(2.5)
            gateway.rotate()
            answer = await wire.answer()
        assert answer.end == end
        assert len(events(answer)) == len(frames(answer)) - 1  # the ping


@asynccontextmanager
async def open_sdk(
    gateway: FakeGateway, key: str | None = None
) -> AsyncGenerator[anthropic.AsyncAnthropic]:
    async with gateway.http_client(httpx2) as client:
        yield anthropic.AsyncAnthropic(
            api_key=key or gateway.key,
            base_url=gateway.base_url.removesuffix("/v1"),
            http_client=client,
            max_retries=0,
        )


@leaves_generators
class TestTheAnthropicSDK:
    """The SDK reads the fake gateway as it reads Anthropic."""

    @pytest.mark.parametrize("over", ["memory", "TCP"])
    async def test_streams_an_answer_and_gets_it_whole(self, over: str) -> None:
        gateway = FakeGateway(tokens=40)
        if over == "TCP":
            async with gateway.listen() as base_url, httpx2.AsyncClient() as client:
                await self.answers(gateway, base_url, client)
        else:
            async with gateway.http_client(httpx2) as client:
                await self.answers(gateway, gateway.base_url, client)
        assert all(seen.complete for seen in gateway.requests)

    async def answers(
        self, gateway: FakeGateway, base_url: str, client: httpx2.AsyncClient
    ) -> None:
        sdk = anthropic.AsyncAnthropic(
            api_key=gateway.key,
            base_url=base_url.removesuffix("/v1"),
            http_client=client,
            max_retries=0,
        )
        streamed = ""
        async with await sdk.messages.create(
            model="fake-model", max_tokens=100, messages=[QUESTION], stream=True
        ) as stream:
            async for event in stream:
                if event.type == "content_block_delta" and event.delta.type == "text_delta":
                    streamed += event.delta.text
        whole = await sdk.messages.create(model="fake-model", max_tokens=100, messages=[QUESTION])
        (block,) = whole.content
        assert block.type == "text"
        assert streamed == block.text == gateway.intended(question())
        assert (whole.usage.input_tokens, whole.usage.output_tokens) == (1, 40)

    async def test_gathers_a_stream_to_the_message_that_comes_whole(self) -> None:
        gateway = FakeGateway(answer=rich)
        async with open_sdk(gateway) as sdk:
            async with sdk.messages.stream(
                model="fake-model", max_tokens=100, messages=[QUESTION]
            ) as stream:
                texts = [piece async for piece in stream.text_stream]
                final = await stream.get_final_message()
            whole = await sdk.messages.create(
                model="fake-model", max_tokens=100, messages=[QUESTION]
            )
        assert texts == ["The ", "weather:\n", "and ", "so on"]
        assert "".join(texts) == gateway.intended(question())
        assert [block.to_dict() for block in final.content] == [
            block.to_dict() for block in whole.content
        ]
        assert (final.stop_reason, final.usage) == (whole.stop_reason, whole.usage)
        calls = [block for block in final.content if block.type == "tool_use"]
        assert [(block.id, block.name, block.input) for block in calls] == [
            ("toolu_weather", "weather", {"place": "Zürich"}),
            ("toolu_time", "time", {}),
        ]

    async def test_sends_thoughts_back_as_they_were(self) -> None:
        gateway = FakeGateway(answer=says(Delta(reasoning="Hm"), "Hi"))
        async with open_sdk(gateway) as sdk:
            first = await sdk.messages.create(
                model="fake-model", max_tokens=100, messages=[QUESTION]
            )
            turns = [QUESTION, first.to_param(), QUESTION]
            await sdk.messages.create(model="fake-model", max_tokens=100, messages=turns)
            thought = first.content[0]
            assert thought.type == "thinking"
            thought.signature = "another"
            turns = [QUESTION, first.to_param(), QUESTION]
            with pytest.raises(anthropic.BadRequestError) as raised:
                await sdk.messages.create(model="fake-model", max_tokens=100, messages=turns)
        assert raised.value.type == "invalid_request_error"

    @pytest.mark.parametrize(
        ("model", "key", "more", "error"),
        [
            ("fake-model", "wrong", {}, anthropic.AuthenticationError),
            ("other", None, {}, anthropic.NotFoundError),
            ("fake-model", None, {"messages": None}, anthropic.BadRequestError),
            ("fake-model", None, {"max_tokens": None}, anthropic.BadRequestError),
        ],
    )
    @pytest.mark.parametrize("stream", [True, False])
    async def test_raises_its_own_errors(
        self,
        model: str,
        key: str | None,
        more: JSON,
        error: type[anthropic.APIStatusError],
        stream: bool,
    ) -> None:
        async with open_sdk(FakeGateway(), key) as sdk:
            with pytest.raises(error):
                await sdk.messages.create(
                    model=model,
                    max_tokens=100,
                    messages=[QUESTION],
                    stream=stream,
                    extra_body=more,
                )

    @pytest.mark.parametrize(
        ("status", "error", "type"),
        [
            (429, anthropic.RateLimitError, "rate_limit_error"),
            (500, anthropic.InternalServerError, "api_error"),
            (529, anthropic.OverloadedError, "overloaded_error"),
        ],
    )
    async def test_raises_the_status_that_a_fault_answers(
        self, status: int, error: type[anthropic.APIStatusError], type: str
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(status, dialect="anthropic"), path=PATH)
        async with open_sdk(gateway) as sdk:
            with pytest.raises(error) as raised:
                await sdk.messages.create(model="fake-model", max_tokens=9, messages=[QUESTION])
        assert raised.value.type == type

    @pytest.mark.parametrize(("type", "error_type"), ERROR_TYPES.items())
    async def test_raises_an_error_in_mid_stream(self, type: str, error_type: str) -> None:
        gateway = FakeGateway()
        gateway.fault(ErrorFrame(type, "No"), token=3, times=2, path=PATH)
        deltas = 0
        async with open_sdk(gateway) as sdk:
            with pytest.raises(anthropic.APIStatusError) as raised:
                async for event in await sdk.messages.create(
                    model="fake-model", max_tokens=100, messages=[QUESTION], stream=True
                ):
                    deltas += event.type == "content_block_delta"
            async with sdk.messages.stream(
                model="fake-model", max_tokens=100, messages=[QUESTION]
            ) as stream:
                with pytest.raises(anthropic.APIStatusError):
                    await stream.get_final_message()
        assert deltas == 3
        assert (raised.value.type, raised.value.api_message) == (error_type, "No")

    @pytest.mark.parametrize("fault", [Cut(), Reset(), Cut(200), Reset(200)])
    async def test_raises_when_the_connection_breaks(self, fault: Fault) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, token=1, path=PATH)
        async with open_sdk(gateway) as sdk:
            # In mid-stream the SDK lets pass what its HTTP client raises.
            with pytest.raises(httpx2.TransportError):
                async for _ in await sdk.messages.create(
                    model="fake-model", max_tokens=100, messages=[QUESTION], stream=True
                ):
                    pass

    @pytest.mark.parametrize(
        "fault",
        [
            Comment(),
            Warning_(),
            Stall(1e4),
            Insert(b'event: ping\ndata: {"type": "ping"}\n\n'),
        ],
    )
    async def test_reads_over_what_comes_in_between(
        self, fault: Fault, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, token=3, path=PATH)
        async with (
            open_sdk(gateway) as sdk,
            sdk.messages.stream(model="fake-model", max_tokens=100, messages=[QUESTION]) as stream,
        ):
            assert await stream.get_final_text() == gateway.intended(question())
        assert gateway.requests[0].faults == [fault]

    @pytest.mark.parametrize(
        ("fault", "stop_reason"),
        [(OtherText(), "end_turn"), (EarlyDone("stop"), "end_turn"), (EarlyDone(), None)],
    )
    async def test_believes_a_lie(self, fault: Fault, stop_reason: str | None) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, token=3, path=PATH)
        async with (
            open_sdk(gateway) as sdk,
            sdk.messages.stream(model="fake-model", max_tokens=100, messages=[QUESTION]) as stream,
        ):
            final = await stream.get_final_message()
            assert await stream.get_final_text() != gateway.intended(question())
        assert final.stop_reason == stop_reason

    async def test_raises_when_its_key_dies_in_mid_stream(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(token_interval=1)
        deltas = 0
        async with open_sdk(gateway) as sdk:
            with pytest.raises(anthropic.APIStatusError) as raised:
                async for event in await sdk.messages.create(
                    model="fake-model", max_tokens=100, messages=[QUESTION], stream=True
                ):
                    deltas += event.type == "content_block_delta"
                    if deltas == 3 and gateway.generation == 1:
                        gateway.rotate()
            assert (raised.value.type, deltas) == ("authentication_error", 3)
            with pytest.raises(anthropic.AuthenticationError):
                await sdk.messages.create(model="fake-model", max_tokens=9, messages=[QUESTION])
        assert (gateway.auth_errors, gateway.rejected) == (1, 1)

    async def test_raises_when_its_key_dies_and_the_connection_with_it(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(token_interval=1, on_rotation="cut")
        async with open_sdk(gateway) as sdk:
            with pytest.raises(httpx2.TransportError):
                async for event in await sdk.messages.create(
                    model="fake-model", max_tokens=100, messages=[QUESTION], stream=True
                ):
                    if event.type == "content_block_delta":
                        gateway.rotate()
