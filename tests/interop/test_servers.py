"""What the other tests here rely on: how the engine and nginx behave, whoever asks them."""

import httpx
import pytest

from tests.interop import plain
from tests.interop.conftest import FIRST_KEY
from tests.interop.servers import MODEL, Engine, Front

CHATS = [[f"Chat {chat}: hello.", "Go on.", "And then?"] for chat in range(8)]


async def test_a_reply_begins_with_a_role_and_ends_without_done(engine: Engine) -> None:
    async with plain.client() as http:
        answer = await plain.ask(http, engine.base_url, [plain.user("Hello.")])
    assert answer.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, *texts, last = answer.chunks
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant"}}]
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
    assert last["usage"]["completion_tokens"] == 48
    assert texts
    for chunk in texts:
        assert list(chunk["choices"][0]["delta"]) == ["content"]
        assert "finish_reason" not in chunk["choices"][0]
        assert "usage" not in chunk


async def test_the_text_holds_control_characters_and_broken_utf_8(engine: Engine) -> None:
    answers = await plain.converse_at_once(engine.base_url, CHATS)
    text = "".join(answer.text for chat in answers for answer in chat)
    assert "\N{REPLACEMENT CHARACTER}" in text
    assert any(character < " " for character in text)


async def test_answers_repeat_exactly_one_by_one_and_many_at_once(
    engine: Engine, front: Front
) -> None:
    async with plain.client(authorization=f"Bearer {FIRST_KEY}") as http:
        alone = [await plain.converse(http, front.base_url, chat) for chat in CHATS]
    at_once = await plain.converse_at_once(engine.base_url, CHATS)
    texts = [[answer.text for answer in chat] for chat in alone]
    assert texts == [[answer.text for answer in chat] for chat in at_once]
    # Not one answer to everything.
    assert len({text for chat in texts for text in chat}) == len(CHATS) * 3


@pytest.mark.parametrize("key", ["", "Bearer sk-wrong"])
async def test_nginx_answers_a_wrong_key_with_a_page(front: Front, key: str) -> None:
    async with plain.client(authorization=key) as http:
        response = (await plain.ask(http, front.base_url, [plain.user("Hello.")])).response
    assert response.status_code == 401
    assert response.headers["content-type"] == "text/html"
    assert "www-authenticate" not in response.headers


@pytest.mark.parametrize(
    ("changes", "status", "detail"),
    [
        ({"model": "another"}, 400, f"Server is pinned to '{MODEL}'; requested 'another'."),
        ({"answer": 42}, 422, "Unexpected fields in the request: {'answer'}"),
    ],
)
async def test_the_engine_says_what_it_does_not_accept(
    engine: Engine, changes: dict[str, object], status: int, detail: str
) -> None:
    async with plain.client() as http:
        answer = await plain.ask(http, engine.base_url, [plain.user("Hello.")], **changes)
    assert answer.response.status_code == status
    assert httpx.Response(status, content=answer.body).json() == {"detail": detail}
