"""How one reply goes on after it broke: the ways, their order, and their requests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio import (
    AuthenticationError,
    BadRequestError,
    Delta,
    GatewayError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    Restarted,
    ResumePolicy,
)
from gz_trio._protocol.decoding import DONE
from gz_trio._protocol.resume import Diverged
from gz_trio._protocol.resumption import CannotResume, Resumption, StartedOver
from gz_trio._protocol.sse import ServerSentEvent

USER = {"role": "user", "content": "Tell me a story."}
BODY: dict[str, object] = {"model": "m", "messages": [USER]}


def frame(
    text: str = "",
    *,
    event_id: str | None = None,
    completion: str = "chatcmpl-1",
    finish: str | None = None,
    **delta: object,
) -> ServerSentEvent:
    choice = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}
    data = json.dumps({"id": completion, "choices": [choice]})
    return ServerSentEvent("message", data.encode(), id=event_id)


@dataclass
class Reader:
    """What comes out of a resumption that is fed event by event, as a receiver feeds it."""

    resumption: Resumption
    text: str = ""
    restarts: int = 0
    ways: list[str | None] = field(default_factory=list[str | None])

    def ask(self) -> dict[str, object]:
        """The body of the next request."""
        request = self.resumption.next_request()
        self.ways.append(request.way)
        body: dict[str, object] = json.loads(request.content)
        return body

    def hear(self, *events: ServerSentEvent) -> None:
        for event in events:
            if not self.resumption.begun:
                self.resumption.begin(event)
            if self.resumption.begun and self.resumption.is_repeat(event):
                continue
            for item in self.resumption.decoder.decode(event):
                if isinstance(item, Delta):
                    self._take(*self.resumption.new_parts(item))
            self.resumption.passed(event)

    def end(self) -> None:
        assert self.resumption.decoder.complete
        self._take(*self.resumption.end())

    def _take(self, *parts: Delta | Restarted) -> None:
        for part in parts:
            if isinstance(part, Restarted):
                self.restarts += 1
                self.text = ""
            else:
                self.text += part.text


def broken_after(
    *texts: str,
    policy: ResumePolicy | None = None,
    body: dict[str, object] | None = None,
    ids: bool = False,
) -> Reader:
    """A reader of a reply that broke after these deltas; the next request is to be asked for."""
    reader = Reader(Resumption(body or BODY, policy or ResumePolicy()))
    reader.ask()
    for number, text in enumerate(texts, start=1):
        reader.hear(frame(text, event_id=str(number) if ids else None))
    return reader


VLLM = ResumePolicy(continue_="vllm")


class TestOrder:
    def test_nothing_is_taken_up_before_something_was_delivered(self) -> None:
        reader = broken_after()
        assert reader.ask() == BODY
        assert reader.ways == [None, None]

    def test_without_ids_and_without_a_word_from_the_caller_it_is_replayed(self) -> None:
        reader = broken_after("Once ")
        assert reader.ask() == BODY
        assert reader.ways == [None, "replay"]

    def test_ids_come_before_continuing(self) -> None:
        reader = broken_after("Once ", policy=VLLM, ids=True)
        request = reader.resumption.next_request()
        assert (request.way, request.headers) == ("cursor", {"Last-Event-ID": "1"})
        assert json.loads(request.content) == BODY

    def test_continuing_comes_before_replay(self) -> None:
        reader = broken_after("Once ", policy=VLLM)
        reader.ask()
        assert reader.ways == [None, "continue"]

    @pytest.mark.parametrize(
        "error", [BadRequestError("400", status=400), NotFoundError("404", status=404)]
    )
    def test_a_way_that_is_refused_gives_way_to_the_next(self, error: GatewayError) -> None:
        reader = broken_after("Once ", policy=VLLM, ids=True)
        for _ in range(3):
            reader.ask()
            reader.resumption.refused(error)
        assert reader.ways == [None, "cursor", "continue", "replay"]
        assert not reader.resumption.refused(error)  # now it is about the request itself

    @pytest.mark.parametrize(
        "error",
        [
            AuthenticationError("401", status=401),
            RateLimitError("429", status=429),
            InternalServerError("503", status=503, retryable=True),
            BadRequestError("408", status=408, retryable=True),
        ],
    )
    def test_a_failure_that_passes_refuses_no_way(self, error: GatewayError) -> None:
        reader = broken_after("Once ", ids=True)
        reader.ask()
        assert not reader.resumption.refused(error)
        reader.ask()
        assert reader.ways == [None, "cursor", "cursor"]


class TestCursor:
    def test_the_stream_goes_on_behind_the_last_event(self) -> None:
        reader = broken_after("Once ", "upon ", ids=True)
        reader.ask()
        reader.hear(frame("a time", event_id="3", finish="stop"))
        reader.end()
        assert reader.text == "Once upon a time"

    def test_events_already_seen_are_dropped_by_their_number(self) -> None:
        reader = broken_after("la ", "la ", "la ", ids=True)
        reader.ask()
        reader.hear(frame("la ", event_id="2"), frame("la ", event_id="3"))
        reader.hear(frame("li", event_id="4", finish="stop"))
        reader.end()
        assert reader.text == "la la la li"

    def test_the_end_behind_a_repeated_event_is_no_repetition(self) -> None:
        reader = broken_after("la ", "li", ids=True)
        reader.ask()
        reader.hear(frame("li", event_id="2"), ServerSentEvent("message", b"[DONE]", id="2"))
        reader.end()
        assert reader.text == "la li"

    def test_the_end_alone_is_the_end_if_it_has_the_next_id(self) -> None:
        reader = broken_after("la ", "li", ids=True)
        reader.ask()
        reader.hear(ServerSentEvent("message", b"[DONE]", id="3"))
        reader.end()
        assert reader.text == "la li"

    def test_a_lonely_done_without_an_id_is_no_end(self) -> None:
        reader = broken_after("la ", ids=True)
        reader.ask()
        reader.hear(ServerSentEvent("message", b"[DONE]"))
        assert not reader.resumption.decoder.complete

    def test_a_server_that_starts_over_is_matched(self) -> None:
        reader = broken_after("Once ", "upon ", ids=True)
        reader.ask()
        for number, text in enumerate(("Once ", "upon ", "a time"), start=1):
            reader.hear(frame(text, event_id=str(number), completion="chatcmpl-2"))
        assert reader.text == "Once upon a time"
        assert reader.resumption.way == "replay"
        reader.ask()  # its new stream has a cursor too
        assert reader.ways == [None, "cursor", "cursor"]

    def test_a_server_that_starts_over_in_other_words_has_diverged(self) -> None:
        reader = broken_after("Once ", ids=True)
        reader.ask()
        with pytest.raises(Diverged):
            reader.hear(frame("There was", event_id="1", completion="chatcmpl-2"))
        assert reader.text == "Once "

    def test_a_server_that_starts_over_is_left_where_the_model_can_continue(self) -> None:
        reader = broken_after("Once ", ids=True, policy=VLLM)
        reader.ask()
        with pytest.raises(StartedOver):
            reader.hear(frame("Once ", event_id="1"))
        reader.ask()
        assert reader.ways == [None, "cursor", "continue"]

    def test_a_server_that_starts_over_is_left_where_no_replay_is_allowed(self) -> None:
        reader = broken_after("Once ", ids=True, policy=ResumePolicy(max_replay=0))
        reader.ask()
        with pytest.raises(CannotResume, match="max_replay"):
            reader.hear(frame("Once ", event_id="1"))

    @pytest.mark.parametrize("event_id", ["7", "other", None])
    def test_an_answer_that_begins_who_knows_where_is_not_read(self, event_id: str | None) -> None:
        reader = broken_after("Once ", ids=True)
        reader.ask()
        with pytest.raises(StartedOver):
            reader.hear(frame("Once ", event_id=event_id, completion="chatcmpl-2"))
        reader.ask()
        reader.hear(frame("Once upon", event_id="1", finish="stop"))
        reader.end()
        assert reader.text == "Once upon"
        assert reader.ways == [None, "cursor", "replay"]

    def test_a_role_without_an_id_at_the_head_of_every_response_is_no_beginning(self) -> None:
        reader = broken_after(ids=True)
        reader.hear(frame(role="assistant"), frame("Once ", event_id="1"))
        reader.ask()
        reader.hear(frame(role="assistant"), frame("upon", event_id="2", finish="stop"))
        reader.end()
        assert reader.text == "Once upon"
        assert reader.ways == [None, "cursor"]

    def test_numbers_that_run_on_do_not_hide_an_answer_that_starts_over(self) -> None:
        reader = broken_after("Once ", "upon ", ids=True)
        reader.ask()
        with pytest.raises(StartedOver):
            reader.hear(frame("On", event_id="3"), frame("ce upon ", event_id="4"))
        assert reader.text == "Once upon "
        reader.ask()
        reader.hear(frame("Once upon a time", event_id="5", finish="stop"))
        reader.end()
        assert reader.text == "Once upon a time"
        assert reader.ways == [None, "cursor", "replay"]

    def test_text_that_only_begins_as_the_answer_did_is_given_once_it_differs(self) -> None:
        reader = broken_after("Once ", "upon ", ids=True)
        reader.ask()
        reader.hear(frame("Once", event_id="3"))
        assert reader.text == "Once upon "
        reader.hear(frame(" more", event_id="4", finish="stop"))
        reader.end()
        assert reader.text == "Once upon Once more"

    def test_text_that_was_held_back_at_a_cut_comes_again(self) -> None:
        reader = broken_after("Once ", "upon ", ids=True)
        reader.ask()
        reader.hear(frame("On", event_id="3"))
        request = reader.resumption.next_request()
        assert request.headers == {"Last-Event-ID": "2"}
        reader.hear(frame("On", event_id="3"), frame(" a", event_id="4"))
        assert reader.text == "Once upon On a"
        request = reader.resumption.next_request()
        assert request.headers == {"Last-Event-ID": "4"}
        reader.hear(frame("On", event_id="3"), frame(" a", event_id="4"))
        reader.hear(frame(" b", event_id="5", finish="stop"))
        reader.end()
        assert reader.text == "Once upon On a b"

    def test_an_answer_that_ends_as_it_began_is_asked_for_again(self) -> None:
        reader = broken_after("la la ", ids=True)
        reader.ask()
        reader.hear(frame("la", event_id="2", finish="stop"))
        with pytest.raises(StartedOver):
            reader.end()

    def test_the_end_of_an_answer_is_not_held_back(self) -> None:
        reader = broken_after("Once", ids=True)
        reader.ask()
        reader.hear(frame(role="assistant"), frame(event_id="2", finish="stop"))
        assert reader.resumption.finish_reason == "stop"
        reader.end()
        assert (reader.text, reader.ways) == ("Once", [None, "cursor"])

    def test_an_error_that_comes_first_leaves_the_place_as_it_was(self) -> None:
        reader = broken_after("Once ", ids=True)
        reader.ask()
        error = b'{"error":{"type":"auth_error","message":"Invalid API key"}}'
        assert not reader.resumption.begin(ServerSentEvent("message", error))
        reader.resumption.ended_early(AuthenticationError("401"))
        reader.ask()
        reader.hear(frame("upon", event_id="2", finish="stop"))
        reader.end()
        assert reader.text == "Once upon"
        assert reader.ways == [None, "cursor", "cursor"]

    @pytest.mark.parametrize("error", [None, InternalServerError("500")])
    def test_a_kept_stream_that_ends_without_anything_new_is_left(
        self, error: GatewayError | None
    ) -> None:
        reader = broken_after("Once ", ids=True)
        reader.ask()
        reader.resumption.ended_early(error)
        reader.ask()
        assert reader.ways == [None, "cursor", "replay"]

    def test_a_replay_that_broke_halfway_is_taken_up_halfway(self) -> None:
        reader = broken_after("Once ", "upon ", "a ", ids=True)
        reader.ask()
        reader.hear(frame("Once ", event_id="1", completion="chatcmpl-2"))
        reader.ask()
        reader.hear(
            frame("upon ", event_id="2", completion="chatcmpl-2"),
            frame("a time", event_id="3", completion="chatcmpl-2", finish="stop"),
        )
        reader.end()
        assert reader.text == "Once upon a time"

    def test_a_restart_after_that_has_all_of_the_second_answer(self) -> None:
        policy = ResumePolicy(on_divergence="restart")
        reader = broken_after("Once ", "upon ", "a ", ids=True, policy=policy)
        reader.ask()
        reader.hear(frame("Once ", event_id="1", completion="chatcmpl-2"))
        reader.ask()
        reader.hear(frame("more", event_id="2", completion="chatcmpl-2", finish="stop"))
        reader.end()
        assert (reader.text, reader.restarts) == ("Once more", 1)


class TestContinue:
    @pytest.mark.parametrize(
        ("continue_", "message", "flags"),
        [
            ("vllm", {}, {"add_generation_prompt": False, "continue_final_message": True}),
            ("prefix", {"prefix": True}, {}),
            ("prefill", {}, {}),
        ],
    )
    def test_the_partial_answer_goes_back_with_the_servers_flag(
        self,
        continue_: Literal["vllm", "prefix", "prefill"],
        message: dict[str, object],
        flags: dict[str, object],
    ) -> None:
        reader = broken_after("Once ", "upon", policy=ResumePolicy(continue_=continue_))
        partial = {"role": "assistant", "content": "Once upon", **message}
        assert reader.ask() == {**BODY, **flags, "messages": [USER, partial]}

    @pytest.mark.parametrize("space", [" ", "\n", " \n\t ", "\u3000", "\u00a0"])
    def test_whitespace_at_the_end_is_not_sent_and_matched_at_the_join(self, space: str) -> None:
        reader = broken_after("Once" + space, policy=VLLM)
        messages = reader.ask()["messages"]
        assert isinstance(messages, list)
        assert messages[-1]["content"] == "Once"
        reader.hear(frame(space[:1]), frame(space[1:] + "upon", finish="stop"))
        reader.end()
        assert reader.text == f"Once{space}upon"

    def test_another_join_leads_to_the_next_way(self) -> None:
        reader = broken_after("Once ", policy=VLLM)
        reader.ask()
        with pytest.raises(StartedOver):
            reader.hear(frame("\nupon"))
        reader.ask()
        reader.hear(frame("Once upon", finish="stop"))
        reader.end()
        assert reader.text == "Once upon"
        assert reader.ways == [None, "continue", "replay"]

    def test_an_echo_is_matched_from_the_beginning(self) -> None:
        reader = broken_after("Once ", "upon ", policy=ResumePolicy(continue_="vllm", echo=True))
        reader.ask()
        reader.hear(frame("Once u"), frame("pon a time", finish="stop"))
        reader.end()
        assert reader.text == "Once upon a time"

    def test_what_comes_is_all_new_without_an_echo(self) -> None:
        reader = broken_after("la ", "la", policy=VLLM)
        reader.ask()
        reader.hear(frame("la la", finish="stop"))
        reader.end()
        assert reader.text == "la lala la"

    def test_a_continued_answer_that_breaks_is_continued(self) -> None:
        reader = broken_after("Once ", policy=VLLM)
        reader.ask()
        reader.hear(frame(" upon "))
        messages = reader.ask()["messages"]
        assert isinstance(messages, list)
        assert messages[-1]["content"] == "Once upon"
        reader.hear(frame(" a time", finish="stop"))
        reader.end()
        assert reader.text == "Once upon a time"

    @pytest.mark.parametrize(
        ("limit", "allowed", "left"),
        [
            ("max_tokens", 10, 8),
            ("max_completion_tokens", 10, 8),
            ("max_tokens", 2, 1),
            ("min_tokens", 1, 0),
            ("max_tokens", None, None),
        ],
    )
    def test_limits_are_reduced_by_what_came(
        self, limit: str, allowed: int | None, left: int | None
    ) -> None:
        reader = broken_after("Once ", "upon", policy=VLLM, body={**BODY, limit: allowed})
        assert reader.ask()[limit] == left

    def test_a_prefill_of_the_callers_own_comes_before_what_came(self) -> None:
        prefill = {"role": "assistant", "content": "{", "name": "ada"}
        body = {**BODY, "messages": [USER, prefill]}
        reader = broken_after('"a"', policy=VLLM, body=body)
        assert reader.ask()["messages"] == [USER, {**prefill, "content": '{"a"'}]

    def test_an_echo_has_the_callers_prefill_in_it(self) -> None:
        body = {**BODY, "messages": [USER, {"role": "assistant", "content": "Once upon "}]}
        policy = ResumePolicy(continue_="prefill", echo=True)
        reader = broken_after("Once upon a", policy=policy, body=body)
        assert reader.ask()["messages"] == [USER, {"role": "assistant", "content": "Once upon a"}]
        reader = broken_after("Once", policy=policy, body=body)
        reader.ask()
        assert reader.ways == [None, "replay"]

    @pytest.mark.parametrize(
        "fields",
        [
            {"n": 2},
            {"logprobs": True},
            {"top_logprobs": 3},
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            {"guided_regex": "[a-z]+"},
            {"messages": "no list"},
            {"messages": [USER, "no message"]},
            {"messages": [USER, {"role": "assistant", "content": [{"type": "text"}]}]},
        ],
    )
    def test_never_where_the_answer_is_more_than_a_text(self, fields: dict[str, object]) -> None:
        reader = broken_after("Once", policy=VLLM, body={**BODY, **fields})
        assert reader.ask() == {**BODY, **fields}
        assert reader.ways == [None, "replay"]

    @pytest.mark.parametrize(
        "fields",
        [{"n": 1}, {"n": None}, {"logprobs": False}, {"response_format": {"type": "text"}}],
    )
    def test_but_where_the_caller_says_that_it_is_one(self, fields: dict[str, object]) -> None:
        reader = broken_after("Once", policy=VLLM, body={**BODY, **fields})
        reader.ask()
        assert reader.ways == [None, "continue"]

    @pytest.mark.parametrize(
        "event",
        [
            pytest.param(frame(reasoning_content="Hm"), id="reasoning under way"),
            pytest.param(
                frame(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f"}}]),
                id="a tool call begun",
            ),
            pytest.param(frame(finish="length"), id="finished"),
            pytest.param(
                ServerSentEvent(
                    "message", b'{"choices":[{"index":1,"delta":{"content":"Twice"}}]}'
                ),
                id="several choices",
            ),
        ],
    )
    def test_never_after(self, event: ServerSentEvent) -> None:
        reader = broken_after("Once", policy=VLLM)
        reader.hear(event)
        reader.ask()
        assert reader.ways == [None, "replay"]

    def test_never_from_whitespace_alone(self) -> None:
        reader = broken_after("\n", policy=VLLM)
        reader.ask()
        assert reader.ways == [None, "replay"]

    def test_text_after_reasoning_is_continued_but_not_by_new_thoughts(self) -> None:
        reader = broken_after(policy=VLLM)
        reader.hear(frame(reasoning_content="Hm"), frame("Once"))
        reader.ask()
        with pytest.raises(StartedOver):
            reader.hear(frame(reasoning_content="Hm again"))
        reader.ask()
        assert reader.ways == [None, "continue", "replay"]

    def test_text_beside_thoughts_that_lead_elsewhere_does_not_count_as_delivered(self) -> None:
        reader = broken_after(policy=VLLM)
        reader.hear(frame(reasoning_content="Hm"), frame("Once"))
        reader.ask()
        with pytest.raises(StartedOver):
            reader.hear(frame(" upon", reasoning_content="!"))
        reader.ask()
        reader.hear(frame(reasoning_content="Hm"), frame("Once upon", finish="stop"))
        reader.end()
        assert reader.text == "Once upon"

    def test_half_an_answer_is_nothing_to_restart_with(self) -> None:
        policy = ResumePolicy(continue_="vllm", on_divergence="restart")
        reader = broken_after("Once ", policy=policy)
        reader.ask()
        with pytest.raises(StartedOver):
            reader.hear(frame("\nupon", event_id="1"))
        reader.ask()
        reader.hear(frame("There was", finish="stop"))
        reader.end()
        assert (reader.text, reader.restarts) == ("There was", 1)
        assert reader.ways == [None, "continue", "replay"]


class TestReplay:
    def test_a_replay_is_bounded_over_the_whole_reply(self) -> None:
        reader = broken_after("0123456789", policy=ResumePolicy(max_replay=25))
        for _ in range(2):
            reader.ask()
            reader.hear(frame("0123456789"))
        with pytest.raises(CannotResume, match="after 10 characters"):
            reader.ask()

    def test_only_what_came_counts_of_a_replay_that_broke(self) -> None:
        reader = broken_after("0123456789", policy=ResumePolicy(max_replay=19))
        for _ in range(3):
            reader.ask()
            reader.hear(frame("012"))
        assert reader.resumption.repeated == 9
        reader.ask()

    def test_a_bound_of_0_still_allows_what_repeats_nothing(self) -> None:
        reader = broken_after(policy=ResumePolicy(max_replay=0))
        reader.ask()
        reader = broken_after("Once", policy=ResumePolicy(max_replay=0, continue_="vllm"))
        reader.ask()
        reader = broken_after("Once", policy=ResumePolicy(max_replay=0), ids=True)
        reader.ask()
        assert reader.ways == [None, "cursor"]


def test_a_field_that_the_server_does_not_know_is_left_out_for_good() -> None:
    reader = broken_after(body={**BODY, "stream_options": {"include_usage": True}})
    assert reader.resumption.leave_out("stream_options")
    assert reader.ask() == BODY
    assert not reader.resumption.leave_out("stream_options")


def test_a_body_that_json_cannot_hold_is_refused_at_once() -> None:
    with pytest.raises(TypeError):
        Resumption({"model": object()}, ResumePolicy())


@dataclass
class Server:
    """A server whose answers to the same request have the same words.

    Args:
        texts: The answer's deltas.
        ids: How its events are numbered.
        honours: What it does with `Last-Event-ID`.
        completion: How its chunks name the completion, if they do.
        roles: Which of its chunks say who speaks.
        ends: Whether the end has an id.
    """

    texts: list[str]
    ids: str
    honours: str
    completion: str
    roles: str
    ends: bool
    answers: int = 0
    made: int = 0
    kept: list[ServerSentEvent] = field(default_factory=list[ServerSentEvent])

    def answer(self, last_event_id: str | None) -> list[ServerSentEvent]:
        places = {event.id: place for place, event in enumerate(self.kept)}
        if last_event_id is not None and last_event_id in places and self.honours != "starts over":
            overlap = {"exactly": 0, "inclusively": 1, "with some more": 3}[self.honours]
            events = self.kept[max(places[last_event_id] + 1 - overlap, 0) :]
        else:
            self.answers += 1
            self.made += len(self.kept)
            events = [self._event(number, text) for number, text in enumerate(self.texts)]
            if self.ends:
                end_id = self._id(len(self.texts))
                events.append(ServerSentEvent("message", b"[DONE]", id=end_id))
            self.kept = events
        if not self.ends:  # The event-stream decoder hands on the last id of the response.
            last_id = events[-1].id if events else None
            events = [*events, ServerSentEvent("message", b"[DONE]", id=last_id)]
        return events

    def _id(self, number: int) -> str | None:
        match self.ids:
            case "numbers":
                return str(number)
            case "numbers of the stream":
                return f"{self.answers}-{number}"
            case "numbers of the server":
                return str(self.made + number)
            case "opaque":
                return f"{number * 7919 % 10007:x}{self.answers:x}q"
            case _:
                return None

    def _event(self, number: int, text: str) -> ServerSentEvent:
        delta: dict[str, object] = {"content": text}
        if self.roles == "all" or (self.roles == "first" and number == 0):
            delta["role"] = "assistant"
        data: dict[str, object] = {"choices": [{"index": 0, "delta": delta}]}
        if self.completion:
            data["id"] = self.completion.format(self.answers)
        return ServerSentEvent("message", json.dumps(data).encode(), id=self._id(number))


@given(
    server=st.builds(
        Server,
        texts=st.lists(st.sampled_from(["la", "la ", " ", "", "li\n", "é"]), min_size=1),
        ids=st.sampled_from(
            ["numbers", "numbers of the stream", "numbers of the server", "opaque", "none"]
        ),
        honours=st.sampled_from(["exactly", "inclusively", "with some more", "starts over"]),
        completion=st.sampled_from(["chatcmpl-{}", "chatcmpl", ""]),
        roles=st.sampled_from(["first", "all", "none"]),
        ends=st.booleans(),
    ),
    cuts=st.lists(st.integers(0, 12), max_size=6),
)
def test_whatever_a_server_makes_of_the_cursor_the_text_is_whole(
    server: Server, cuts: list[int]
) -> None:
    reader = Reader(Resumption(BODY, ResumePolicy()))
    for cut in [*cuts, None]:
        request = reader.resumption.next_request()
        events = server.answer(request.headers.get("Last-Event-ID"))[:cut]
        try:
            reader.hear(*events)
            if reader.resumption.decoder.complete:
                reader.end()
                break
        except StartedOver:
            continue
        reader.resumption.ended_early(None)
    else:  # The last place had nothing behind it: once more, from the beginning.
        reader.ask()
        reader.hear(*server.answer(None))
        reader.end()
    assert reader.text == "".join(server.texts)


def test_done_is_decoded_as_the_end() -> None:
    reader = broken_after("Once")
    assert reader.resumption.decoder.decode(ServerSentEvent("message", b"[DONE]")) == (DONE,)


class TestShortcut:
    """`append`, in place of `new_parts`, where more text of the first choice is simply new."""

    def test_more_text_is_appended_behind_the_first_of_an_attempt(self) -> None:
        reader = broken_after("Once ")
        reader.resumption.append([Delta(text="upon "), Delta(text="a time")])
        reader.ask()
        reader.hear(frame("Once upon a time, "), frame("long ago"))
        assert reader.text == "Once , long ago"  # What was appended, the reader has.
        assert reader.resumption.repeated == len("Once upon a time")

    def test_what_is_appended_counts_as_tokens_of_a_continued_answer(self) -> None:
        reader = broken_after("Once ", policy=VLLM, body={**BODY, "max_tokens": 10})
        reader.resumption.append([Delta(text="upon ")])
        body = reader.ask()
        assert body["max_tokens"] == 8
        assert body["messages"] == [USER, {"role": "assistant", "content": "Once upon"}]

    @pytest.mark.parametrize(
        "events",
        [
            [],
            [frame()],
            [frame(finish="stop")],
            [frame(finish="stop"), frame("held back")],
            [frame("Once"), frame(finish="stop")],
            [frame("Once", finish="stop")],
            [frame(reasoning="Hm")],
            [frame("Once"), frame(reasoning="Hm")],
            [frame("Once", reasoning="Hm")],
            [frame("Once"), frame(tool_calls=[{"index": 0, "id": "a", "name": "f"}])],
            [frame("Once", event_id="1")],
            [frame("Once"), frame(" upon", event_id="1")],
        ],
    )
    def test_not_behind_what_bears_on_it(self, events: list[ServerSentEvent]) -> None:
        reader = broken_after()
        reader.ask()
        reader.hear(*events)
        assert reader.resumption.open_text is None

    def test_not_before_the_answer_of_an_attempt_has_said_something_new(self) -> None:
        reader = broken_after("Once ", "upon ")
        assert reader.resumption.open_text is not None
        reader.ask()
        for text, is_open in (("Once ", False), ("upon ", False), ("a ", True), ("time", True)):
            assert reader.resumption.open_text is None or is_open
            reader.hear(frame(text))
            assert (reader.resumption.open_text is not None) is is_open

    @pytest.mark.parametrize("echo", [False, True])
    def test_behind_the_join_of_a_continued_answer(self, echo: bool) -> None:
        reader = broken_after("Once ", policy=ResumePolicy(continue_="vllm", echo=echo))
        reader.ask()
        if echo:
            reader.hear(frame("Once"))
            assert reader.resumption.open_text is None
        reader.hear(frame(" upon"))
        assert reader.resumption.open_text is not None

    def test_not_behind_another_choice(self) -> None:
        other = json.dumps({"choices": [{"index": 1, "delta": {"content": "x"}}]}).encode()
        reader = broken_after("Once ")
        reader.hear(ServerSentEvent("message", other))
        assert reader.resumption.open_text is None

    def test_not_in_a_stream_that_was_taken_up_by_its_ids(self) -> None:
        reader = broken_after("Once ", ids=True)
        reader.ask()
        reader.hear(frame("upon ", event_id="2"), frame("a time", event_id="3"))
        assert reader.resumption.open_text is None

    def test_where_an_answer_starts_over_behind_its_new_beginning(self) -> None:
        reader = broken_after("Once ", policy=ResumePolicy(on_divergence="restart"))
        reader.ask()
        reader.hear(frame("Long "))
        assert (reader.text, reader.restarts) == ("Long ", 1)
        reader.resumption.append([Delta(text="ago")])
        reader.ask()
        reader.hear(frame("Long ago"), frame(", far"))
        assert reader.text == "Long , far"

    def test_not_behind_the_end(self) -> None:
        reader = broken_after("Once")
        reader.hear(frame(finish="stop"))
        reader.end()
        assert reader.resumption.open_text is None
