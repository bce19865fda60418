"""A gateway: one base URL, the connections to it, the defaults of every reply, and its sessions."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from functools import partial
from typing import Literal, overload

import httpx
import trio
from trio.lowlevel import enable_ki_protection

from .._auth.authenticator import Authenticator, Refresh, open_authenticator
from .._auth.stores import KeyStore, MemoryKeyStore
from .._background import Background
from .._protocol.apis import CHAT, RESPONSES, Api, ApiName, api_named
from .._protocol.keys import Key
from .._protocol.resumption import Resumption
from .._protocol.settings import ResumePolicy, RetryPolicy, Timeouts
from .._transport.choosing import open_transport, open_websocket
from .._transport.interface import Request, Transport
from .._transport.origin import Origin
from .buffer import EventBuffer
from .history import History
from .history_calls import HistoryCalls
from .http_client import ClientT, HttpxClients, Renamed, new_http_client
from .receiving import Receiver, ReplySettings
from .remembering import open_remembering
from .reply import Reply
from .requests import KeyHeader, Requests
from .saving import Saver
from .session import Session, SessionBlock
from .streaming import BodyReply, ReplyBlock
from .telemetry import ReplyTelemetry


class Gateway:
    """One gateway: sends requests with the authenticator's key. Made by `open_gateway`."""

    def __init__(
        self,
        authenticator: Authenticator,
        transport: Transport,
        nursery: trio.Nursery,
        *,
        requests: Requests,
        settings: ReplySettings,
        now: Callable[[], float],
    ) -> None:
        self._requests = requests
        self._origin = str(Origin.of(requests.base_url))
        self._authenticator = authenticator
        self._transport = transport
        self._nursery = nursery
        self._settings = settings
        self._now = now
        self._renamed = Renamed()
        # Once for all replies: each of them keeps both.
        self._receive = self._make_reply
        self._make_request = requests.of_reply
        self._history_calls = HistoryCalls(
            transport,
            authenticator,
            origin=self._origin,
            make_request=requests.of_call,
            retry=settings.retry,
            timeouts=settings.timeouts,
            now=now,
        )
        self._saver = Saver(now)
        self._history = History(self._history_calls, self._saver)

    def __repr__(self) -> str:
        return f"<Gateway {self._requests.base_url}>"

    @property
    def resume(self) -> ResumePolicy:
        """How a reply is taken up that broke, unless its own policy says otherwise."""
        return self._settings.resume

    @property
    def authenticator(self) -> Authenticator:
        """What holds the key; shared by all that this gateway sends."""
        return self._authenticator

    @property
    def history(self) -> History:
        """The chats that this gateway keeps for the account of the key."""
        return self._history

    def open_session(
        self,
        model: str,
        *,
        messages: Sequence[Mapping[str, object]] | None = None,
        extra_body: Mapping[str, object] | None = None,
        remember: bool | int | str = False,
        api: ApiName = "chat",
        transport: Literal["http", "websocket"] = "http",
    ) -> AbstractAsyncContextManager[Session]:
        """A chat session over this gateway, with its authenticator.

        Args:
            model: The model's name, as the gateway knows it.
            messages: The conversation so far, a system message first, say, in the form of the API.
                It is not saved.
            extra_body: Further fields of each request's body: `{"temperature": 0}`, `tools`, ...
            remember: Whether each turn is saved in the gateway's `history`, in the background; or
                the id of a session there to go on with: its messages follow `messages`.
            api: Which of the gateway's APIs is asked: `"chat"` for chat completions,
                `"responses"`, or `"messages"`, Anthropic's, of which `max_tokens` is 4096 unless
                `extra_body` says otherwise.
            transport: `"websocket"`: by the Responses API's WebSocket mode, over one connection
                for the whole session, which has to be a direct one.

        Raises:
            ValueError: `model` is empty, `api` or `transport` none of these, or they do not go
                together.
            GatewayError: The session to go on with cannot be read.
            SaveError: On exit, where the block raised nothing: what is in its `unsaved` could not
                be saved, nor in the 10 seconds that leaving the block waits for it.

        >>> async def main() -> None:
        ...     fake = FakeGateway(key="sk-1")
        ...     async with (
        ...         fake.http_client() as client,
        ...         open_gateway(fake.base_url, "sk-1", http_client=client) as gateway,
        ...         gateway.open_session("fake-model") as session,
        ...     ):
        ...         answer = await session.ask("Tell me a story.")
        ...         print(answer == fake.intended({"messages": session.messages[:1]}))
        >>> trio.run(main)
        True
        """
        chosen = api_named(api)
        websocket = None
        match transport:
            case "http":
                pass
            case "websocket" if chosen is RESPONSES:
                websocket = open_websocket(self._transport)
            case "websocket":
                raise ValueError('the WebSocket mode is that of api="responses"')
            case _:
                raise ValueError(f"transport is {transport!r}, but must be 'http' or 'websocket'")
        if remember is not False or websocket is not None:
            return self._open_session(model, messages, extra_body, remember, chosen, websocket)
        # Not a generator: there are as many as there are streams.
        return SessionBlock(
            Session(self, self._receive, model, messages, extra_body=extra_body, api=chosen)
        )

    @asynccontextmanager
    @enable_ki_protection
    async def _open_session(  # noqa: PLR0917 - for the one caller above
        self,
        model: str,
        messages: Sequence[Mapping[str, object]] | None,
        extra_body: Mapping[str, object] | None,
        remember: bool | int | str,
        api: Api,
        websocket: AbstractAsyncContextManager[Transport] | None,
    ) -> AsyncGenerator[Session]:
        so_far = list(messages or ())
        session_id = None if isinstance(remember, bool) else remember
        if session_id is not None:
            past = await self._history.get(session_id)
            so_far += [{"role": m.role, "content": m.content} for m in past.messages]
        async with AsyncExitStack() as stack:
            receive, remembering = self._receive, None
            if websocket is not None:
                transport = await stack.enter_async_context(websocket)
                receive = partial(self._make_reply, transport=transport)
            if remember is not False:
                remembering = await stack.enter_async_context(
                    open_remembering(self._history_calls, self._saver, model, session_id)
                )
            yield Session(
                self,
                receive,
                model,
                so_far,
                extra_body=extra_body,
                api=api,
                remembering=remembering,
            )

    def stream(
        self,
        body: Mapping[str, object],
        *,
        retry: RetryPolicy | None = None,
        resume: ResumePolicy | None = None,
        timeouts: Timeouts | None = None,
        api: ApiName = "chat",
    ) -> ReplyBlock:
        """Send a request to a model and stream the reply; `stream` is set to true.

        Leaving the block ends the request. Errors come out of the reply's iteration.

        Args:
            body: The request's JSON body, as OpenAI documents it, or Anthropic. Of
                `stream_options` that the server does not know `include_usage` is left out when it
                says so.
            retry: In place of the gateway's own.
            resume: In place of the gateway's own.
            timeouts: In place of the gateway's own.
            api: Which of the gateway's APIs is asked; see `open_session`.

        Raises:
            TypeError: `body` holds something that JSON cannot.
            ValueError: There is no such `api`.

        >>> async def main() -> None:
        ...     fake = FakeGateway(key="sk-1")
        ...     async with (
        ...         fake.http_client() as client,
        ...         open_gateway(fake.base_url, "sk-1", http_client=client) as gateway,
        ...         gateway.stream({"model": "fake-model", "messages": []}) as reply,
        ...     ):
        ...         async for delta in reply:
        ...             pass
        ...         print(reply.finish_reason)
        >>> trio.run(main)
        stop
        """
        return BodyReply(partial(self._receive, body, retry, resume, timeouts, api=api_named(api)))

    @overload
    def http_client(self) -> httpx.AsyncClient: ...

    @overload
    def http_client(self, module: HttpxClients[ClientT]) -> ClientT: ...

    def http_client(self, module: HttpxClients[object] = httpx) -> object:
        """A client for other people's code: an SDK, say, that takes one.

        Its base URL is the gateway's, and to that origin alone it sends requests. Each has the
        authenticator's key, in place of whatever key the caller has put into it; where the gateway
        rejects it, it is sent again after the one refresh. Streamed answers of chat completions,
        the Responses API and the Messages API go on over a refresh, a lost connection, a rate
        limit as those of `stream` do: what is read is one event stream, with nothing lost and
        nothing doubled. Where the answer to a second request is another one, it ends in an error,
        even if `ResumePolicy` would have it restart: its reader could not be told.

        Failures are those of httpx: the gateway's answer as a response, with `x-should-retry:
        false`, which ends the SDKs' own retries; a 401 that says "Please log in again." where no
        key can be had; `ReadError` and `ReadTimeout`, chained to the `GatewayError`, for an answer
        that broke or did not come.

        The timeout `read` is how long the gateway may be silent, pauses not counted, and `connect`
        how long a connection may take; the client has the gateway's `Timeouts` by default. A
        request's content is read into memory, to be sent again. The client need not be closed; it
        works until the gateway is.

        Args:
            module: The client's module: `httpx`, or `httpx2`, which the OpenAI and the Anthropic
                SDK take.

        >>> import httpx
        >>> async def main() -> None:
        ...     fake = FakeGateway(key="sk-2")
        ...     async with (
        ...         fake.http_client() as inner,
        ...         open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator,
        ...         open_gateway(fake.base_url, authenticator, http_client=inner) as gateway,
        ...     ):
        ...         response = await gateway.http_client(httpx).get("/models")
        ...         print(response.status_code, fake.refreshes)
        >>> trio.run(main)
        200 1
        """
        return new_http_client(
            module,
            self._requests,
            self._transport,
            self._authenticator,
            make_reply=self._receive,
            settings=self._settings,
            renamed=self._renamed,
            now=self._now,
        )

    def _make_reply(
        self,
        body: Mapping[str, object],
        retry: RetryPolicy | None = None,
        resume: ResumePolicy | None = None,
        timeouts: Timeouts | None = None,
        *,
        api: Api = CHAT,
        transport: Transport | None = None,
        make_request: Callable[..., Request] | None = None,
        on_head: Callable[[int, Mapping[str, str]], None] | None = None,
    ) -> tuple[Receiver, Reply]:
        """For `ReplyBlock`: a reply, and what receives it. As for `stream`, and `Receiver`."""
        settings = self._settings
        if retry or resume or timeouts:
            settings = ReplySettings(
                retry=retry or settings.retry,
                resume=resume or settings.resume,
                timeouts=timeouts or settings.timeouts,
            )
        if transport is not None:
            body = {**body, "background": False}  # There is none over WebSocket.
        elif api is RESPONSES and settings.resume.background:
            body = {"background": True, "store": True, **body}
        model = body.get("model")
        model = model if isinstance(model, str) else None
        buffer = EventBuffer()
        receiver = Receiver(
            self._nursery,
            transport or self._transport,
            self._authenticator,
            origin=self._origin,
            model=model,
            make_request=make_request or self._make_request,
            resumption=Resumption({**body, "stream": True}, settings.resume, api),
            settings=settings,
            now=self._now,
            buffer=buffer,
            telemetry=ReplyTelemetry(body, self._origin, api),
            on_head=on_head,
        )
        return receiver, Reply(model, buffer, receiver)


@asynccontextmanager
@enable_ki_protection
async def open_gateway(
    base_url: str,
    auth: Authenticator | Key | str,
    *,
    headers: Mapping[str, str] | None = None,
    key_header: KeyHeader = "Authorization",
    retry: RetryPolicy | None = None,
    resume: ResumePolicy | None = None,
    timeouts: Timeouts | None = None,
    http_client: httpx.AsyncClient | None = None,
    ssl_context: ssl.SSLContext | None = None,
    now: Callable[[], float] = time.time,
) -> AsyncGenerator[Gateway]:
    """Connections, defaults and key for one gateway.

    Args:
        base_url: With the scheme and, where the gateway has one, the `/v1`.
        auth: What holds the key, shared with as many gateways as you like; or a plain key, which
            nothing refreshes.
        headers: Sent with every request. Key headers among them are left out, as are
            `Content-Type` and `Accept`.
        key_header: The header that carries the key.
        retry: How often to try again.
        resume: What becomes of a reply that broke and came again with other words.
        timeouts: How long a reply may be silent.
        http_client: An `httpx.AsyncClient` (or `httpx2.AsyncClient`) of your own, for what our own
            transport does not do: HTTP/2, Unix sockets, a proxy of your choice (one that the
            environment names is used without). It is not closed here. Its timeouts, redirects and
            `auth` are not used.
        ssl_context: What certificates are trusted, for `https://`: of a private authority, say. By
            default those of `SSL_CERT_FILE` or `SSL_CERT_DIR`, else certifi's.
        now: Unix time in seconds.

    Raises:
        ValueError: `base_url` has no scheme, no host or a port that is none, the key is none,
            `http_client` and `ssl_context` are both given, or the environment's proxy cannot be
            used.
        APIConnectionError: The process may open no more files.

    An example is at `Gateway.stream`.
    """
    async with AsyncExitStack() as stack:
        base_url = _checked_base_url(base_url)
        requests = Requests(base_url, headers, key_header)
        transport = await stack.enter_async_context(
            open_transport(base_url, http_client, ssl_context)
        )
        if not isinstance(auth, Authenticator):
            auth = await stack.enter_async_context(open_authenticator(MemoryKeyStore(auth)))
        nursery = await stack.enter_async_context(Background("gateway"))
        yield Gateway(
            auth,
            transport,
            nursery,
            requests=requests,
            settings=ReplySettings(
                retry or RetryPolicy(), resume or ResumePolicy(), timeouts or Timeouts()
            ),
            now=now,
        )


@asynccontextmanager
@enable_ki_protection
async def open_session(
    base_url: str,
    *,
    model: str,
    key: Key | str | None = None,
    store: KeyStore | None = None,
    refresh: Refresh | None = None,
    authenticator: Authenticator | None = None,
    messages: Sequence[Mapping[str, object]] | None = None,
    extra_body: Mapping[str, object] | None = None,
    remember: bool | int | str = False,
    api: ApiName = "chat",
    transport: Literal["http", "websocket"] = "http",
    headers: Mapping[str, str] | None = None,
    key_header: KeyHeader = "Authorization",
    retry: RetryPolicy | None = None,
    resume: ResumePolicy | None = None,
    timeouts: Timeouts | None = None,
    http_client: httpx.AsyncClient | None = None,
    ssl_context: ssl.SSLContext | None = None,
    now: Callable[[], float] = time.time,
) -> AsyncGenerator[Session]:
    """A chat session with its own nursery and, unless it is given one, its own refresh task.

    The key comes from one of `key`, `store` and `authenticator`, or else from `refresh`, which
    is then called for the first one too.

    Args:
        base_url: As for `open_gateway`.
        model: The model's name, as the gateway knows it.
        key: A key. Without `refresh` a reply ends when it is rejected.
        store: Where the key lives.
        refresh: Gets a new key; see `open_authenticator`.
        authenticator: One that other sessions use too.
        messages: The conversation so far.
        extra_body: As for `Gateway.open_session`.
        remember: As for `Gateway.open_session`.
        api: As for `Gateway.open_session`.
        transport: As for `Gateway.open_session`.
        headers: As for `open_gateway`.
        key_header: As for `open_gateway`.
        retry: As for `open_gateway`.
        resume: As for `open_gateway`.
        timeouts: As for `open_gateway`.
        http_client: As for `open_gateway`.
        ssl_context: As for `open_gateway`.
        now: As for `open_gateway`.

    Raises:
        ValueError: There is no way to a key or more than one; `base_url`, `model` or `api` is
            none.
        GatewayError: The store cannot be read; or as for `Gateway.open_session`.

    >>> async def main() -> None:
    ...     fake = FakeGateway(key="sk-2")
    ...     async with (
    ...         fake.http_client() as client,
    ...         open_session(
    ...             fake.base_url, model="fake-model", key="sk-1", refresh=fake.refresh,
    ...             http_client=client,
    ...         ) as session,
    ...     ):
    ...         await session.ask("Tell me a story.")  # sk-1 is rejected, once
    ...         print(fake.rejected, fake.refreshes, session.messages[-1]["role"])
    >>> trio.run(main)
    1 1 assistant
    """
    sources = [name for name, given in (("key", key), ("store", store)) if given is not None]
    if authenticator is not None:
        sources.append("authenticator")
        if refresh is not None:
            raise ValueError("give refresh to open_authenticator: this authenticator has its own")
    if len(sources) > 1:
        raise ValueError(f"give one of {' and '.join(sources)}: each of them brings a key")
    if not sources and refresh is None:
        raise ValueError("no key: give key, store, refresh or authenticator")
    async with AsyncExitStack() as stack:
        if authenticator is None:
            authenticator = await stack.enter_async_context(
                open_authenticator(
                    MemoryKeyStore(key) if store is None else store, refresh, now=now
                )
            )
        gateway = await stack.enter_async_context(
            open_gateway(
                base_url,
                authenticator,
                headers=headers,
                key_header=key_header,
                retry=retry,
                resume=resume,
                timeouts=timeouts,
                http_client=http_client,
                ssl_context=ssl_context,
                now=now,
            )
        )
        yield await stack.enter_async_context(
            gateway.open_session(
                model,
                messages=messages,
                extra_body=extra_body,
                remember=remember,
                api=api,
                transport=transport,
            )
        )


def _checked_base_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the base URL {_shown(base_url)!r} is no URL: {error}") from None
    # httpx takes an opening bracket that was never closed for the begin of a host's name.
    if url.scheme not in ("http", "https") or not url.host or "%5B" in url.host:
        raise ValueError(
            f"the base URL {_shown(base_url)!r} must begin with https:// or http:// and name a "
            "host, like https://api.gatewayz.ai/v1"
        )
    if url.port is not None and not 0 < url.port < 65536:
        raise ValueError(f"the base URL {_shown(base_url)!r} is no URL: ports are 1 to 65535")
    if url.userinfo:
        raise ValueError("the base URL must not hold a user name or password: give the key apart")
    if url.query or url.fragment:
        raise ValueError("the base URL must not hold a query or a fragment")
    return base_url.rstrip("/")


def _shown(base_url: str) -> str:
    """As much of a wrong base URL as cannot be a key."""
    return base_url.partition("?")[0].partition("#")[0].rpartition("@")[2]
