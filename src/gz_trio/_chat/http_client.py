"""A gateway as the transport of an httpx client: its keys and its recovery, for others' SDKs.

A streamed answer of the three APIs is a `Reply` beneath, and what its reader gets is written as an
event stream again. Everything else is sent with the key, once more where that was rejected, and
handed on as it comes. What fails is told as the client's own transport would, or as the gateway
did; see `_failure`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Protocol, Self, TypeVar, cast

import httpx
import msgspec
import trio

from .._auth.authenticator import Authenticator
from .._protocol import lenient_json
from .._protocol.apis import APIS, CHAT, RESPONSES, Api
from .._protocol.errors import (
    APIConnectionError,
    AuthenticationError,
    EmptyResponseError,
    GatewayError,
    ProtocolError,
    StreamInterrupted,
    StreamTimeout,
    error_from_response,
)
from .._protocol.events import Delta, Finished, RawEvent
from .._protocol.keys import KEY_HEADERS, Key
from .._protocol.relaying import event_name, with_names
from .._protocol.resumption import NextRequest
from .._protocol.settings import Timeouts
from .._protocol.sse import encode_event
from .._transport.httpx_transport import IDEMPOTENT, joined_headers, with_base
from .._transport.interface import Request, Response, Transport, seconds_of
from .._transport.origin import Origin
from .bodies import read_error_body
from .receiving import Receiver, ReplySettings
from .recovering import Recovering, to_nobody
from .reply import Reply
from .requests import Requests
from .streaming import BodyReply

_NOT_SENT_ON = KEY_HEADERS | {
    # Of the client's connection, which there is none of, or made anew.
    "accept-encoding", "connection", "content-length", "expect", "host", "keep-alive",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip
_NOT_HANDED_ON = {
    "connection", "content-encoding", "content-length", "keep-alive", "trailer",
    "transfer-encoding",
}  # fmt: skip

MOST_RENAMED = 10_000
"""Ids are kept as long as the gateway is open, but not more of them."""

_EVENT_STREAM = "text/event-stream"

_T = TypeVar("_T")
ClientT = TypeVar("ClientT")
_ClientT_co = TypeVar("_ClientT_co", covariant=True)


class HttpxClients(Protocol[_ClientT_co]):
    """The module `httpx`, or its maintained continuation `httpx2`: anything with that API."""

    @property
    def AsyncClient(self) -> Callable[..., _ClientT_co]:  # noqa: N802  httpx's own name
        """The class of its clients."""
        ...


def new_http_client(
    module: HttpxClients[ClientT],
    requests: Requests,
    transport: Transport,
    authenticator: Authenticator,
    *,
    make_reply: Callable[..., tuple[Receiver, Reply]],
    settings: ReplySettings,
    renamed: Renamed,
    now: Callable[[], float],
) -> ClientT:
    """See `Gateway.http_client`; the arguments are those of `GatewayTransport`."""
    named = cast("ModuleType", module)
    timeouts = settings.timeouts
    silences = (timeouts.first_token, timeouts.between_tokens)
    # httpx has one for both.
    timeout = named.Timeout(None, connect=timeouts.connect, read=max(map(seconds_of, silences)))
    transport_class = with_base(GatewayTransport, named.AsyncBaseTransport)
    return module.AsyncClient(
        base_url=requests.base_url,
        transport=transport_class(
            named,
            requests,
            transport,
            authenticator,
            make_reply=make_reply,
            settings=settings,
            default_timeout=timeout.as_dict(),
            renamed=renamed,
            now=now,
        ),
        timeout=timeout,
        trust_env=False,
    )


class GatewayTransport:
    """The transport of `Gateway.http_client`, but for its base.

    Args:
        module: The client's: `httpx`, or `httpx2`.
        requests: Makes the requests.
        transport: Sends them.
        authenticator: What holds the key.
        make_reply: Makes a reply of a body, and what receives it.
        settings: How often to try again, how long to wait where the client does not say, and how
            to resume.
        default_timeout: What the client has where it does not say.
        renamed: The ids that the gateway does not know.
        now: Unix time in seconds.
    """

    def __init__(
        self,
        module: ModuleType,
        requests: Requests,
        transport: Transport,
        authenticator: Authenticator,
        *,
        make_reply: Callable[..., tuple[Receiver, Reply]],
        settings: ReplySettings,
        default_timeout: Mapping[str, float | None],
        renamed: Renamed,
        now: Callable[[], float],
    ) -> None:
        self._module = module
        self._requests = requests
        self._transport = transport
        self._authenticator = authenticator
        self._make_reply = make_reply
        self._settings = settings
        self._default_timeout = default_timeout
        self._renamed = renamed
        self._now = now
        self._origin = Origin.of(requests.base_url)
        base_path = httpx.URL(requests.base_url).path.rstrip("/")
        # Of an SDK's base URL and the gateway's, either may lack the `/v1`.
        self._apis = {
            f"{base_path}{version}{api.path}": api
            for version in ("", "/v1")
            for api in APIS.values()
        }

    async def __aenter__(self) -> Self:
        """Not a checkpoint: the connections are the gateway's."""
        return self  # noqa: ASYNC910 - there is nothing to open

    async def __aexit__(self, *_exception: object) -> None:
        """Not a checkpoint, likewise."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, and wait for its answer to begin. A checkpoint."""
        if not self._is_ours(request.url):
            raise self._module.UnsupportedProtocol(
                f"this client sends the key of {self._origin} with each request: what goes to "
                f"{request.url.host or 'no host'} by {request.url.scheme} needs another client"
            )
        call = _Call(request, await request.aread(), self._apis, self._renamed)
        answer = self._stream(call, call.api) if call.api and call.streams else self._send(call)
        try:
            return await answer
        except trio.ClosedResourceError as error:  # The gateway is being closed.
            raise broken(self._module, error) from error

    # What is sent

    def _is_ours(self, url: httpx.URL) -> bool:
        """Whether it is of the gateway's origin."""
        try:
            return Origin.of(str(url)) == self._origin
        except ProtocolError:
            return False

    def _headers(self, call: _Call) -> dict[str, str]:
        """The gateway's own, and the call's, which come first."""
        headers = {name.lower(): value for name, value in self._requests.headers.items()}
        for name, value in joined_headers(call.request.headers.raw).items():
            if name.lower() not in _NOT_SENT_ON:
                headers[name.lower()] = value
        return headers

    def _timeouts(self, call: _Call) -> Timeouts:
        """The client's. They count the gateway's silence, and not what we wait for."""
        ours = self._settings.timeouts
        given: Mapping[str, float | None] | None = call.request.extensions.get("timeout")
        if given in (None, self._default_timeout):
            return ours
        read = given.get("read")
        return Timeouts(
            connect=given.get("connect"), first_token=read, between_tokens=read, total=ours.total
        )

    # Streams

    async def _stream(self, call: _Call, api: Api) -> httpx.Response:
        """Answer with a stream that recovers, once its first event is here."""
        head = _Head()
        base_url = call.url.removesuffix(api.path)
        async with AsyncExitStack() as stack:
            block = BodyReply(
                partial(
                    self._make_reply,
                    call.body,
                    # An SDK's reader cannot be told to drop what it has.
                    resume=replace(self._settings.resume, on_divergence="raise"),
                    timeouts=self._timeouts(call),
                    api=api,
                    make_request=partial(self._attempt, base_url, call.query, self._headers(call)),
                    on_head=head.came,
                )
            )
            events = _Events(await stack.enter_async_context(block), block, api, self._renamed)
            try:
                first = await events.next()
            except GatewayError as error:
                return self._failure(error, head)
            make_body = with_base(_EventBody, self._module.AsyncByteStream)
            body = make_body(self._module, events, first, stack.pop_all().aclose)
        if not head.headers.get("content-type", "").startswith(_EVENT_STREAM):
            head.headers["content-type"] = _EVENT_STREAM  # It was a whole completion.
        return self._respond(head, stream=body)

    def _attempt(
        self,
        base_url: str,
        query: str,
        ours: Mapping[str, str],
        key: Key,
        request: NextRequest,
        *,
        headers: Mapping[str, str],
        connect_timeout: float | None,
    ) -> Request:
        """One attempt at a stream; see `Receiver`."""
        parameters = f"{'&' if '?' in request.path else '?'}{query}" if query else ""
        return self._requests.with_key(
            request.method,
            f"{base_url}{request.path}{parameters}",
            key,
            content=request.content,
            headers={**request.headers, **ours, **headers, "accept": _EVENT_STREAM},
            connect_timeout=connect_timeout,
            repeatable=True,
        )

    # Everything else

    async def _send(self, call: _Call) -> httpx.Response:
        """Answer with what the gateway does, to a key that it accepts."""
        head = _Head()
        timeouts = self._timeouts(call)
        headers = self._headers(call)
        recovering = Recovering(
            self._authenticator,
            origin=str(self._origin),
            model=call.model,
            policy=self._settings.retry,
            announce=to_nobody,
        )
        try:
            while True:
                key = await recovering.next_key()
                request = self._requests.with_key(
                    call.request.method,
                    f"{call.url}?{call.query}" if call.query else call.url,
                    key,
                    content=call.content,
                    headers=headers,
                    connect_timeout=timeouts.connect,
                    repeatable=call.is_repeatable,
                )
                try:
                    answer = await self._try_once(call, request, head, timeouts)
                except GatewayError as failure:
                    # What else may be sent again, its caller knows.
                    if call.api is None and not isinstance(failure, AuthenticationError):
                        raise
                    await recovering.after(failure)
                else:
                    if head.status < 400:
                        recovering.accepted()
                    return answer
        except GatewayError as error:
            return self._failure(error, head)  # noqa: ASYNC910 - whatever failed was one

    async def _try_once(
        self, call: _Call, request: Request, head: _Head, timeouts: Timeouts
    ) -> httpx.Response:
        # Of an answer that is no stream the head comes when it is there.
        response = await self._in_time(self._transport.send(request), timeouts.first_token)
        silence = timeouts.between_tokens
        handed_on = False
        try:
            head.came(response.status, response.headers)
            if response.status == 401 or (call.api is not None and response.status >= 400):
                body = await read_error_body(response)
                raise error_from_response(response.status, response.headers, body, now=self._now())
            if call.api is not None:
                content = bytearray()
                while piece := await self._in_time(response.receive(), silence):
                    content += piece
                return self._respond(head, content=bytes(content))
            handed_on = True
            passed = with_base(_Body, self._module.AsyncByteStream)
            return self._respond(head, stream=passed(self, response, silence))
        finally:
            if not handed_on:
                response.close()

    async def receive(self, response: Response, silence: float | None) -> bytes:
        """The next bytes of an answer's body, for who reads on. A checkpoint."""
        try:
            return await self._in_time(response.receive(), silence)
        except (GatewayError, trio.ClosedResourceError) as error:
            raise broken(self._module, error) from error

    async def _in_time(self, step: Coroutine[object, object, _T], silence: float | None) -> _T:  # noqa: ASYNC910 - the step's
        """What `step` gives, unless the gateway is silent for longer, in seconds."""
        with trio.move_on_after(seconds_of(silence)):
            return await step
        raise StreamTimeout(f"{self._origin} sent nothing for {silence:g} s", which="first_token")

    # Answers

    def _respond(self, head: _Head, **content: object) -> httpx.Response:
        response: httpx.Response = self._module.Response(
            head.status,
            headers=[
                (name.encode("latin-1"), value.encode("latin-1", "replace"))
                for name, value in head.headers.items()
                if name not in _NOT_HANDED_ON
            ],
            extensions={"http_version": b"HTTP/1.1"},
            **content,
        )
        return response

    def _failure(self, error: GatewayError, head: _Head) -> httpx.Response:
        """What the client is told where nothing of an answer has come: a response, or it raises.

        What the gateway said is told as it said it. That no key is accepted is told in our words,
        since they say what to do. Either way our retries were enough: the SDKs are told so.
        """
        if isinstance(error, AuthenticationError):
            fields = {"message": str(error), "type": error.type or "authentication_error"}
            content = msgspec.json.encode(
                # Of the Messages API `type`, of the others what is in `error` alone.
                {"type": "error", "error": {**fields, "param": None, "code": error.code}}
            )
            head.status, head.headers["content-type"] = 401, "application/json"
        elif error.body is None or isinstance(error, _BROKEN):
            raise broken(self._module, error) from error
        else:
            content = error.body
            if head.status < 400:  # It was said in a stream, or with a 200.
                head.status = error.status or 502
                head.headers["content-type"] = "application/json"
        head.headers["x-should-retry"] = "false"
        return self._respond(head, content=content)


def broken(module: ModuleType, error: Exception) -> Exception:
    """The error of the client's module for what broke an answer, or kept it from beginning.

    Others are not known to the SDKs, nor to whoever catches httpx's.
    """
    kind = module.ReadTimeout if isinstance(error, StreamTimeout) else module.ReadError
    told: Exception = kind(str(error))
    return told


_BROKEN = (APIConnectionError, EmptyResponseError, ProtocolError, StreamInterrupted, StreamTimeout)


class _Call:
    """A request of the client's, read.

    Args:
        request: It.
        content: Its body.
        apis: The APIs whose answers recover, by the path.
        names: Ids that the server does not know.

    Attributes:
        url: Without the query.
        query: The rest, without the question mark.
        api: Which of the APIs is asked; `None`: another route, or a body that is no object.
        body: The JSON object that is sent there.
    """

    def __init__(
        self, request: httpx.Request, content: bytes, apis: Mapping[str, Api], names: Renamed
    ) -> None:
        self.request = request
        self.content = content
        self.url = names.in_url(str(request.url.copy_with(query=None, fragment=None)))
        self.query = request.url.query.decode("ascii")
        self.api = apis.get(request.url.path) if request.method == "POST" else None
        self.body: dict[str, object] = {}
        if self.api is not None:
            try:
                body = lenient_json.as_object(msgspec.json.decode(content))
            except lenient_json.MSGSPEC_ERRORS:
                body = None
            self.api = None if body is None else self.api
            if self.api is RESPONSES and names:
                body = names.in_body(body)
                self.content = msgspec.json.encode(body)
            self.body = body or {}

    @property
    def streams(self) -> bool:
        """Whether the answer is to be a stream."""
        return self.body.get("stream") is True

    @property
    def model(self) -> str | None:
        """The model that is asked."""
        model = self.body.get("model")
        return model if isinstance(model, str) else None

    @property
    def is_repeatable(self) -> bool:
        """Whether it does no harm if it is carried out twice."""
        idempotent = self.request.method in IDEMPOTENT
        return self.api is not None or idempotent or "idempotency-key" in self.request.headers


class Renamed:
    """The ids that readers were told of answers which came again, under others, from the server.

    They may ask about them later: to go on with `previous_response_id`, say.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # The oldest first.

    def add(self, names: Mapping[str, str]) -> None:
        """These were told for those of the server."""
        if not names:
            return
        self._names |= names
        for oldest in list(self._names)[:-MOST_RENAMED]:
            del self._names[oldest]

    def __bool__(self) -> bool:
        return bool(self._names)

    def in_body(self, body: object) -> dict[str, object]:
        """A request's body, with the server's own."""
        return cast("dict[str, object]", with_names(body, self._names))

    def in_url(self, url: str) -> str:
        """Its URL, likewise."""
        return "/".join(self._names.get(part, part) for part in url.split("/"))


class _Head:
    """The status and the headers of the last answer of a gateway, as far as they are handed on."""

    def __init__(self) -> None:
        self.status = 502
        self.headers: dict[str, str] = {}

    def came(self, status: int, headers: Mapping[str, str]) -> None:
        """An answer has begun."""
        self.status = status
        self.headers = dict(headers)


class _Events:
    """Writes what the reader of a reply gets as an event stream.

    Args:
        reply: The reply.
        block: Its block.
        api: The API that is asked.
        renamed: Is told of the ids that the server does not know.
    """

    def __init__(self, reply: Reply, block: BodyReply, api: Api, renamed: Renamed) -> None:
        self._events = reply.events()
        self._block = block
        self._api = api
        self._renamed = renamed

    async def next(self) -> bytes:
        """The next event. A checkpoint.

        Raises:
            GatewayError: The reply has failed.
            StopAsyncIteration: It is over.
        """
        while True:
            match await anext(self._events):
                case Delta(raw=raw, finish_reason=finish_reason) if raw:
                    if finish_reason is not None:  # Soon somebody may ask about the answer.
                        self._renamed.add(self._block.renamed)
                    return encode_event(None if self._api is CHAT else event_name(raw), raw)
                case RawEvent(event=name, data=data):
                    return encode_event(None if name == "message" else name, data)
                case Finished() if self._api is CHAT:
                    return encode_event(None, b"[DONE]")
                case _:
                    pass


class _EventBody:
    """A reply as the body of a response, one event in each piece; but for its base.

    Args:
        module: The client's.
        events: What it is made of.
        first: The first of them, which has been read.
        leave: Leaves the reply's block.
    """

    def __init__(
        self,
        module: ModuleType,
        events: _Events,
        first: bytes,
        leave: Callable[[], Awaitable[None]],
    ) -> None:
        self._module = module
        self._events = events
        self._first: bytes | None = first
        self._leave = leave

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next event. A checkpoint."""
        if self._first is not None:
            await trio.lowlevel.checkpoint()
            first, self._first = self._first, None
            return first
        try:
            return await self._events.next()
        except (GatewayError, trio.ClosedResourceError) as error:
            raise broken(self._module, error) from error

    async def aclose(self) -> None:
        """Leave the reply; its connection is closed, unless all has been read. A checkpoint."""
        await self._leave()


class _Body:
    """The body of a response as it comes; but for its base.

    Args:
        transport: Of the client.
        response: Whose body it is.
        silence: How long the gateway may be silent, in seconds, or `None`.
    """

    def __init__(
        self, transport: GatewayTransport, response: Response, silence: float | None
    ) -> None:
        self._transport = transport
        self._response = response
        self._silence = silence

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes. A checkpoint."""
        piece = await self._transport.receive(self._response, self._silence)
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:  # noqa: ASYNC910 - it never waits
        """Give the connection back, or close it. No checkpoint: it never waits."""
        self._response.close()
