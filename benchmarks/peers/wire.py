"""What the peers without a library of their own share: the request, events, and typed chunks."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec

KEY, NEW_KEY = "sk-1", "sk-2"
MODEL = "gpt-4o-mini"


def body(number: int) -> dict[str, object]:
    """The request of one stream."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Question {number}"}],
        "stream": True,
    }


def request(base_url: str, number: int) -> bytes:
    """The same, as HTTP/1.1 has it."""
    content = msgspec.json.encode(body(number))
    url = urlsplit(base_url)
    return (
        f"POST {url.path}/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode() + content


class Delta(msgspec.Struct, gc=False):
    """Of a choice: what the chunk adds to it."""

    role: str | None = None
    content: str | None = None


class Choice(msgspec.Struct, gc=False):
    """Of a chunk."""

    delta: Delta
    index: int = 0
    finish_reason: str | None = None


class Usage(msgspec.Struct, gc=False):
    """Tokens used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Chunk(msgspec.Struct, gc=False):
    """One event of a stream; msgspec skips the fields that are not here."""

    choices: list[Choice]
    usage: Usage | None = None


_decode = msgspec.json.Decoder(Chunk).decode
_END_OF_EVENT = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_DONE = b"[DONE]"


class EventStream:
    """Makes chunks of the bytes of an event stream, however they are cut."""

    __slots__ = ("_partial",)

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> list[Chunk]:
        """The chunks that `data` completes."""
        # Nearly always it is one whole event of one line.
        if (
            not self._partial
            and data.startswith(b"data: ")
            and data.find(b"\n") == len(data) - 2
            and data.endswith(b"\n")
        ):
            content = data[6:-2]
            return [] if content == _DONE else [_decode(content)]
        *events, self._partial = _END_OF_EVENT.split(self._partial + data)
        chunks: list[Chunk] = []
        for event in events:
            lines = [
                line[5:].removeprefix(b" ")
                for line in event.splitlines()
                if line.startswith(b"data:")
            ]
            content = b"\n".join(lines)
            if content and content != _DONE:
                chunks.append(_decode(content))
        return chunks
