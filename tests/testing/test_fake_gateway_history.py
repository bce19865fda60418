"""The history that the fake gateway keeps: its routes, its two envelopes, and what goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from gz_trio.testing import Cut, ErrorFrame, FakeGateway, FakeHistory, Reset, Stall, Status
from gz_trio.testing._plan import HISTORY_PATHS, HistoryPath
from tests.testing.fake_gateway_wire import JSON, Answer, Connect, Wire, in_memory

MESSAGES: HistoryPath = "/v1/chat/sessions/{id}/messages"
BATCH: HistoryPath = "/v1/chat/sessions/{id}/messages/batch"


def message(content: str, **more: object) -> JSON:
    return {"role": "user", "content": content, **more}


async def ask(
    wire: Wire,
    gateway: FakeGateway,
    method: str,
    path: str,
    body: Mapping[str, object] | None = None,
) -> Answer:
    return await wire.ask(body, gateway.key, path=f"/v1/chat{path}", method=method)


async def begin(wire: Wire, gateway: FakeGateway, title: str = "A story") -> int:
    answer = await ask(wire, gateway, "POST", "/sessions", {"title": title, "model": "m"})
    return cast("int", cast("JSON", answer.json["data"])["id"])


def contents(gateway: FakeGateway, session_id: int) -> list[object]:
    return [message["content"] for message in gateway.history.messages(session_id)]


async def test_a_session_is_begun_read_changed_and_deleted(connect: Connect) -> None:
    gateway = FakeGateway()
    async with connect(gateway) as wire:
        session_id = await begin(wire, gateway)
        saved = await ask(
            wire, gateway, "POST", f"/sessions/{session_id}/messages", message("Hi", tokens=2)
        )
        changed = await ask(wire, gateway, "PUT", f"/sessions/{session_id}", {"title": "New"})
        read = await ask(wire, gateway, "GET", f"/sessions/{session_id}")
        deleted = await ask(wire, gateway, "DELETE", f"/sessions/{session_id}")
        gone = await ask(wire, gateway, "GET", f"/sessions/{session_id}")
    assert cast("JSON", saved.json["data"])["session_id"] == session_id
    data = cast("JSON", read.json["data"])
    assert (data["title"], data["model"], read.json["success"]) == ("New", "m", True)
    assert data["messages"] == [saved.json["data"]]
    assert changed.json["data"] == data
    assert deleted.json["success"] is True
    assert (gone.status, gone.json) == (404, {"detail": "Chat session not found"})
    assert gateway.history.sessions == {}


async def test_lists_are_in_pages_the_last_used_session_first() -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        first, second, third = [await begin(wire, gateway, title) for title in ("a", "b", "c")]
        await ask(wire, gateway, "POST", f"/sessions/{first}/messages", message("Hi"))
        everything = await ask(wire, gateway, "GET", "/sessions")
        page = await ask(wire, gateway, "GET", "/sessions?limit=1&offset=1")
        wrong = await ask(wire, gateway, "GET", "/sessions?limit=101")
    listed = cast("list[JSON]", everything.json["data"])
    assert [session["id"] for session in listed] == [first, third, second]
    assert all("messages" not in session for session in listed)
    assert everything.json["count"] == 3
    assert [s["id"] for s in cast("list[JSON]", page.json["data"])] == [third]
    assert wrong.status == 422


async def test_search_looks_through_titles_and_messages() -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        one = await begin(wire, gateway, "About cats")
        two = await begin(wire, gateway, "Other")
        await ask(wire, gateway, "POST", f"/sessions/{two}/messages", message("My CAT sleeps"))
        await begin(wire, gateway, "Dogs")
        found = await ask(wire, gateway, "POST", "/search", {"query": "cat", "limit": 5})
    assert {s["id"] for s in cast("list[JSON]", found.json["data"])} == {one, two}


async def test_feedback_and_statistics() -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        session_id = await begin(wire, gateway)
        await ask(wire, gateway, "POST", f"/sessions/{session_id}/messages", message("a", tokens=3))
        given = await ask(
            wire,
            gateway,
            "POST",
            "/feedback",
            {"feedback_type": "thumbs_up", "session_id": session_id},
        )
        listed = await ask(wire, gateway, "GET", "/feedback")
        odd = await ask(wire, gateway, "POST", "/feedback", {"feedback_type": "meh"})
        stats = await ask(wire, gateway, "GET", "/stats")
    assert listed.json["data"] == [given.json["data"]] == gateway.history.feedback
    assert odd.status == 422
    assert stats.json["stats"] == {"total_sessions": 1, "total_messages": 1, "total_tokens": 3}


async def test_without_the_envelope() -> None:
    gateway = FakeGateway()
    gateway.history.bare = True
    async with in_memory(gateway) as wire:
        session = (await ask(wire, gateway, "POST", "/sessions", {"title": "t"})).json
        path = f"/sessions/{session['id']}"
        saved = (await ask(wire, gateway, "POST", f"{path}/messages", message("Hi"))).json
        read = (await ask(wire, gateway, "GET", path)).json
        listed = (await ask(wire, gateway, "GET", "/sessions")).json
        stats = (await ask(wire, gateway, "GET", "/stats")).json
    assert session["title"] == "t"
    assert read["messages"] == [saved]
    assert isinstance(listed, list)
    assert cast("JSON", stats["data"])["total_messages"] == 1


async def test_a_session_is_read_by_the_time_of_its_messages() -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        session_id = await begin(wire, gateway)
        path = f"/sessions/{session_id}/messages"
        for content, minute in (("b", 2), ("a", 1), ("c", 3)):
            at = f"2026-11-01T12:0{minute}:00Z"
            await ask(wire, gateway, "POST", path, message(content, created_at=at))
        assert contents(gateway, session_id) == ["a", "b", "c"]
        gateway.history.keeps_created_at = False
        late = message("0", created_at="2020-01-01T00:00:00Z")
        await ask(wire, gateway, "POST", path, late)
    assert contents(gateway, session_id) == ["a", "b", "c", "0"], "the gateway's own time"


async def test_a_batch_fails_in_part() -> None:
    gateway = FakeGateway()
    gateway.history.refuse = lambda message: message["content"] == "b"
    async with in_memory(gateway) as wire:
        session_id = await begin(wire, gateway)
        batch = {"messages": [message(content) for content in "abc"]}
        answer = await ask(wire, gateway, "POST", f"/sessions/{session_id}/messages/batch", batch)
        single = await ask(wire, gateway, "POST", f"/sessions/{session_id}/messages", message("b"))
    data = cast("JSON", answer.json["data"])
    assert (answer.status, answer.json["success"]) == (200, False)
    assert [data[f"{name}_count"] for name in ("success", "failure")] == [2, 1]
    assert data["failed"] == [{"success": False, "error": "refused", "content_preview": "b"}]
    assert single.status == 500
    assert contents(gateway, session_id) == ["a", "c"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/sessions/99/messages", message("a"), 404),
        ("GET", "/sessions/abc", None, 422),
        ("POST", "/sessions/1/messages", {"role": "user"}, 422),
        ("POST", "/sessions/1/messages/batch", {"messages": "a"}, 422),
        ("POST", "/sessions", None, 422),
        ("DELETE", "/sessions", None, 405),
        ("GET", "/sessions/1/messages", None, 405),
        ("GET", "/sessions/1/elsewhere", None, 404),
        ("GET", "/elsewhere", None, 404),
        ("POST", "/feedback", {"feedback_type": "thumbs_up", "session_id": 99}, 404),
    ],
)
async def test_what_cannot_be_done_is_refused(
    method: str, path: str, body: JSON | None, status: int
) -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        assert await begin(wire, gateway) == 1
        assert (await ask(wire, gateway, method, path, body)).status == status
    assert contents(gateway, 1) == []


@pytest.mark.parametrize("path", HISTORY_PATHS)
async def test_every_route_needs_a_key(path: HistoryPath) -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        answer = await wire.ask({}, "sk-dead", path=path.replace("{id}", "1"))
        assert (answer.status, gateway.rejected) == (401, 1)
        gateway.fault(Status(429), path=path)
        assert (await wire.ask({}, gateway.key, path=path.replace("{id}", "1"))).status == 429


# What goes wrong


@pytest.mark.parametrize(("fault", "end"), [(Cut(), "cut"), (Reset(), "reset")])
async def test_an_answer_is_lost_after_what_was_asked_is_done(
    connect: Connect, fault: Cut | Reset, end: str
) -> None:
    gateway = FakeGateway()
    async with connect(gateway) as wire:
        session_id = await begin(wire, gateway)
        gateway.fault(fault, path=MESSAGES, token=0)
        answer = await ask(wire, gateway, "POST", f"/sessions/{session_id}/messages", message("a"))
    assert (answer.status, answer.end) == (None, end)
    assert contents(gateway, session_id) == ["a"]
    assert gateway.requests[-1].faults == [fault]
    assert not gateway.requests[-1].complete


async def test_a_request_is_lost_before_it_is_carried_out() -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        session_id = await begin(wire, gateway)
        gateway.fault(Cut(), path=MESSAGES)
        answer = await ask(wire, gateway, "POST", f"/sessions/{session_id}/messages", message("a"))
    assert answer.end == "cut"
    assert contents(gateway, session_id) == []


async def test_an_answer_is_cut_in_its_middle_or_replaced_or_late(
    autojump_clock: MockClock,
) -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        session_id = await begin(wire, gateway)
        path = f"/sessions/{session_id}/messages"
        gateway.fault(Status(504), path=MESSAGES, token=0)
        assert (await ask(wire, gateway, "POST", path, message("a"))).status == 504
        gateway.fault(Stall(9), path=MESSAGES, token=0)
        before = trio.current_time()
        assert (await ask(wire, gateway, "POST", path, message("b"))).status == 200
        assert trio.current_time() - before == 9
        gateway.fault(Cut(after_bytes=3), path=MESSAGES)
        assert (await ask(wire, gateway, "POST", path, message("c"))).body == b'{"s'
    assert contents(gateway, session_id) == ["a", "b", "c"]


async def test_a_fault_names_a_route_for_all_sessions() -> None:
    gateway = FakeGateway()
    gateway.fault(Status(503), path=MESSAGES, request=2)
    async with in_memory(gateway) as wire:
        statuses: list[int | None] = []
        for session_id in [await begin(wire, gateway), await begin(wire, gateway)]:
            path = f"/sessions/{session_id}/messages"
            statuses.append((await ask(wire, gateway, "POST", path, message("a"))).status)
    assert statuses == [200, 503]


@pytest.mark.parametrize(("fault", "token"), [(Cut(), 1), (ErrorFrame(), None), (ErrorFrame(), 0)])
def test_faults_of_streams_have_no_place_in_the_history(
    fault: Cut | ErrorFrame, token: int | None
) -> None:
    with pytest.raises(ValueError, match=r"piece|no stream"):
        FakeGateway().fault(fault, path=BATCH, token=token)


def test_what_is_shown_of_a_history() -> None:
    assert repr(FakeHistory()) == "<FakeHistory sessions=0 messages=0>"
    with pytest.raises(KeyError):
        FakeHistory().messages(1)
