"""What the engine says, read without this library: by httpx and a few lines for its shape."""

import json
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from tests.interop.servers import MODEL

Message = dict[str, str]


@dataclass(frozen=True)
class Answer:
    response: httpx.Response
    body: bytes

    @property
    def events(self) -> list[str]:
        """The data of each event; the engine writes every event as one line and a blank one."""
        *events, rest = self.body.decode().split("\n\n")
        assert rest == ""
        assert all(event.startswith("data: ") for event in events)
        return [event.removeprefix("data: ") for event in events]

    @property
    def chunks(self) -> list[Any]:
        return [json.loads(event) for event in self.events]

    @property
    def text(self) -> str:
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in self.chunks)

    @property
    def ended_by_itself(self) -> bool:
        return bool(self.chunks[-1]["choices"][0]["finish_reason"] == "stop")


def client(**headers: str) -> httpx.AsyncClient:
    """For as many requests at once as one likes."""
    return httpx.AsyncClient(
        headers=headers, timeout=60.0, limits=httpx.Limits(max_connections=None), trust_env=False
    )


async def ask(
    http: httpx.AsyncClient, base_url: str, messages: list[Message], **changes: object
) -> Answer:
    body = {"model": MODEL, "messages": messages, "stream": True, "max_tokens": 48} | changes
    async with http.stream("POST", f"{base_url}/chat/completions", json=body) as response:
        return Answer(response, b"".join([part async for part in response.aiter_raw()]))


def user(text: str) -> Message:
    return {"role": "user", "content": text}


async def converse(http: httpx.AsyncClient, base_url: str, turns: list[str]) -> list[Answer]:
    """A chat: each turn is asked with all that was said before it."""
    messages: list[Message] = []
    answers: list[Answer] = []
    for turn in turns:
        messages.append(user(turn))
        answers.append(await ask(http, base_url, messages))
        messages.append({"role": "assistant", "content": answers[-1].text})
    return answers


async def converse_at_once(base_url: str, chats: list[list[str]]) -> list[list[Answer]]:
    answers: list[list[Answer]] = [[] for _ in chats]

    async def one(number: int) -> None:
        answers[number] = await converse(http, base_url, chats[number])

    async with client() as http, trio.open_nursery() as nursery:
        for number in range(len(chats)):
            nursery.start_soon(one, number)
    return answers


async def whole_answers(
    http: httpx.AsyncClient, base_url: str, turns: list[str]
) -> list[str] | None:
    """What the model says in a chat with no limit of tokens; `None` if an answer is long or empty.

    Sessions of the library set no limit, and left alone the model may go on for 1,024 tokens; a
    reply without text is an error there.
    """
    messages: list[Message] = []
    for turn in turns:
        messages.append(user(turn))
        answer = await ask(http, base_url, messages, max_tokens=100)
        if not (answer.text and answer.ended_by_itself):
            return None
        messages.append({"role": "assistant", "content": answer.text})
    return [message["content"] for message in messages[1::2]]
