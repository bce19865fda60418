"""A plain HTTP/1.1 client on h11, to see a fake gateway's bytes as they come."""

import json
import zlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast

import h11
import trio

from gz_trio.testing import FakeGateway

CHAT = "/v1/chat/completions"

JSON = dict[str, object]


def chat(text: str = "Hello", **more: object) -> JSON:
    """The body of a streamed chat request."""
    message = {"role": "user", "content": text}
    return {"model": "fake-model", "messages": [message], "stream": True, **more}


@dataclass
class Answer:
    """What came of one request, and how it ended."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    end: Literal["complete", "cut", "reset"] = "complete"

    @property
    def content(self) -> bytes:
        """The body without its coding; of one that was cut, as much as can be decoded."""
        if self.headers.get("content-encoding") != "gzip":
            return self.body
        return zlib.decompressobj(wbits=31).decompress(self.body)

    @property
    def json(self) -> JSON:
        return cast("JSON", json.loads(self.content))

    @property
    def lines(self) -> list[str]:
        """What stood between blank lines: frames and comments."""
        return [part for part in self.content.decode().split("\n\n") if part]

    @property
    def data(self) -> list[str]:
        """The data of each frame."""
        fields = [field for part in self.lines for field in part.split("\n")]
        return [field.removeprefix("data: ") for field in fields if field.startswith("data: ")]

    @property
    def chunks(self) -> list[JSON]:
        """Every frame but `[DONE]`, parsed."""
        return [cast("JSON", json.loads(data)) for data in self.data if data != "[DONE]"]

    @property
    def error(self) -> JSON:
        """The one error frame."""
        (error,) = [chunk["error"] for chunk in self.chunks if "error" in chunk]
        return cast("JSON", error)

    def text(self, choice: int = 0, field: str = "content") -> str:
        """The text of one choice, joined."""
        text = ""
        for chunk in self.chunks:
            for item in cast("list[JSON]", chunk.get("choices", [])):
                if item["index"] == choice:
                    text += str(cast("JSON", item["delta"]).get(field) or "")
        return text


class Wire:
    """One connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)

    async def send(
        self,
        body: Mapping[str, object] | None = None,
        key: str | None = None,
        *,
        path: str = CHAT,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send one request, without waiting for the answer."""
        content = b"" if body is None else json.dumps(body).encode()
        fields = {"host": "gateway.test", "content-length": str(len(content)), **(headers or {})}
        if key is not None:
            fields["authorization"] = f"Bearer {key}"
        request = h11.Request(method=method, target=path, headers=list(fields.items()))
        data = self.http.send(request) or b""
        data += (self.http.send(h11.Data(data=content)) or b"") if content else b""
        await self.stream.send_all(data + (self.http.send(h11.EndOfMessage()) or b""))

    async def event(self) -> object:
        """The next h11 event; `None` where the connection was cut."""
        while True:
            try:
                event = self.http.next_event()
            except h11.RemoteProtocolError:
                return None
            if event is not h11.NEED_DATA:
                return event
            self.http.receive_data(bytes(await self.stream.receive_some(65_536)))

    async def until(self, part: bytes) -> bytes:
        """The body's bytes up to those that end with `part`."""
        body = b""
        while not body.endswith(part):
            event = await self.event()
            assert event is not None, body
            if isinstance(event, h11.Data):
                body += event.data
        return body

    async def answer(self) -> Answer:
        """The answer to the request that was sent, to its end."""
        answer = Answer()
        while True:
            try:
                event = await self.event()
            except trio.BrokenResourceError:
                answer.end = "reset"
                return answer
            if isinstance(event, h11.Response):
                answer.status = event.status_code
                answer.headers = {
                    name.decode(): value.decode() for name, value in event.headers.raw_items()
                }
                answer.headers = {name.lower(): v for name, v in answer.headers.items()}
            elif isinstance(event, h11.Data):
                answer.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
                    self.http.start_next_cycle()
                return answer
            elif event is None or isinstance(event, h11.ConnectionClosed):
                answer.end = "cut"
                return answer

    async def ask(
        self,
        body: Mapping[str, object] | None = None,
        key: str | None = None,
        *,
        path: str = CHAT,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request and its answer."""
        await self.send(body, key, path=path, method=method, headers=headers)
        return await self.answer()


class Connect(Protocol):
    """Opens a connection to a fake gateway: in memory, or over TCP."""

    def __call__(self, gateway: FakeGateway) -> AbstractAsyncContextManager[Wire]: ...


@asynccontextmanager
async def in_memory(gateway: FakeGateway) -> AsyncGenerator[Wire]:
    async with gateway.connect() as stream:
        yield Wire(stream)


@asynccontextmanager
async def over_tcp(gateway: FakeGateway) -> AsyncGenerator[Wire]:
    async with gateway.listen() as base_url:
        host, port = base_url.removeprefix("http://").removesuffix("/v1").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            yield Wire(stream)
