"""What the page asks the proxy for, and what it is told."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from gz_trio import FileKeyStore, Key, open_authenticator, open_gateway
from gz_trio.proxy import open_proxy
from gz_trio.testing import Cut, FakeGateway, SeenRequest, Stall, Status
from tests.proxy.fronts import Front, open_front
from tests.secrets_guard import secret

# httpx leaves its generators to the garbage collector where a stream is not read to its end.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http(x|core):ResourceWarning")

News = dict[str, Any]

FILES = resources.files("gz_trio.proxy").joinpath("page")


def counted(_body: Mapping[str, object], _attempt: int) -> list[str]:
    return [f"word-{number} " for number in range(12)]


COUNTED = "".join(counted({}, 1))


def question(
    text: str, *, turn: str = "1", session: str | None = None, remember: bool = True
) -> dict[str, object]:
    return {
        "turn": turn,
        "tab": "tab-1",
        "model": "fake-model",
        "question": text,
        "session": session,
        "remember": remember,
        "messages": [],
    }


@asynccontextmanager
async def open_client(fake: FakeGateway) -> AsyncGenerator[tuple[Front, httpx.AsyncClient]]:
    async with open_front(fake, local_token=False) as front, front.stranger() as client:
        yield front, client


async def ask(client: httpx.AsyncClient, body: dict[str, object]) -> list[News]:
    answer = await client.post("/page/turns", json=body)
    assert answer.status_code == 200
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


def text_in(news: list[News]) -> str:
    return "".join(str(each["text"]) for each in news if each["event"] == "delta")


def kept(fake: FakeGateway) -> list[list[tuple[object, object]]]:
    return [
        [(message["role"], message["content"]) for message in fake.history.messages(session)]
        for session in fake.history.sessions
    ]


class Listener:
    """An event stream that is read."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def until(self, event: str) -> News:
        """The next news of this kind."""
        with trio.fail_after(10):
            while True:
                line = await anext(self._lines)
                if line:
                    news: News = msgspec.json.decode(line.removeprefix("data: "))
                    if news["event"] == event:
                        return news


@asynccontextmanager
async def listening(client: httpx.AsyncClient, tab: str) -> AsyncGenerator[Listener]:
    async with client.stream("GET", f"/page/events?tab={tab}") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Listener(answer.aiter_lines())


def messages_in(request: SeenRequest) -> list[dict[str, str]]:
    return msgspec.convert((request.body or {}).get("messages", []), list[dict[str, str]])


# Turns


async def test_a_turn_is_told_as_it_comes_and_saved_once() -> None:
    fake = FakeGateway(answer=counted)
    async with open_client(fake) as (_, client):
        first = await ask(client, question("Hello?"))
        session = str(first[-1]["session"])
        second = await ask(client, question("Go on.", turn="2", session=session))
    assert first[0] == {
        "event": "asked",
        "turn": "1",
        "session": None,
        "model": "fake-model",
        "question": "Hello?",
    }
    assert text_in(first) == text_in(second) == COUNTED
    assert first[-1]["event"] == second[-1]["event"] == "finished"
    assert second[-1]["session"] == session
    assert kept(fake) == [
        [("user", "Hello?"), ("assistant", COUNTED), ("user", "Go on."), ("assistant", COUNTED)]
    ]
    asked = [messages_in(request) for request in fake.requests if messages_in(request)]
    assert [message["content"] for message in asked[-1]] == ["Hello?", COUNTED, "Go on."]


async def test_a_pause_for_a_new_key_is_told_and_the_text_comes_once() -> None:
    fake = FakeGateway(answer=counted)
    was_told = trio.Event()

    async def refresh(_: Key | None) -> str:
        await was_told.wait()
        return await fake.refresh()

    news: list[News] = []
    async with (
        open_front(fake, refresh=refresh, local_token=False) as front,
        front.stranger() as client,
    ):
        fake.rotate()
        async with client.stream("POST", "/page/turns", json=question("Hello?")) as answer:
            async for line in answer.aiter_lines():
                news.append(msgspec.json.decode(line))
                if news[-1]["event"] == "paused":
                    was_told.set()
    assert news[1] == {"event": "paused", "turn": "1", "reason": "refresh", "seconds": None}
    kinds = [each["event"] for each in news if each["event"] != "delta"]
    assert kinds == ["asked", "paused", "resumed", "finished"]
    assert text_in(news) == COUNTED
    assert kept(fake) == [[("user", "Hello?"), ("assistant", COUNTED)]]


async def test_an_answer_in_other_words_starts_over() -> None:
    def sampled(_body: Mapping[str, object], attempt: int) -> list[str]:
        return ["One ", "two."] if attempt == 1 else ["Another."]

    fake = FakeGateway(answer=sampled)
    fake.fault(Cut(), token=1)
    async with open_client(fake) as (_, client):
        news = await ask(client, question("Hello?"))
    restart = [each["event"] for each in news].index("restarted")
    assert text_in(news[restart:]) == "Another."
    assert kept(fake) == [[("user", "Hello?"), ("assistant", "Another.")]]


async def test_where_the_refresh_is_refused_the_turn_ends_with_the_words_and_is_not_saved() -> None:
    fake = FakeGateway()
    fake.refuse_refresh = True
    async with open_client(fake) as (_, client):
        fake.rotate()
        news = await ask(client, question("Hello?"))
    assert news[-1] == {
        "event": "error",
        "turn": "1",
        "message": "Authentication failed after refresh attempt. Please log in again.",
        "sign_in": True,
    }
    assert kept(fake) == []


async def test_a_tab_that_hangs_up_ends_the_reply_upstream() -> None:
    fake = FakeGateway(answer=counted)
    fake.fault(Stall(inf), token=3)
    async with open_client(fake) as (_, client), listening(client, "tab-1") as listener:
        async with client.stream("POST", "/page/turns", json=question("Hello?")) as answer:
            async for line in answer.aiter_lines():
                if "word-2" in line:
                    break
        assert (await listener.until("stopped"))["turn"] == "1"
        assert fake.open_streams == 0
    assert kept(fake) == []


async def test_a_turn_in_a_session_waits_for_the_one_before_it() -> None:
    fake = FakeGateway(answer=counted)
    async with open_client(fake) as (_, client):
        session = str((await ask(client, question("One.")))[-1]["session"])
        async with trio.open_nursery() as nursery:
            for turn in ("2", "3"):
                nursery.start_soon(ask, client, question(turn, turn=turn, session=session))
    roles = [role for role, _ in kept(fake)[0]]
    assert roles == ["user", "assistant"] * 3
    asked = [len(messages_in(request)) for request in fake.requests if messages_in(request)]
    assert asked == [1, 3, 5]


async def test_what_cannot_be_saved_is_told_and_answered_all_the_same() -> None:
    fake = FakeGateway(answer=counted)
    fake.history.refuse = lambda message: message["role"] == "user"
    fake.fault(Status(413), path="/v1/chat/sessions/{id}/messages", times=None)
    async with open_client(fake) as (_, client):
        news = await ask(client, question("Hello?"))
    assert text_in(news) == COUNTED
    assert news[-1]["event"] == "finished"
    assert news[-1]["session"] is None
    assert "could not be saved" in str(news[-1]["unsaved"])


async def test_a_conversation_that_is_not_kept_comes_with_the_question() -> None:
    fake = FakeGateway(answer=counted)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    async with open_client(fake) as (_, client):
        news = await ask(client, {**question("c", remember=False), "messages": said})
    assert news[-1]["session"] is None
    assert news[-1]["unsaved"] is None
    assert messages_in(fake.requests[-1]) == [*said, {"role": "user", "content": "c"}]
    assert kept(fake) == []


async def test_a_model_without_a_name_is_told_in_words() -> None:
    async with open_client(FakeGateway()) as (_, client):
        news = await ask(client, {**question("Hello?"), "model": " "})
    assert news[-1]["event"] == "error"
    assert "model" in str(news[-1]["message"])


# The event stream


async def test_other_tabs_are_told_of_a_turn_its_own_of_the_end() -> None:
    fake = FakeGateway(answer=counted)
    async with open_client(fake) as (_, client):
        session = str((await ask(client, question("One.")))[-1]["session"])
        async with listening(client, "tab-1") as own, listening(client, "tab-2") as other:
            await own.until("account")
            await other.until("account")
            await ask(client, question("Two.", turn="2", session=session))
            assert (await other.until("asked"))["question"] == "Two."
            assert (await other.until("finished"))["session"] == session
            assert (await other.until("changed"))["sessions"] == [session]
            assert [(await own.until("finished"))["turn"] for _ in range(2)] == ["1", "2"]


async def test_a_tab_that_comes_in_the_middle_of_an_answer_is_told_all_of_it() -> None:
    fake = FakeGateway(answer=counted)
    async with open_client(fake) as (_, client):
        session = str((await ask(client, question("One.")))[-1]["session"])
        fake.fault(Stall(inf), token=3)
        body = question("Two.", turn="2", session=session)
        async with client.stream("POST", "/page/turns", json=body) as answer:
            async for line in answer.aiter_lines():
                if "word-2" in line:
                    break
            async with listening(client, "tab-2") as other:
                assert (await other.until("asked"))["turn"] == "2"
                said = await other.until("delta")
    assert said["text"] == "word-0 word-1 word-2 "


async def test_a_tab_that_was_away_is_told_what_became_of_its_turn() -> None:
    async with open_client(FakeGateway()) as (_, client):
        await ask(client, question("One."))
        async with listening(client, "tab-1") as own:
            assert (await own.until("finished"))["turn"] == "1"


async def test_every_tab_is_told_who_is_signed_in() -> None:
    fake = FakeGateway()
    async with open_client(fake) as (front, client), listening(client, "tab-2") as other:
        first = await other.until("account")
        assert first["status"] == "authenticated"
        assert (await client.post("/page/sign-out")).json() is None
        out = await other.until("account")
        assert (out["status"], out["epoch"]) == ("unauthenticated", None)
        body = {"key": f" {fake.key}\n", "same_account": False}
        assert (await client.post("/page/sign-in", json=body)).json() is None
        again = await other.until("account")
        assert again["status"] == "authenticated"
        assert again["epoch"] != first["epoch"]
        body = {"key": secret("new"), "same_account": True}
        assert (await client.post("/page/sign-in", json=body)).json() is None
        assert front.gateway.authenticator.state.key is not None
        assert front.gateway.authenticator.state.key.epoch == again["epoch"]


async def test_a_sign_in_in_another_process_is_told(tmp_path: Path) -> None:
    fake = FakeGateway()
    async with (
        open_authenticator(FileKeyStore(tmp_path / "key.json")) as authenticator,
        open_gateway(fake.base_url, authenticator) as gateway,
        open_proxy(gateway, local_token=False, log=lambda _line: None) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=30) as client,
        listening(client, "tab-1") as listener,
    ):
        assert (await listener.until("account"))["status"] == "unauthenticated"
        async with open_authenticator(FileKeyStore(tmp_path / "key.json")) as other:
            await other.sign_in(fake.key)
        assert (await listener.until("account"))["status"] == "authenticated"


async def test_leaving_the_proxy_ends_event_streams_at_once_and_lets_turns_end() -> None:
    fake = FakeGateway(answer=counted)
    fake.fault(Stall(inf), token=3)
    leave = trio.Event()

    async def serve(task_status: trio.TaskStatus[str]) -> None:
        async with open_front(fake, local_token=False) as front:
            task_status.started(front.proxy.url)
            await leave.wait()

    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve)
        async with (
            httpx.AsyncClient(base_url=url, timeout=30) as client,
            client.stream("POST", "/page/turns", json=question("Hello?")) as answer,
        ):
            lines = answer.aiter_lines()
            told = ""
            while "word-2" not in told:
                told += await anext(lines)
            async with client.stream("GET", "/page/events?tab=tab-2") as events:
                leave.set()
                async for _ in events.aiter_lines():
                    pass
            fake.rotate()
            assert [line async for line in lines][-1].startswith('{"event":"finished"')
    assert kept(fake) == [[("user", "Hello?"), ("assistant", COUNTED)]]


# The history


async def test_sessions_are_listed_read_renamed_and_deleted_and_every_tab_is_told() -> None:
    fake = FakeGateway(answer=counted)
    async with open_client(fake) as (_, client), listening(client, "tab-2") as other:
        await other.until("account")
        session = str((await ask(client, question("Hello?")))[-1]["session"])
        await other.until("changed")
        one = {"id": session, "title": "Hello?", "model": "fake-model"}
        assert (await client.get("/page/sessions")).json() == {
            "history": True,
            "sessions": [one],
            "more": False,
        }
        messages = [
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": COUNTED},
        ]
        path = f"/page/sessions/{session}"
        assert (await client.get(path)).json() == {**one, "messages": messages}
        assert (await client.put(path, json={"title": "New"})).json() is None
        assert (await other.until("changed"))["sessions"] == [session]
        assert (await client.get(path)).json()["title"] == "New"
        assert (await client.delete(path)).json() is None
        assert (await other.until("changed"))["sessions"] == [session]
        gone = await client.get(path)
    assert gone.status_code == 200
    assert "no such session" in gone.json()["error"]
    assert not gone.json()["sign_in"]


async def test_of_many_sessions_the_older_ones_come_when_they_are_asked_for() -> None:
    fake = FakeGateway()
    async with open_client(fake) as (front, client):
        for number in range(52):
            await front.gateway.history.create(f"Chat {number}", "fake-model")
        first = (await client.get("/page/sessions")).json()
        rest = (await client.get("/page/sessions?offset=50")).json()
        wrong = await client.get("/page/sessions?offset=x")
    assert (len(first["sessions"]), first["more"]) == (50, True)
    assert [each["title"] for each in rest["sessions"]] == ["Chat 1", "Chat 0"]
    assert not rest["more"]
    assert wrong.status_code == 400


async def test_a_gateway_that_keeps_no_history_is_told_as_one() -> None:
    fake = FakeGateway()
    fake.fault(Status(404), path="/v1/chat/sessions", times=None)
    async with open_client(fake) as (_, client):
        answer = (await client.get("/page/sessions")).json()
    assert answer == {"history": False, "sessions": [], "more": False}


# Everything else


async def test_the_models_are_those_that_the_gateway_names() -> None:
    async with open_client(FakeGateway(models=["b", "a"])) as (_, client):
        assert (await client.get("/page/models")).json() == {"models": ["a", "b"], "default": None}


@pytest.mark.parametrize("fault", [Status(404), Status(200, "no JSON"), Cut()])
async def test_where_it_names_none_one_is_named_by_hand(fault: Status | Cut) -> None:
    fake = FakeGateway()
    fake.fault(fault, path="/v1/models", times=None)
    async with open_client(fake) as (_, client):
        assert (await client.get("/page/models")).json() == {"models": [], "default": None}


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        ("{}", "application/json", 400),
        (f'{{"key": ["{secret("key")}"], "same_account": true}}', "application/json", 400),
        (f'{{"key": "{secret("key")}"', "application/json", 400),
        (f'{{"key": "{secret("key")}", "same_account": true}}', "text/plain", 415),
    ],
)
async def test_what_the_page_would_not_send_is_refused_and_not_quoted(
    content: str, media_type: str, status: int
) -> None:
    async with open_client(FakeGateway()) as (front, client):
        headers = {"content-type": media_type}
        answer = await client.post("/page/sign-in", content=content, headers=headers)
    assert answer.status_code == status
    assert secret("key") not in answer.text + "".join(front.log)


async def test_a_key_that_can_be_none_is_refused_in_words() -> None:
    async with open_client(FakeGateway()) as (_, client):
        body = {"key": f"{secret('one')} {secret('two')}", "same_account": True}
        answer = (await client.post("/page/sign-in", json=body)).json()
    assert "a space" in answer["error"]
    assert secret("one") not in answer["error"]


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/sessions", "/page/nothing.js"])
async def test_everything_is_sent_with_the_headers_that_keep_the_page_to_itself(path: str) -> None:
    async with open_client(FakeGateway()) as (_, client):
        headers = (await client.get(path)).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "dompurify",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-dns-prefetch-control"] == "off"


async def test_a_file_that_a_browser_has_is_not_sent_again() -> None:
    async with open_client(FakeGateway()) as (_, client):
        first = await client.get("/page/app.js")
        again = await client.get("/page/app.js", headers={"if-none-match": first.headers["etag"]})
        other = await client.get(
            "/page/style.css", headers={"if-none-match": first.headers["etag"]}
        )
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    assert (again.status_code, again.content) == (304, b"")
    assert other.status_code == 200


async def test_nothing_but_the_pages_own_files_is_served() -> None:
    async with open_client(FakeGateway()) as (_, client):
        for name in ("README.md", "marked.LICENSE", "../_page.py", "%2e%2e%2f_page.py"):
            assert (await client.get(f"/page/{name}")).status_code == 404


def test_the_page_asks_for_files_that_are_there_and_holds_no_script_of_its_own() -> None:
    page = FILES.joinpath("index.html").read_text(encoding="utf-8")
    for name in re.findall(r'(?:src|href)="/page/([^"]+)"', page):
        assert FILES.joinpath(name).is_file()
    assert re.findall(r"<script(?![^>]* src=)|<style| style=| on\w+=", page) == []


def test_other_peoples_files_are_whole_and_come_with_their_licences() -> None:
    readme = FILES.joinpath("README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| `([0-9a-f]{64})` \|$", readme, re.MULTILINE)
    assert [name for name, _ in rows] == ["marked.esm.js", "purify.min.js"]
    for name, digest in rows:
        assert sha256(FILES.joinpath(name).read_bytes()).hexdigest() == digest
        assert FILES.joinpath(f"{name.partition('.')[0]}.LICENSE").is_file()
