"""What the load server sends, as a client without tricks sees it."""

import select
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from time import perf_counter_ns

import httpx
import pytest

from benchmarks.load_server import Counts, Lateness, Plan
from benchmarks.peers.wire import EventStream, body
from benchmarks.processes import Process

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="the server wants epoll")


@contextmanager
def serving(plan: Plan) -> Generator[tuple[str, Callable[[str], Counts]]]:
    process = Process("benchmarks.load_server", plan, 0, {})
    try:
        url = f"http://127.0.0.1:{int(process.read())}/v1/chat/completions"
        yield url, lambda command: process.ask(command, Counts)
    finally:
        process.end()


def texts(response: httpx.Response, count: int) -> list[str]:
    """The first so many."""
    events = EventStream()
    found: list[str] = []
    for data in response.iter_bytes():
        for chunk in events.feed(data):
            found += [choice.delta.content or "" for choice in chunk.choices]
        if len(found) >= count:
            break
    return found


def test_a_token_tells_when_it_was_due_and_when_it_was_written() -> None:
    with (
        serving(Plan(streams=1, interval=0.01)) as (url, _),
        httpx.stream("POST", url, json=body(0)) as response,
    ):
        stamps = [tuple(map(int, text.split())) for text in texts(response, 5)]
    dues = [due for due, _ in stamps]
    assert [later - due for due, later in pairwise(dues)] == [10_000_000] * 4
    assert all(due <= written <= perf_counter_ns() for due, written in stamps)


def test_streams_begin_when_the_last_of_them_has_been_asked_for() -> None:
    with (
        serving(Plan(streams=2, interval=0.01)) as (url, ask),
        httpx.stream("POST", url, json=body(0)) as first,
    ):
        assert first.status_code == 200
        assert ask("mark").tokens == 0
        with httpx.stream("POST", url, json=body(1)) as second:
            assert texts(first, 1)
            assert texts(second, 1)


def test_an_answer_that_finishes_leaves_its_connection_for_the_next() -> None:
    with serving(Plan(first=1, finish=True)) as (url, ask), httpx.Client() as client:
        for number in range(3):
            answer = client.post(url, json=body(number))
            assert answer.text.endswith("data: [DONE]\n\n")
        assert ask("mark").accepted == 1


def test_streams_end_when_their_key_does_and_are_a_token_longer_under_the_next() -> None:
    with (
        serving(Plan(first=1, stamped=False)) as (url, ask),
        httpx.Client(headers={"Authorization": "Bearer sk-1"}) as client,
    ):
        with client.stream("POST", url, json=body(0)) as response:
            ask("rotate sk-2")
            assert '"type":"auth_error"' in "".join(response.iter_text())
        assert client.post(url, json=body(0)).status_code == 401
        client.headers["Authorization"] = "Bearer sk-2"
        with client.stream("POST", url, json=body(0)) as response:
            assert len(texts(response, 2)) == 2
        assert ask("mark").rejected == 1


def test_an_answer_of_its_own_is_paced_from_when_it_was_asked_for_and_ends() -> None:
    with (
        serving(Plan(tokens=5, interval=0.01)) as (url, ask),
        httpx.Client() as client,
    ):
        asked = perf_counter_ns()
        events = EventStream()
        chunks = events.feed(client.post(url, json=body(0)).content)
        texts = [choice.delta.content for chunk in chunks for choice in chunk.choices]
        stamps = [tuple(map(int, text.split())) for text in texts if text]
        dues = [due for due, _ in stamps]
        assert [later - due for due, later in pairwise(dues)] == [10_000_000] * 4
        assert all(due <= written <= perf_counter_ns() for due, written in stamps)
        assert asked <= dues[0]
        assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "stop"
        assert [c.usage.completion_tokens for c in chunks if c.usage is not None] == [5]
        counts = ask("mark")
        assert (counts.answers, counts.answering) == (1, stamps[-1][1] - dues[0])
        client.post(url, json=body(1))
        assert (ask("mark").answers, ask("mark").accepted) == (2, 1)


def test_answers_begin_at_any_time_and_are_whole() -> None:
    with serving(Plan(tokens=20, interval=0.01)) as (url, _), ExitStack() as stack:
        found: list[list[str]] = []
        for number in range(3):
            response = stack.enter_context(httpx.stream("POST", url, json=body(number)))
            found.append(texts(response, 5 * (3 - number)))
        assert [len(one) for one in found] == [15, 10, 5]
        assert len({text for one in found for text in one}) == 30


def test_lateness_is_that_since_it_was_last_asked_for() -> None:
    plan = Plan(tokens=5, interval=0.01)
    process = Process("benchmarks.load_server", plan, 0, {})
    try:
        httpx.post(f"http://127.0.0.1:{int(process.read())}/v1/chat/completions", json=body(0))
        late = process.ask("lateness", Lateness)
        assert late.samples == 5
        assert 0 < late.p99 <= late.max
        assert process.ask("lateness", Lateness) == Lateness(0, 0, 0)
    finally:
        process.end()


def test_flat_out_means_that_only_the_client_ends_it() -> None:
    with (
        serving(Plan(streams=1, interval=0, per_write=20)) as (url, _),
        httpx.stream("POST", url, json=body(0)) as response,
    ):
        assert len(texts(response, 5000)) >= 5000
