"""The fake gateway's Responses API, held against the OpenAI SDK: its types, and its client."""

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, cast

import httpx2
import openai
import pytest
import trio
import trio.testing
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseErrorEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseIncompleteEvent,
    ResponseInProgressEvent,
    ResponseOutputItem,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseReasoningTextDeltaEvent,
    ResponseReasoningTextDoneEvent,
    ResponseStreamEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)
from pydantic import TypeAdapter

from gz_trio._protocol.events import Delta, ToolCallDelta
from gz_trio.testing import Answer as Model
from gz_trio.testing import (
    Comment,
    Cut,
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

PATH: Final = "/v1/responses"
KEPT: Final = "/v1/responses/{id}"
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
DELTA = (
    ResponseTextDeltaEvent,
    ResponseReasoningTextDeltaEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
)
TOOL: JSON = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    "strict": False,
}
# The SDK reads a stream by generators that it leaves, and httpx's, to the garbage collector.
leaves_generators = pytest.mark.filterwarnings(
    "ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning"
)


def call(index: int, arguments: str, name: str | None = None) -> Delta:
    call_id = None if name is None else f"call_{name}"
    return Delta(tool_calls=(ToolCallDelta(index, call_id, name, arguments),))


rich = says(
    Delta(reasoning="Let me "),
    Delta(reasoning="look."),
    "The ",
    "weather:\n",
    call(0, '{"place":', "weather"),
    call(0, '"Zürich"}'),
    call(1, "{}", "time"),
    "and ",
    Delta(reasoning="Is that all?"),
    "so on",
)


def question(sent: object = "Hello", **more: object) -> JSON:
    return {"model": "fake-model", "input": sent, "stream": True, **more}


def in_background(sent: object = "Hello", **more: object) -> JSON:
    return question(sent, background=True, **more)


async def ask(
    gateway: FakeGateway,
    body: JSON | None = None,
    *,
    connect: Connect = in_memory,
    key: str | None = None,
) -> Answer:
    async with connect(gateway) as wire:
        return await wire.ask(body or question(), key or gateway.key, path=PATH)


async def of_kept(
    gateway: FakeGateway,
    of: str = "resp_1",
    *,
    method: str = "GET",
    connect: Connect = in_memory,
    key: str | None = None,
) -> Answer:
    """Ask for what is kept: `of` is what stands behind `/v1/responses/`."""
    async with connect(gateway) as wire:
        path = f"{PATH}/{of}"
        return await wire.ask(None, key or gateway.key, path=path, method=method)


async def take_up(
    gateway: FakeGateway,
    after: int | None,
    *,
    of: str = "resp_1",
    connect: Connect = in_memory,
    key: str | None = None,
) -> Answer:
    cursor = "" if after is None else f"&starting_after={after}"
    return await of_kept(gateway, f"{of}?stream=true{cursor}", connect=connect, key=key)


def event_of(frame: bytes) -> ResponseStreamEvent:
    """The event that the SDK makes of a frame, if it is one to the letter."""
    name, data = frame.decode().removesuffix("\n\n").split("\n")
    assert data.startswith("data: ")
    event = EVENT.validate_json(data.removeprefix("data: "), strict=True)
    assert name == f"event: {event.type}"
    # Nothing was made to fit: the SDK's event says what the frame says.
    dumped = event.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings="error")
    assert dumped == json.loads(data.removeprefix("data: "))
    return event


def events(*answers: Answer) -> list[ResponseStreamEvent]:
    return [event_of(frame) for frame in frames(*answers)]


def text(*answers: Answer) -> str:
    deltas = [event for event in events(*answers) if isinstance(event, ResponseTextDeltaEvent)]
    return "".join(delta.delta for delta in deltas)


def numbers(stream: Iterable[ResponseStreamEvent]) -> list[int]:
    # A few of the SDK's events, which nobody sends here, have no number.
    return [cast("int", getattr(event, "sequence_number")) for event in stream]  # noqa: B009


def last_number(answer: Answer) -> int | None:
    return max(numbers(events(answer)), default=None)


def end_of(answer: Answer) -> Response:
    """The response that the last event of a stream holds."""
    last = events(answer)[-1]
    assert isinstance(last, ResponseCompletedEvent | ResponseIncompleteEvent)
    return last.response


def whole_of(answer: Answer) -> Response:
    """The response of an answer in one piece, if it is one to the letter."""
    assert answer.status == 200, answer.body
    response = Response.model_validate_json(answer.body, strict=True)
    dumped = response.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings="error")
    assert dumped == answer.json
    return response


def said(item: ResponseOutputItem) -> str:
    match item.type:
        case "message":
            return "".join(part.text for part in item.content if part.type == "output_text")
        case "reasoning":
            return "".join(part.text for part in item.content or [])
        case "function_call":
            return item.arguments
        case _:
            raise AssertionError(item)


def outline(response: Response) -> list[tuple[str, str]]:
    """What a response's items say, without their ids."""
    return [(item.type, said(item)) for item in response.output]


def error_of(answer: Answer) -> JSON:
    return cast("JSON", answer.json["error"])


@dataclass
class Case:
    """What the model says to which question, and how that ends."""

    model: Model | None = None
    body: JSON = field(default_factory=question)
    status: str = "completed"
    reason: str | None = None

    async def stream(self) -> Answer:
        return await ask(FakeGateway(answer=self.model), self.body)

    async def whole(self) -> Response:
        body = {**self.body, "stream": False}
        return whole_of(await ask(FakeGateway(answer=self.model), body))


LIMIT = ("incomplete", "max_output_tokens")
FILTER = ("incomplete", "content_filter")
MUCH = question(
    instructions="Be brief", metadata={"a": "b"}, tools=[TOOL], max_output_tokens=12, store=False
)
CASES = {
    "text": Case(),
    "nothing": Case(says()),
    "reasoning": Case(says(Delta(reasoning="Hm"))),
    "a tool call": Case(says(call(0, "{}", "f"))),
    "all of it": Case(rich, in_background()),
    "much in the request": Case(None, MUCH),
    "the request's limit": Case(None, question(max_output_tokens=3), *LIMIT),
    "its limit among thoughts": Case(rich, question(max_output_tokens=2), *LIMIT),
    "stop": Case(says("a", Delta(text="b", finish_reason="stop"))),
    "tool_calls": Case(says(call(0, "{}", "f"), Delta(finish_reason="tool_calls"))),
    "length": Case(says("a", Delta(text="b", finish_reason="length")), question(), *LIMIT),
    "content_filter": Case(says("a", Delta(finish_reason="content_filter")), question(), *FILTER),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
class TestAnyAnswer:
    """Whatever the model says and however it ends."""

    async def test_each_frame_is_an_event_by_the_openai_sdk(self, case: Case) -> None:
        stream = await case.stream()
        assert (stream.status, stream.end) == (200, "complete")
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert len(events(stream)) >= 3
        assert "[DONE]" not in stream.data  # that end is of chat completions alone

    async def test_the_events_are_numbered_from_0_without_a_gap(self, case: Case) -> None:
        stream = await case.stream()
        assert numbers(events(stream)) == list(range(len(frames(stream))))

    async def test_no_frame_has_a_field_that_the_openai_sdk_does_not_know(self, case: Case) -> None:
        # Servers say whether they keep it, though the SDK has no name for that.
        known = {"Response.store"}
        stream = events(await case.stream())
        assert {name for event in stream for name in unknown_fields(event)} <= known

    async def test_the_stream_begins_with_an_empty_response_and_ends_with_the_whole(
        self, case: Case
    ) -> None:
        stream = events(await case.stream())
        created, in_progress, *_, last = stream
        assert isinstance(created, ResponseCreatedEvent)
        assert isinstance(in_progress, ResponseInProgressEvent)
        assert isinstance(last, ResponseCompletedEvent | ResponseIncompleteEvent)
        lifecycle = [event for event in stream if getattr(event, "response", None) is not None]
        assert lifecycle == [created, in_progress, last]
        for begun in (created.response, in_progress.response):
            assert (begun.status, begun.output, begun.usage) == ("in_progress", [], None)
            assert (begun.id, begun.created_at) == (last.response.id, last.response.created_at)

    async def test_the_items_are_made_of_their_deltas_and_all_in_the_last_event(
        self, case: Case
    ) -> None:
        stream = await case.stream()
        assert items_by_events(events(stream)) == end_of(stream).output

    async def test_the_end_says_why(self, case: Case) -> None:
        stream = await case.stream()
        end = end_of(stream)
        assert events(stream)[-1].type == f"response.{case.status}"
        assert (end.status, end.error) == (case.status, None)
        assert (end.incomplete_details and end.incomplete_details.reason) == case.reason

    async def test_the_answer_in_one_piece_is_the_same(self, case: Case) -> None:
        streamed, whole = end_of(await case.stream()), await case.whole()
        assert (whole.status, whole.error) == (case.status, None)
        assert (whole.incomplete_details and whole.incomplete_details.reason) == case.reason
        assert outline(whole) == outline(streamed)
        assert whole.usage == streamed.usage

    async def test_the_response_says_what_the_request_said(self, case: Case) -> None:
        stream = await case.stream()
        for chunk in (stream.chunks[0], stream.chunks[-1]):
            response = cast("JSON", chunk["response"])
            assert response["model"] == "fake-model"
            assert response["background"] == case.body.get("background", False)
            assert response["store"] == case.body.get("store", True)
            assert response["instructions"] == case.body.get("instructions")
            assert response["max_output_tokens"] == case.body.get("max_output_tokens")
            assert response["metadata"] == case.body.get("metadata", {})
            assert response["tools"] == case.body.get("tools", [])


def items_by_events(stream: Sequence[ResponseStreamEvent]) -> list[ResponseOutputItem]:
    """The items that were done, each as it grew before the client's eyes."""
    grown: dict[int, str] = {}
    ids: dict[int, str | None] = {}
    done: dict[int, ResponseOutputItem] = {}
    for event in stream:
        if isinstance(event, ResponseOutputItemAddedEvent):
            assert event.output_index == len(ids)
            assert said(event.item) == ""
            grown[event.output_index] = ""
            ids[event.output_index] = event.item.id
        elif isinstance(event, ResponseContentPartAddedEvent | ResponseContentPartDoneEvent):
            assert event.part.type != "refusal"
            assert (event.item_id, event.content_index) == (ids[event.output_index], 0)
            assert event.part.text == grown[event.output_index]
        elif isinstance(event, DELTA):
            assert event.item_id == ids[event.output_index]
            assert event.output_index not in done
            assert event.delta
            grown[event.output_index] += event.delta
        elif isinstance(event, ResponseTextDoneEvent | ResponseReasoningTextDoneEvent):
            assert event.item_id == ids[event.output_index]
            assert event.text == grown[event.output_index]
        elif isinstance(event, ResponseFunctionCallArgumentsDoneEvent):
            assert event.item_id == ids[event.output_index]
            assert event.arguments == grown[event.output_index]
        elif isinstance(event, ResponseOutputItemDoneEvent):
            assert event.item.id == ids[event.output_index]
            assert said(event.item) == grown[event.output_index]
            done[event.output_index] = event.item
    assert set(done) == set(ids)
    return [done[index] for index in sorted(done)]


class TestWhatAnAnswerHolds:
    """Items, usage, and the text that was meant."""

    async def test_a_stream_of_text(self, connect: Connect) -> None:
        gateway = FakeGateway(tokens=2)
        answer = await ask(gateway, connect=connect)
        assert [event.type for event in events(answer)] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert text(answer) == end_of(answer).output_text == gateway.intended(question())
        seen = gateway.requests[0]
        assert (seen.path, seen.status, seen.tokens, seen.complete) == (PATH, 200, 2, True)
        assert seen.resumed_after is None

    async def test_reasoning_text_and_tool_calls_are_items_in_their_order(self) -> None:
        response = end_of(await ask(FakeGateway(answer=rich)))
        assert outline(response) == [
            ("reasoning", "Let me look."),
            ("message", "The weather:\n"),
            ("function_call", '{"place":"Zürich"}'),
            ("function_call", "{}"),
            ("message", "and "),
            ("reasoning", "Is that all?"),
            ("message", "so on"),
        ]
        calls = [item for item in response.output if item.type == "function_call"]
        assert [(item.call_id, item.name) for item in calls] == [
            ("call_weather", "weather"),
            ("call_time", "time"),
        ]
        assert len({item.id for item in response.output}) == 7
        thoughts = [item for item in response.output if item.type == "reasoning"]
        assert all(item.encrypted_content for item in thoughts)

    async def test_a_tool_call_without_an_id_gets_one_of_its_own(self) -> None:
        gateway = FakeGateway(
            answer=says(
                Delta(tool_calls=(ToolCallDelta(0, None, "f", "{}"),)),
                Delta(tool_calls=(ToolCallDelta(1, None, "f", "{}"),)),
            )
        )
        calls = end_of(await ask(gateway)).output
        assert len({item.call_id for item in calls if item.type == "function_call"}) == 2

    @pytest.mark.parametrize("stream", [True, False])
    async def test_tool_calls_whose_pieces_interleave_are_whole(self, stream: bool) -> None:
        gateway = FakeGateway(
            answer=says(call(0, '{"a"', "f"), call(1, '{"b"', "g"), call(0, ":1}"), call(1, ":2}"))
        )
        answer = await ask(gateway, question(stream=stream))
        response = end_of(answer) if stream else whole_of(answer)
        assert outline(response) == [("function_call", '{"a":1}'), ("function_call", '{"b":2}')]

    @pytest.mark.parametrize("stream", [True, False])
    async def test_usage_counts_the_words_that_were_sent_and_the_tokens(self, stream: bool) -> None:
        gateway = FakeGateway(tokens=4)
        body = question("three words here", instructions="Be brief", stream=stream)
        answer = await ask(gateway, body)
        usage = (end_of(answer) if stream else whole_of(answer)).usage
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (5, 4, 9)
        assert usage.output_tokens_details.reasoning_tokens == 0

    @pytest.mark.parametrize("stream", [True, False])
    async def test_usage_tells_the_tokens_of_reasoning(self, stream: bool) -> None:
        answer = await ask(FakeGateway(answer=rich), question(stream=stream))
        usage = (end_of(answer) if stream else whole_of(answer)).usage
        assert usage is not None
        assert (usage.output_tokens, usage.output_tokens_details.reasoning_tokens) == (10, 3)

    async def test_max_output_tokens_limits_the_answer(self) -> None:
        gateway = FakeGateway(tokens=5)
        answer = await ask(gateway, question(max_output_tokens=2))
        assert text(answer) == gateway.intended(question(max_output_tokens=2))
        assert gateway.intended(question()).startswith(text(answer))
        assert gateway.requests[0].tokens == 2

    @pytest.mark.parametrize("stream", [True, False])
    async def test_an_item_that_the_limit_cut_is_incomplete(self, stream: bool) -> None:
        gateway = FakeGateway(answer=says(Delta(reasoning="Hm"), "a", "b", "c"))
        answer = await ask(gateway, question(stream=stream, max_output_tokens=3))
        thought, message = (end_of(answer) if stream else whole_of(answer)).output
        assert thought.type == "reasoning"
        assert thought.status == "completed"
        assert message.type == "message"
        assert message.status == "incomplete"

    async def test_the_input_may_be_a_list_of_messages_or_one_text(self) -> None:
        gateway = FakeGateway()
        parts = [{"type": "input_text", "text": "Hello"}]
        texts = {
            gateway.intended(question(sent))
            for sent in (
                "Hello",
                [{"role": "user", "content": "Hello"}],
                [{"type": "message", "role": "user", "content": parts}],
            )
        }
        assert len(texts) == 1
        assert gateway.intended(question("Other")) not in texts
        assert gateway.intended(question(instructions="Be brief")) not in texts

    @pytest.mark.parametrize("event_ids", [True, "ignored"])
    async def test_no_event_has_an_id_of_the_event_stream(
        self, event_ids: Literal[True, "ignored"]
    ) -> None:
        answer = await ask(FakeGateway(event_ids=event_ids))
        assert numbers(events(answer)) == list(range(len(frames(answer))))
        assert not any(frame.startswith(b"id:") for frame in frames(answer))


class TestARequestThatCannotBeServed:
    """Refused before there is any answer."""

    @pytest.mark.parametrize("body", [{"model": "fake-model"}, {"input": 1}, {"input": None}])
    async def test_without_input_is_a_bad_one(self, body: JSON) -> None:
        answer = await ask(FakeGateway(), {"model": "fake-model", **body})
        assert answer.status == 400
        assert error_of(answer)["type"] == "invalid_request_error"

    async def test_without_a_body_is_a_bad_one(self) -> None:
        gateway = FakeGateway()
        async with in_memory(gateway) as wire:
            assert (await wire.ask(None, gateway.key, path=PATH)).status == 400

    async def test_for_an_unknown_model_is_not_found(self) -> None:
        assert (await ask(FakeGateway(), question(model="other"))).status == 404
        assert (await ask(FakeGateway(models=None), question(model="other"))).status == 200

    async def test_with_another_key_is_rejected(self) -> None:
        gateway = FakeGateway()
        assert (await ask(gateway, key="wrong")).status == 401
        assert (gateway.rejected, gateway.requests[0].tokens) == (1, 0)

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", PATH, 405),
            ("DELETE", PATH, 405),
            ("POST", f"{PATH}/resp_1", 405),
            ("PUT", f"{PATH}/resp_1", 405),
            ("GET", f"{PATH}/resp_1/cancel", 405),
            ("GET", f"{PATH}/resp_1/other", 404),
        ],
    )
    async def test_by_the_wrong_method_or_path_is_refused(
        self, method: str, path: str, status: int
    ) -> None:
        gateway = FakeGateway()
        await ask(gateway)
        async with in_memory(gateway) as wire:
            assert (await wire.ask(None, gateway.key, method=method, path=path)).status == status


class TestAStreamThatIsTakenUp:
    """`GET /v1/responses/{id}?stream=true&starting_after=n`."""

    @pytest.mark.parametrize("answer", [None, rich, says()])
    async def test_goes_on_after_any_of_its_events_byte_for_byte(
        self, answer: Model | None, connect: Connect
    ) -> None:
        gateway = FakeGateway(tokens=3, answer=answer)
        whole = await ask(gateway, in_background(), connect=connect)
        pieces = frames(whole)
        for number, _ in enumerate(pieces):
            rest = await take_up(gateway, number, connect=connect)
            assert (rest.status, rest.end) == (200, "complete")
            assert rest.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert rest.body == b"".join(pieces[number + 1 :])
            seen = gateway.requests[-1]
            assert (seen.resumed_after, seen.tokens, seen.complete) == (str(number), 0, True)

    async def test_without_a_cursor_comes_from_its_start(self) -> None:
        gateway = FakeGateway()
        whole = await ask(gateway, in_background())
        assert (await take_up(gateway, None)).body == whole.body

    @pytest.mark.parametrize("token", range(13))
    async def test_is_made_only_once_in_all(self, token: int) -> None:
        gateway = FakeGateway(tokens=12)
        gateway.fault(Cut(), token=token, path=PATH)
        first = await ask(gateway, in_background())
        assert first.end == "cut"
        second = await take_up(gateway, last_number(first))
        assert [seen.tokens for seen in gateway.requests] == [token, 12 - token]
        assert [seen.complete for seen in gateway.requests] == [False, True]
        assert text(first, second) == gateway.intended(question())
        both = events(first, second)
        assert numbers(both) == list(range(len(both)))
        assert (await take_up(gateway, None)).body == first.body + second.body
        assert sum(seen.tokens for seen in gateway.requests) == 12

    async def test_goes_on_after_any_event_of_a_stream_that_was_cut(self) -> None:
        said_in_all = outline(end_of(await ask(FakeGateway(answer=rich))))
        number, size = 0, 1
        while number < size:
            gateway = FakeGateway(answer=rich)
            gateway.fault(Cut(), token=7, path=PATH)
            first = await ask(gateway, in_background())
            second = await take_up(gateway, number)
            number, size = number + 1, len(frames(first))
            whole = await take_up(gateway, None)
            assert b"".join(frames(first)[:number]) + second.body == whole.body
            assert outline(end_of(whole)) == said_in_all
        assert size > 20

    async def test_cut_after_any_of_its_bytes_goes_on_after_its_last_whole_event(self) -> None:
        size = len((await ask(FakeGateway(tokens=2), in_background())).body)
        for after_bytes in range(0, size, 53):
            gateway = FakeGateway(tokens=2)
            gateway.fault(Cut(after_bytes), token=0, path=PATH)
            first = await ask(gateway, in_background())
            assert (first.end, len(first.body)) == ("cut", after_bytes)
            second = await take_up(gateway, last_number(first))
            assert text(first, second) == gateway.intended(question())
            assert end_of(second).status == "completed"
            assert sum(seen.tokens for seen in gateway.requests) == 2

    async def test_can_be_cut_again_and_again(self) -> None:
        gateway = FakeGateway(tokens=6)
        gateway.fault(Cut(), token=2, path=PATH)
        gateway.fault(Reset(), token=4, path=KEPT)
        gateway.fault(Status(503), request=2, path=KEPT)
        gateway.fault(Cut(), token=1, path=KEPT)  # which was sent before
        answers = [await ask(gateway, in_background())]
        answers.append(await take_up(gateway, last_number(answers[-1])))
        assert (await take_up(gateway, last_number(answers[-1]))).status == 503
        answers.append(await take_up(gateway, last_number(answers[-1])))
        assert [answer.end for answer in answers] == ["cut", "reset", "complete"]
        assert [seen.tokens for seen in gateway.requests] == [2, 2, 0, 2]
        assert text(*answers) == gateway.intended(question())

    async def test_gets_what_there_is_at_once_and_the_rest_token_by_token(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(tokens=5, token_interval=10)
        gateway.fault(Cut(), token=3, path=PATH)
        await ask(gateway, in_background())
        started = trio.current_time()
        async with in_memory(gateway) as wire:
            path = f"{PATH}/resp_1?stream=true&starting_after=1"
            await wire.send(None, gateway.key, path=path, method="GET")
            for token, seconds in ((1, 0), (2, 0), (3, 0), (4, 10), (5, 20)):
                body = await wire.until(b"\n\n")
                while b"output_text.delta" not in body:
                    body = await wire.until(b"\n\n")
                assert (token, trio.current_time() - started) == (token, seconds)

    async def test_may_still_be_on_its_way_to_another(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(tokens=6, token_interval=1)
        async with in_memory(gateway) as wire:
            await wire.send(in_background(), gateway.key, path=PATH)
            await trio.sleep(2.5)
            second = await take_up(gateway, None)
            first = await wire.answer()
        assert first.body == second.body
        assert text(first) == gateway.intended(question())
        assert sum(seen.tokens for seen in gateway.requests) == 6

    async def test_is_told_by_the_numbers_in_the_events_not_by_their_count(self) -> None:
        keepalive = Delta(raw=b'{"type":"keepalive"}')
        gateway = FakeGateway(answer=says("a", keepalive, "b", "c"))
        pieces = frames(await ask(gateway, in_background()))
        for place, piece in enumerate(pieces):
            number = cast("JSON", json.loads(piece.partition(b"data: ")[2])).get("sequence_number")
            if isinstance(number, int):
                rest = await take_up(gateway, number)
                assert rest.body == b"".join(pieces[place + 1 :])

    @pytest.mark.parametrize("cursor", ["99", "-2", "-99", "x", "1.5"])
    async def test_has_no_place_after_an_event_that_there_is_not(self, cursor: str) -> None:
        gateway = FakeGateway()
        await ask(gateway, in_background())
        answer = await of_kept(gateway, f"resp_1?stream=true&starting_after={cursor}")
        assert (answer.status, gateway.requests[-1].resumed_after) == (400, None)

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (question(), 400),
            (question(background=False), 400),
            (in_background(stream=False), 400),
            (question(store=False), 404),
            (in_background(store=False), 404),
        ],
    )
    @pytest.mark.parametrize("after", [None, 0])
    async def test_was_streamed_in_the_background_and_kept(
        self, body: JSON, status: int, after: int | None
    ) -> None:
        gateway = FakeGateway()
        assert (await ask(gateway, body)).status == 200
        answer = await take_up(gateway, after)
        assert answer.status == status
        assert error_of(answer)["type"] == "invalid_request_error"
        assert gateway.requests[-1].resumed_after is None

    async def test_needs_a_valid_key(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Cut(), token=3, path=PATH)
        first = await ask(gateway, in_background())
        old = gateway.key
        gateway.rotate()
        assert (await take_up(gateway, last_number(first), key=old)).status == 401
        second = await take_up(gateway, last_number(first))
        assert text(first, second) == gateway.intended(question())


class TestAResponseThatIsKept:
    """`GET`, `DELETE` and `POST .../cancel` of `/v1/responses/{id}`."""

    @pytest.mark.parametrize("body", [question(), question(stream=False), in_background()])
    async def test_is_had_again_as_it_was(self, body: JSON) -> None:
        gateway = FakeGateway(answer=rich)
        first = await ask(gateway, body)
        kept = whole_of(await of_kept(gateway))
        assert kept == (end_of(first) if body["stream"] is True else whole_of(first))
        seen = gateway.requests[-1]
        assert (seen.method, seen.path, seen.tokens) == ("GET", f"{PATH}/resp_1", 0)
        assert (seen.resumed_after, seen.complete) == (None, True)

    async def test_is_in_progress_until_its_end(self) -> None:
        gateway = FakeGateway(answer=rich)
        gateway.fault(Cut(), token=5, path=PATH)
        first = await ask(gateway, in_background())
        half = whole_of(await of_kept(gateway))
        assert (half.status, half.usage) == ("in_progress", None)
        assert outline(half) == [("reasoning", "Let me look."), ("message", "The weather:\n")]
        end = end_of(await take_up(gateway, last_number(first)))
        assert whole_of(await of_kept(gateway)) == end
        assert end.status == "completed"

    @pytest.mark.parametrize(
        ("method", "of"),
        [
            ("GET", ""),
            ("GET", "?stream=true"),
            ("GET", "?stream=true&starting_after=0"),
            ("DELETE", ""),
            ("POST", "/cancel"),
        ],
    )
    async def test_is_not_found_where_there_is_none(self, method: str, of: str) -> None:
        gateway = FakeGateway()
        unknown = await of_kept(gateway, f"resp_1{of}", method=method)
        await ask(gateway, in_background())  # resp_2
        assert (await of_kept(gateway, f"resp_2{of}", method=method, key="wrong")).status == 401
        gateway.forget_streams()
        lost = await of_kept(gateway, f"resp_2{of}", method=method)
        for answer in (unknown, lost):
            assert answer.status == 404
            assert error_of(answer)["type"] == "invalid_request_error"

    async def test_is_gone_when_it_was_deleted(self) -> None:
        gateway = FakeGateway()
        await ask(gateway)
        await ask(gateway)
        deleted = await of_kept(gateway, "resp_1", method="DELETE")
        assert (deleted.status, deleted.json["deleted"]) == (200, True)
        assert (await of_kept(gateway, "resp_1")).status == 404
        assert (await of_kept(gateway, "resp_1", method="DELETE")).status == 404
        assert (await of_kept(gateway, "resp_2")).status == 200

    async def test_can_be_cancelled_in_the_background_and_then_ends_where_it_is(self) -> None:
        gateway = FakeGateway(tokens=6)
        gateway.fault(Cut(), token=3, path=PATH)
        await ask(gateway, in_background())
        cancelled = whole_of(await of_kept(gateway, "resp_1/cancel", method="POST"))
        again = whole_of(await of_kept(gateway, "resp_1/cancel", method="POST"))
        assert cancelled.status == "cancelled"
        assert again == whole_of(await of_kept(gateway)) == cancelled
        assert sum(seen.tokens for seen in gateway.requests) == 3

    async def test_stays_cancelled_when_its_stream_is_taken_up(self) -> None:
        gateway = FakeGateway(tokens=6)
        gateway.fault(Cut(), token=3, path=PATH)
        first = await ask(gateway, in_background())
        await of_kept(gateway, "resp_1/cancel", method="POST")
        second = await take_up(gateway, last_number(first))
        assert (second.status, second.end) == (200, "complete")
        assert b"response.completed" not in second.body
        assert whole_of(await of_kept(gateway)).status == "cancelled"
        assert [seen.tokens for seen in gateway.requests[:1]] == [3]
        assert sum(seen.tokens for seen in gateway.requests) == 3

    async def test_can_be_cancelled_while_it_is_sent(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(tokens=6, token_interval=1)
        async with in_memory(gateway) as wire:
            await wire.send(in_background(), gateway.key, path=PATH)
            await trio.sleep(2.5)  # three tokens
            await of_kept(gateway, "resp_1/cancel", method="POST")
            answer = await wire.answer()
        assert numbers(events(answer)) == list(range(len(frames(answer))))
        assert b"response.completed" not in answer.body
        assert gateway.intended(question()).startswith(text(answer))
        assert gateway.requests[0].tokens == 3
        assert whole_of(await of_kept(gateway)).status == "cancelled"

    @pytest.mark.parametrize("body", [question(), question(stream=False)])
    async def test_cannot_be_cancelled_in_the_foreground(self, body: JSON) -> None:
        gateway = FakeGateway()
        await ask(gateway, body)
        answer = await of_kept(gateway, "resp_1/cancel", method="POST")
        assert answer.status == 400
        assert error_of(answer)["type"] == "invalid_request_error"
        assert whole_of(await of_kept(gateway)).status == "completed"


class TestAResponseThatGoesOnFromAnother:
    """`previous_response_id`."""

    @pytest.mark.parametrize("stream", [True, False])
    async def test_is_the_answer_to_the_whole_conversation(self, stream: bool) -> None:
        gateway = FakeGateway()
        user = [{"role": "user", "content": content} for content in ("one", "two", "three")]
        conversation: list[object] = []
        previous: JSON = {}
        for message in user:
            conversation.append(message)
            chained = question([message], stream=stream, **previous)
            intended = gateway.intended(chained)
            answer = await ask(gateway, chained)
            response = end_of(answer) if stream else whole_of(answer)
            assert response.output_text == intended
            assert (intended == gateway.intended(question([message]))) is not bool(previous)
            assert response.previous_response_id == previous.get("previous_response_id")

            at_once = await ask(gateway, question(list(conversation), stream=stream))
            other = end_of(at_once) if stream else whole_of(at_once)
            assert other.output_text == response.output_text
            assert other.usage == response.usage

            previous = {"previous_response_id": response.id}
            conversation += [item.to_dict(mode="json") for item in response.output]

    async def test_takes_up_thoughts_calls_and_their_results(self) -> None:
        gateway = FakeGateway(
            answer=lambda body, attempt: (
                ["sunny"]
                if "previous_response_id" in body
                else [Delta(reasoning="Hm"), call(0, "{}", "weather")]
            )
        )
        first = end_of(await ask(gateway, question("one two")))
        result = {"type": "function_call_output", "call_id": "call_weather", "output": "sun sun"}
        second = end_of(await ask(gateway, question([result], previous_response_id=first.id)))
        assert second.output_text == "sunny"
        assert second.usage is not None
        # "one two", `weather({})`, "sun sun".
        assert second.usage.input_tokens == 5

    async def test_leaves_the_instructions_behind(self) -> None:
        gateway = FakeGateway()
        first = end_of(await ask(gateway, question("one", instructions="Be brief")))
        chained = question("two", previous_response_id=first.id)
        user = [{"role": "user", "content": content} for content in ("one", "two")]
        assistant = {"role": "assistant", "content": first.output_text}
        assert gateway.intended(chained) == gateway.intended(
            question([user[0], assistant, user[1]])
        )

    @pytest.mark.parametrize("lost", ["unknown", "not stored", "forgotten", "deleted"])
    @pytest.mark.parametrize("stream", [True, False])
    async def test_is_refused_where_that_is_not_there(self, lost: str, stream: bool) -> None:
        gateway = FakeGateway()
        await ask(gateway, question(store=lost != "not stored"))
        if lost == "forgotten":
            gateway.forget_streams()
        if lost == "deleted":
            await of_kept(gateway, method="DELETE")
        previous = "resp_99" if lost == "unknown" else "resp_1"
        answer = await ask(gateway, question(stream=stream, previous_response_id=previous))
        assert answer.status == 400
        assert error_of(answer)["code"] == "previous_response_not_found"
        assert error_of(answer)["type"] == "invalid_request_error"
        assert gateway.requests[-1].tokens == 0

    async def test_is_kept_no_longer_than_it_asks(self) -> None:
        gateway = FakeGateway()
        first = end_of(await ask(gateway))
        second = end_of(await ask(gateway, question(previous_response_id=first.id, store=False)))
        assert (await ask(gateway, question(previous_response_id=second.id))).status == 400
        assert (await of_kept(gateway, second.id)).status == 404
        assert (await of_kept(gateway, first.id)).status == 200


class TestAThoughtThatComesBack:
    """Reasoning items are signed, and come back as they were."""

    async def answered(self, **changes: object) -> tuple[int | None, int]:
        """The status of a second turn with a changed thought, and the tokens made for it."""
        gateway = FakeGateway(answer=rich)
        first = end_of(await ask(gateway, question(store=False)))
        output = [item.to_dict(mode="json", exclude_unset=True) for item in first.output]
        output[0] |= changes
        sent = [{"role": "user", "content": "Hello"}, *output, {"role": "user", "content": "And?"}]
        answer = await ask(gateway, question(sent, store=False))
        if answer.status != 200:
            assert error_of(answer)["type"] == "invalid_request_error"
        return answer.status, gateway.requests[-1].tokens

    async def test_unchanged_is_taken(self) -> None:
        assert await self.answered() == (200, 10)

    @pytest.mark.parametrize(
        "changes",
        [
            {"encrypted_content": "0" * 32},
            {"encrypted_content": ""},
            {"content": [{"type": "reasoning_text", "text": "Let me see."}]},
        ],
    )
    async def test_changed_is_refused(self, changes: JSON) -> None:
        assert await self.answered(**changes) == (400, 0)


class TestAFault:
    """What goes wrong in a stream of the Responses API."""

    @pytest.mark.parametrize(("fault", "end"), [(Cut, "cut"), (Reset, "reset")])
    async def test_that_breaks_the_connection_lets_the_events_before_it_arrive(
        self, fault: type[Cut | Reset], end: str, connect: Connect
    ) -> None:
        gateway = FakeGateway(tokens=5)
        gateway.fault(fault(), token=2, path=PATH)
        answer = await ask(gateway, connect=connect)
        assert (answer.status, answer.end) == (200, end)
        assert numbers(events(answer)) == list(range(6))
        assert gateway.intended(question()).startswith(text(answer))
        assert (gateway.requests[0].tokens, gateway.requests[0].complete) == (2, False)

    @pytest.mark.parametrize(("fault", "end"), [(Cut(10), "cut"), (Reset(10), "reset")])
    @pytest.mark.parametrize("body", [question(), question(stream=False)])
    async def test_that_breaks_the_connection_breaks_a_whole_answer_too(
        self, fault: Fault, end: str, body: JSON
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, path=PATH)
        answer = await ask(gateway, body)
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

    @pytest.mark.parametrize(
        "type",
        [
            "rate_limit_error",
            "capacity_error",
            "provider_error",
            "timeout_error",
            "not_found_error",
            "auth_error",
            "stream_error",
            "stream_timeout",
            "empty_stream_error",
            "plan_limit_exceeded",
            "unheard_of",
        ],
    )
    async def test_that_is_an_error_is_the_last_event(self, type: str) -> None:
        gateway = FakeGateway()
        gateway.fault(ErrorFrame(type), token=3, path=PATH)
        answer = await ask(gateway)
        *before, error = events(answer)
        assert isinstance(error, ResponseErrorEvent)
        assert (error.code, error.param) == (type, None)
        assert error.message
        assert numbers([*before, error]) == list(range(len(frames(answer))))
        assert (answer.status, answer.end) == (200, "complete")
        assert "[DONE]" not in answer.data
        seen = gateway.requests[0]
        assert (seen.tokens, seen.complete, seen.faults) == (3, False, [ErrorFrame(type)])
        assert gateway.auth_errors == (type == "auth_error")

    async def test_that_is_an_error_says_what_it_is_told(self) -> None:
        gateway = FakeGateway()
        gateway.fault(ErrorFrame(message="No", code="server_error"), path=PATH)
        nested: JSON = {"type": "error", "status": 401, "error": {"code": "x", "message": "No"}}
        gateway.fault(ErrorFrame(data=nested), token=2, path=PATH)
        (error,) = events(await ask(gateway))
        assert isinstance(error, ResponseErrorEvent)
        assert (error.code, error.message, error.sequence_number) == ("server_error", "No", 0)
        assert (await ask(gateway)).chunks[-1] == nested

    @pytest.mark.parametrize(
        ("finish_reason", "last"),
        [
            (None, "response.output_text.delta"),
            ("stop", "response.completed"),
            ("tool_calls", "response.completed"),
            ("length", "response.incomplete"),
            ("content_filter", "response.incomplete"),
        ],
    )
    async def test_that_ends_the_stream_early_ends_it_in_good_order(
        self, finish_reason: str | None, last: str
    ) -> None:
        gateway = FakeGateway(tokens=5)
        gateway.fault(EarlyDone(finish_reason), token=2, path=PATH)
        answer = await ask(gateway)
        assert (answer.status, answer.end) == (200, "complete")
        assert events(answer)[-1].type == last
        assert numbers(events(answer)) == list(range(len(frames(answer))))
        assert 0 < len(text(answer)) < len(gateway.intended(question()))
        assert not gateway.requests[0].complete
        if finish_reason is not None:
            assert end_of(answer).output_text == text(answer)

    async def test_that_empties_the_stream_leaves_nothing(self) -> None:
        gateway = FakeGateway()
        gateway.fault(EmptyStream(), path=PATH)
        answer = await ask(gateway)
        assert (answer.status, answer.end, answer.body) == (200, "complete", b"")

    @pytest.mark.parametrize("stream", [True, False])
    async def test_that_changes_the_text_lies(self, stream: bool) -> None:
        gateway = FakeGateway(answer=says("a", Delta(reasoning="b"), "c"))
        gateway.fault(OtherText("X"), path=PATH)
        told: list[str] = []
        for _ in range(2):
            answer = await ask(gateway, question(stream=stream))
            told.append((end_of(answer) if stream else whole_of(answer)).output_text)
        assert told == ["XaXc", "ac"]
        assert gateway.requests[0].complete

    async def test_that_changes_the_text_from_a_token_on_changes_the_last_event_too(self) -> None:
        gateway = FakeGateway(answer=says("a", "b", "c"))
        gateway.fault(OtherText("X"), token=1, path=PATH)
        answer = await ask(gateway, in_background())
        assert text(answer) == end_of(answer).output_text == "aXbXc"
        assert (await take_up(gateway, None)).body == answer.body

    @pytest.mark.parametrize(
        ("fault", "between"),
        [
            (Comment(), b": OPENROUTER PROCESSING\n\n"),
            (Insert(b": ping\n\n"), b": ping\n\n"),
            (
                Insert(b'data: {"type":"keepalive","sequence_number":3}\n\n'),
                b'data: {"type":"keepalive","sequence_number":3}\n\n',
            ),
        ],
    )
    @pytest.mark.parametrize("path", [PATH, KEPT])
    async def test_that_only_comes_in_between_stands_before_its_token(
        self, fault: Fault, between: bytes, path: Literal["/v1/responses", "/v1/responses/{id}"]
    ) -> None:
        gateway = FakeGateway(tokens=3)
        gateway.fault(fault, token=2, path=path)
        first = await ask(gateway, in_background())
        again = await take_up(gateway, None)
        struck, other = (first, again) if path == PATH else (again, first)
        place = frames(struck).index(between)
        assert frames(struck)[:place] + frames(struck)[place + 1 :] == frames(other)
        assert event_of(frames(struck)[place + 1]).type == "response.output_text.delta"
        assert text(other) == gateway.intended(question())
        assert gateway.requests[0].complete

    async def test_that_is_a_warning_does_not_end_the_stream(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Warning_("careful"), token=2, path=PATH)
        answer = await ask(gateway)
        (warning,) = [chunk for chunk in answer.chunks if "sequence_number" not in chunk]
        assert str(warning["type"]).endswith("stream_normalization_warning")
        assert warning["message"] == "careful"
        assert answer.chunks[-1]["type"] == "response.completed"
        assert gateway.requests[0].complete

    @pytest.mark.parametrize(
        "fault",
        [
            Comment(),
            Insert(b'data: {"type":"keepalive"}\n\n'),
            Warning_(),
            ErrorFrame(),
            EarlyDone(),
            EarlyDone("stop"),
            EarlyDone("length"),
            Cut(),
            Cut(50),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("path", [PATH, KEPT])
    async def test_puts_nothing_into_the_stream_that_is_kept(
        self, fault: Fault, path: Literal["/v1/responses", "/v1/responses/{id}"]
    ) -> None:
        gateway = FakeGateway(tokens=5)
        if path != PATH:
            gateway.fault(Cut(), token=1, path=PATH)
        gateway.fault(fault, token=3, path=path)
        first = await ask(gateway, in_background())
        if path != PATH:
            await take_up(gateway, last_number(first))
        assert gateway.requests[-1].faults == [fault]
        again = await take_up(gateway, None)
        assert numbers(events(again)) == list(range(len(frames(again))))
        assert text(again) == end_of(again).output_text == gateway.intended(question())
        assert whole_of(await of_kept(gateway)) == end_of(again)

    async def test_strikes_where_a_response_is_asked_for_or_cancelled(self) -> None:
        gateway = FakeGateway()
        await ask(gateway, in_background())
        gateway.fault(Status(500), path=KEPT)
        gateway.fault(Status(503), path="/v1/responses/{id}/cancel")
        statuses = [
            (await of_kept(gateway, of, method=method)).status
            for method, of in [
                ("GET", "resp_1"),
                ("GET", "resp_1"),
                ("POST", "resp_1/cancel"),
                ("POST", "resp_1/cancel"),
            ]
        ]
        assert statuses == [500, 200, 503, 200]


class TestAKeyThatDiesInMidStream:
    """`on_rotation`, where the stream is one of the Responses API."""

    async def test_ends_the_stream_with_an_error_and_the_next_key_takes_it_up(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(token_interval=1)
        old = gateway.key
        async with in_memory(gateway) as wire:
            await wire.send(in_background(), old, path=PATH)
            await trio.sleep(2.5)
            gateway.rotate()
            first = await wire.answer()
        *sent, error = events(first)
        assert isinstance(error, ResponseErrorEvent)
        assert (error.code, error.sequence_number) == ("auth_error", len(sent))
        assert (first.end, gateway.auth_errors) == ("complete", 1)

        after = len(sent) - 1
        assert (await take_up(gateway, after, key=old)).status == 401
        second = await take_up(gateway, after)
        assert text(first, second) == gateway.intended(question())
        assert numbers([*sent, *events(second)]) == list(range(len(sent) + len(frames(second))))
        assert [seen.tokens for seen in gateway.requests] == [3, 0, 9]
        assert [seen.resumed_after for seen in gateway.requests] == [None, None, str(after)]

    async def test_ends_a_stream_that_was_taken_up_too(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(token_interval=1)
        gateway.fault(Cut(), token=2, path=PATH)
        first = await ask(gateway, in_background())
        async with in_memory(gateway) as wire:
            path = f"{PATH}/resp_1?stream=true&starting_after={last_number(first)}"
            await wire.send(None, gateway.key, path=path, method="GET")
            await trio.sleep(2.5)
            gateway.expire()
            second = await wire.answer()
        assert isinstance(events(second)[-1], ResponseErrorEvent)
        await gateway.refresh()
        third = await take_up(gateway, cast("int", last_number(second)) - 1)
        assert text(first, second, third) == gateway.intended(question())
        assert sum(seen.tokens for seen in gateway.requests) == 12

    @pytest.mark.parametrize(("on_rotation", "end"), [("cut", "cut"), ("ignore", "complete")])
    async def test_may_cut_the_connection_or_change_nothing(
        self,
        on_rotation: Literal["cut", "ignore"],
        end: str,
        autojump_clock: trio.testing.MockClock,
    ) -> None:
        gateway = FakeGateway(token_interval=1, on_rotation=on_rotation)
        async with in_memory(gateway) as wire:
            await wire.send(question(), gateway.key, path=PATH)
            await trio.sleep(2.5)
            gateway.rotate()
            answer = await wire.answer()
        assert answer.end == end
        assert not [event for event in events(answer) if event.type == "error"]


@asynccontextmanager
async def open_sdk(
    gateway: FakeGateway, key: str | None = None
) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with gateway.http_client(httpx2) as client:
        yield openai.AsyncOpenAI(
            api_key=key or gateway.key,
            base_url=gateway.base_url,
            http_client=client,
            max_retries=0,
        )


@leaves_generators
class TestTheOpenAISDK:
    """The SDK reads the fake gateway as it reads OpenAI."""

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
        sdk = openai.AsyncOpenAI(
            api_key=gateway.key, base_url=base_url, http_client=client, max_retries=0
        )
        streamed = ""
        async with await sdk.responses.create(
            model="fake-model", input="Hello", stream=True
        ) as stream:
            async for event in stream:
                if event.type == "response.output_text.delta":
                    streamed += event.delta
        whole = await sdk.responses.create(model="fake-model", input="Hello")
        assert streamed == whole.output_text == gateway.intended(question())
        assert whole.usage is not None
        assert (whole.usage.input_tokens, whole.usage.output_tokens) == (1, 40)

    async def test_gathers_a_stream_to_the_response_that_comes_whole(self) -> None:
        gateway = FakeGateway(answer=rich)
        async with open_sdk(gateway) as sdk:
            async with sdk.responses.stream(model="fake-model", input="Hello") as stream:
                snapshots = [
                    event.snapshot
                    async for event in stream
                    if event.type == "response.output_text.delta"
                ]
                final = await stream.get_final_response()
            whole = await sdk.responses.create(model="fake-model", input="Hello")
        assert snapshots == ["The ", "The weather:\n", "and ", "so on"]
        assert outline(final) == outline(whole)
        assert (final.status, final.usage) == (whole.status, whole.usage)
        assert final.output_text == gateway.intended(question())
        calls = [item for item in final.output if item.type == "function_call"]
        assert [(item.call_id, item.name, item.arguments) for item in calls] == [
            ("call_weather", "weather", '{"place":"Zürich"}'),
            ("call_time", "time", "{}"),
        ]

    @pytest.mark.parametrize(
        ("model", "key", "sent", "error"),
        [
            ("fake-model", "wrong", "Hello", openai.AuthenticationError),
            ("other", None, "Hello", openai.NotFoundError),
            ("fake-model", None, openai.omit, openai.BadRequestError),
        ],
    )
    @pytest.mark.parametrize("stream", [True, False])
    async def test_raises_its_own_errors(
        self,
        model: str,
        key: str | None,
        sent: str | openai.Omit,
        error: type[openai.APIStatusError],
        stream: bool,
    ) -> None:
        async with open_sdk(FakeGateway(), key) as sdk:
            with pytest.raises(error) as raised:
                await sdk.responses.create(model=model, input=sent, stream=stream)
        assert raised.value.response.headers["x-request-id"] == raised.value.request_id == "req_1"

    async def test_is_handed_an_error_in_mid_stream_and_never_a_final_response(self) -> None:
        gateway = FakeGateway()
        gateway.fault(ErrorFrame("capacity_error"), token=3, times=2, path=PATH)
        async with open_sdk(gateway) as sdk:
            # The error of the API is flat, and that the SDK takes for an event like any other.
            async with await sdk.responses.create(
                model="fake-model", input="Hello", stream=True
            ) as stream:
                *_, last = [event async for event in stream]
            assert last.type == "error"
            assert (last.code, last.param) == ("capacity_error", None)
            async with sdk.responses.stream(model="fake-model", input="Hello") as gathered:
                with pytest.raises(RuntimeError, match=r"response\.completed"):
                    await gathered.get_final_response()

    async def test_raises_the_nested_error_that_some_servers_send(self) -> None:
        gateway = FakeGateway()
        nested = {"code": "x", "message": "No", "type": "y", "param": None}
        frame = ErrorFrame(data={"type": "error", "status": 503, "error": nested})
        gateway.fault(frame, token=3, times=2, path=PATH)
        async with open_sdk(gateway) as sdk:
            with pytest.raises(openai.APIError, match="No"):
                async for _ in await sdk.responses.create(
                    model="fake-model", input="Hello", stream=True
                ):
                    pass
            async with sdk.responses.stream(model="fake-model", input="Hello") as gathered:
                with pytest.raises(openai.APIError, match="No") as raised:
                    await gathered.get_final_response()
        assert (raised.value.code, raised.value.type) == ("x", "y")

    @pytest.mark.parametrize("fault", [Cut(), Reset(), Cut(700), Reset(700)])
    async def test_raises_when_the_connection_breaks(self, fault: Fault) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, token=1, path=PATH)
        async with open_sdk(gateway) as sdk:
            with pytest.raises(openai.APIConnectionError):
                async for _ in await sdk.responses.create(
                    model="fake-model", input="Hello", stream=True
                ):
                    pass

    @pytest.mark.parametrize("fault", [EarlyDone(), EmptyStream(), EarlyDone("length")])
    async def test_has_no_final_response_of_a_stream_that_has_no_end(self, fault: Fault) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, path=PATH)
        async with (
            open_sdk(gateway) as sdk,
            sdk.responses.stream(model="fake-model", input="Hello") as stream,
        ):
            with pytest.raises(RuntimeError, match=r"response\.completed"):
                await stream.get_final_response()

    @pytest.mark.parametrize(
        "fault",
        [
            Comment(),
            Warning_(),
            Stall(1e4),
            Insert(b'event: keepalive\ndata: {"type":"keepalive","sequence_number":3}\n\n'),
        ],
    )
    async def test_reads_over_what_comes_in_between(
        self, fault: Fault, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, token=3, path=PATH)
        async with (
            open_sdk(gateway) as sdk,
            sdk.responses.stream(model="fake-model", input="Hello") as stream,
        ):
            final = await stream.get_final_response()
        assert final.output_text == gateway.intended(question())
        assert gateway.requests[0].faults == [fault]

    @pytest.mark.parametrize("fault", [OtherText(), EarlyDone("stop")])
    async def test_believes_a_lie(self, fault: Fault) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, token=3, path=PATH)
        async with (
            open_sdk(gateway) as sdk,
            sdk.responses.stream(model="fake-model", input="Hello") as stream,
        ):
            final = await stream.get_final_response()
        assert final.status == "completed"
        assert final.output_text != gateway.intended(question())

    async def test_sees_the_error_when_its_key_dies(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(token_interval=1)
        deltas = 0
        last: object = None
        async with open_sdk(gateway) as sdk:
            async with sdk.responses.stream(model="fake-model", input="Hello") as stream:
                async for event in stream:
                    last = event
                    deltas += event.type == "response.output_text.delta"
                    if deltas == 3 and gateway.generation == 1:
                        gateway.rotate()
                with pytest.raises(RuntimeError, match=r"response\.completed"):
                    await stream.get_final_response()
            assert isinstance(last, ResponseErrorEvent)
            assert (last.code, deltas, gateway.auth_errors) == ("auth_error", 3, 1)
            with pytest.raises(openai.AuthenticationError):
                await sdk.responses.create(model="fake-model", input="Hello")

    async def test_raises_when_its_key_dies_and_the_connection_with_it(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(token_interval=1, on_rotation="cut")
        async with (
            open_sdk(gateway) as sdk,
            await sdk.responses.create(model="fake-model", input="Hello", stream=True) as stream,
        ):
            with pytest.raises(openai.APIConnectionError):
                async for event in stream:
                    if event.type == "response.output_text.delta":
                        gateway.rotate()

    async def test_takes_up_a_stream_that_was_cut(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Cut(), token=5, path=PATH)
        got: list[ResponseStreamEvent] = []
        async with open_sdk(gateway) as sdk:
            with pytest.raises(openai.APIConnectionError):
                async for event in await sdk.responses.create(
                    model="fake-model", input="Hello", stream=True, background=True, store=True
                ):
                    got.append(event)  # noqa: PERF401  a comprehension would lose them
            created = got[0]
            assert created.type == "response.created"
            half = await sdk.responses.retrieve(created.response.id)
            assert half.status == "in_progress"
            async with await sdk.responses.retrieve(
                created.response.id, stream=True, starting_after=numbers(got)[-1]
            ) as rest:
                got += [event async for event in rest]
            whole = await sdk.responses.retrieve(created.response.id)
        assert numbers(got) == list(range(len(got)))
        deltas = [event.delta for event in got if event.type == "response.output_text.delta"]
        assert "".join(deltas) == whole.output_text == gateway.intended(question())
        assert whole.status == "completed"
        assert [seen.tokens for seen in gateway.requests] == [5, 0, 7, 0]
        assert [seen.resumed_after for seen in gateway.requests] == [None, None, "8", None]

    async def test_gathers_a_kept_stream_and_shows_what_follows_an_event(self) -> None:
        gateway = FakeGateway(tokens=3)
        async with open_sdk(gateway) as sdk:
            async with sdk.responses.stream(
                model="fake-model", input="Hello", background=True
            ) as stream:
                first = await stream.get_final_response()
            async with sdk.responses.stream(response_id=first.id, starting_after=5) as again:
                rest = [event async for event in again]
                final = await again.get_final_response()
        assert [event.sequence_number for event in rest] == list(range(6, 11))
        assert final == first

    async def test_takes_up_deletes_and_cancels_only_what_is_kept(self) -> None:
        gateway = FakeGateway()
        async with open_sdk(gateway) as sdk:
            foreground = await sdk.responses.create(model="fake-model", input="Hello")
            assert await sdk.responses.retrieve(foreground.id) == foreground
            with pytest.raises(openai.BadRequestError):
                await sdk.responses.retrieve(foreground.id, stream=True)
            with pytest.raises(openai.BadRequestError):
                await sdk.responses.cancel(foreground.id)
            await sdk.responses.delete(foreground.id)
            with pytest.raises(openai.NotFoundError):
                await sdk.responses.retrieve(foreground.id)
            with pytest.raises(openai.NotFoundError):
                await sdk.responses.delete(foreground.id)

            stateless = await sdk.responses.create(model="fake-model", input="Hello", store=False)
            with pytest.raises(openai.NotFoundError):
                await sdk.responses.retrieve(stateless.id)

            kept = await sdk.responses.create(model="fake-model", input="Hello")
            gateway.forget_streams()
            with pytest.raises(openai.NotFoundError):
                await sdk.responses.retrieve(kept.id, stream=True, starting_after=1)

    async def test_cancels_a_response_in_the_background(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway(token_interval=1)
        async with open_sdk(gateway) as sdk:
            async with await sdk.responses.create(
                model="fake-model", input="Hello", stream=True, background=True
            ) as stream:
                created = await anext(stream)
                assert created.type == "response.created"
            cancelled = await sdk.responses.cancel(created.response.id)
            assert cancelled.status == "cancelled"
            assert (await sdk.responses.retrieve(created.response.id)).status == "cancelled"
        assert sum(seen.tokens for seen in gateway.requests) < 12

    async def test_goes_on_from_a_response(self) -> None:
        gateway = FakeGateway()
        async with open_sdk(gateway) as sdk:
            first = await sdk.responses.create(model="fake-model", input="one")
            second = await sdk.responses.create(
                model="fake-model", input="two", previous_response_id=first.id
            )
            at_once = await sdk.responses.create(
                model="fake-model",
                input=[
                    {"role": "user", "content": "one"},
                    {"role": "assistant", "content": first.output_text},
                    {"role": "user", "content": "two"},
                ],
            )
            assert second.output_text == at_once.output_text
            assert second.previous_response_id == first.id
            with pytest.raises(openai.BadRequestError) as raised:
                await sdk.responses.create(
                    model="fake-model", input="two", previous_response_id="resp_99"
                )
        assert raised.value.code == "previous_response_not_found"
