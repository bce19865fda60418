"""What the engine says, read without this library: by httpx and a few lines for its shape."""

import json
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from tests.interop.servers import MODEL

Message = dict[str, str]


def chunks_of(body: bytes) -> list[Any]:
    """The chunks in a body of whole events, each a line and a blank one; comments do not count."""
    *events, rest = body.decode().split("\n\n")
    assert rest == ""
    lines = [event.split("\n")[-1] for event in events]
    assert all(line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [json.loads(each) for each in data if each != "[DONE]"]


def text_of(body: bytes) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks_of(body)
        for choice in chunk["choices"]
    )


@dataclass(frozen=True)
class Answer:
    response: httpx.Response
    body: bytes

    @property
    def chunks(self) -> list[Any]:
        return chunks_of(self.body)

    @property
    def text(self) -> str:
        return text_of(self.body)

    @property
    def finish_reason(self) -> str | None:
        reasons = [chunk["choices"][0].get("finish_reason") for chunk in self.chunks]
        return reasons[-1] if reasons else None


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


async def whole_chats(base_url: str, candidates: list[list[str]]) -> list[list[str]]:
    """The chats among `candidates` in which every answer has text, and an end within 100 tokens.

    A chat is a list of questions going in, a list of questions and answers in turn coming out.
    Sessions of the library set no limit of tokens, and the model may go on for 1,024 of them; a
    reply without text is an error there.
    """
    chats: dict[int, list[str]] = {}

    async def consider(number: int) -> None:
        messages: list[Message] = []
        for question in candidates[number]:
            messages.append(user(question))
            answer = await ask(http, base_url, messages, max_tokens=100)
            if not (answer.text and answer.finish_reason == "stop"):
                return
            messages.append({"role": "assistant", "content": answer.text})
        chats[number] = [message["content"] for message in messages]

    async with client() as http, trio.open_nursery() as nursery:
        for number in range(len(candidates)):
            nursery.start_soon(consider, number)
    return [chats[number] for number in sorted(chats)]
