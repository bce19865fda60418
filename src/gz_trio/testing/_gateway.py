"""`FakeGateway`: an OpenAI-compatible gateway in the test's own process."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Literal, TypeVar, overload

import httpx
import msgspec
import trio

from .._background import Background
from .._protocol import errors
from .._protocol.keys import Key
from ._call import Call, SeenRequest
from ._chunks import Shape
from ._completions import API_PATHS, Answer, Completions
from ._continuing import Continues
from ._faults import Close, Cut, Fault, Reset, Stall, Status
from ._formats import frame
from ._history import FakeHistory
from ._keys import Account, KeyRing
from ._memory import HttpxModule, MemoryStream, memory_client, memory_connection
from ._plan import HISTORY_PATHS, PATHS, FaultPlan, Path, pattern_of
from ._responses import error_event
from ._run import Place
from ._server import Exchange, Framing, HangUp, leave, serve
from ._websocket import Turn, WebSocket, hang_up, serve_turns

_ClientT = TypeVar("_ClientT")

_HOST = "gateway.test"
_SECRET_HEADERS = {"authorization", "x-api-key", "api-key", "cookie", "proxy-authorization"}


class FakeGateway:
    """An OpenAI-compatible gateway for tests: real HTTP, real streams, faults on request.

    It serves `POST /v1/chat/completions`, `POST /v1/responses` and `POST /v1/messages` (streamed or
    whole), the responses that it keeps (`GET` and `DELETE /v1/responses/{id}`, `POST
    /v1/responses/{id}/cancel`), `GET /v1/models`, `POST /auth` and the routes of a history of
    chats (`history`), over TCP (`listen`), over in-memory streams
    (`http_client`, `connect`), or over any Trio stream (`serve_stream`). In memory nothing waits
    for a socket, so Trio's `MockClock` with autojump makes minutes pass in no time. Nothing needs
    to be started: the object only keeps the keys, the faults and what was seen, for all its
    connections. `tokens`, `token_interval`, `on_rotation`, `auth_latency`, `models`, `framing`,
    `event_ids`, `on_lost_stream`, `continues`, `echo`, `lanes`, `websocket_rejection` and
    `websocket_lifetime` are attributes too, which a test may change.

    The key goes into `Authorization: Bearer`, `x-api-key` or `api-key`.

    A response of the Responses API is kept, as long as the request does not say `"store": false`
    (the last 10,000 are): a later one may go on from it by `previous_response_id`, and with
    `"background": true` its stream can be taken up after any of its events. Here the model of such
    a response runs only while somebody listens.

    `/v1/responses` speaks WebSocket too, the API's WebSocket mode: each `response.create` is a
    turn, and in `requests` one of its own, with the method `"WEBSOCKET"`; the handshake is another.
    Their paths are `"/v1/responses (websocket)"` and `"/v1/responses (handshake)"`.

    There is one account, and more where `add_account` makes them: each has a valid key of its own,
    which dies alone. `key`, `generation` and `refresh` are the default account's. Everything else
    (`history`, responses that are kept, faults, counters) is all accounts' together.

    Args:
        key: The first valid API key.
        tokens: Tokens in each answer.
        token_interval: Seconds between tokens.
        on_rotation: What becomes of streams that run under a key when it dies: `"frame"`, an
            `auth_error` frame and `data: [DONE]`, as LiteLLM and Gatewayz do; `"cut"`, the
            connection is closed in mid-body; `"ignore"`, they go on.
        answer: Gives the tokens of each answer: called with the request's body and the number
            of the answer to that same body (1 for the first; a request that was refused does
            not count). A token is a `str`, or a `gz_trio.Delta` for reasoning, tool calls,
            several choices or a finish reason; its `raw`, if any, is sent as the event's data
            as it is. By default the text follows from the messages: the same messages, the same
            text; other messages, another text.
        auth_latency: Seconds that `POST /auth` takes.
        models: The models that there are; any other is answered 404. `None`: any model is there.
        shape: Whose shape the chunks have: OpenAI's, or another that gateways pass on:
            `{"output": [...]}` (Fireworks) or `{"type": "response.output_text.delta"}`.
        framing: How the body of each answer travels. `"chunked"`: in chunked coding if it is a
            stream, otherwise with its length. `"plain"`: without either, ended by the end of the
            connection alone, as a proxy that speaks HTTP/1.0 sends it. `"gzip"`: compressed, in
            chunked coding, each frame flushed so that it can be read when it comes; only for
            requests that accept gzip, others get `"chunked"`.
        event_ids: Whether each event of a stream has an id and the stream is kept (the last 10,000
            are). A request with the same body and the header `Last-Event-ID` is then sent what
            follows that event: the same completion, byte for byte, and further tokens only where
            there were none yet. Ids are `<n>-1`, `<n>-2`, ... with a number `<n>` for each
            stream. What a fault puts into a stream is not kept, and has no id. `"ignored"`: a
            lie; ids are `1`, `2`, ... in every stream, and none is ever taken up.
        on_lost_stream: What becomes of a request whose `Last-Event-ID` is of no kept stream with
            that body: `"restart"`, a new answer; `"404"`, that status.
        continues: How a request asks the model to go on from a partial answer, the assistant's
            message that it ends with: `"vllm"`, by `"add_generation_prompt": false,
            "continue_final_message": true` (vLLM, SGLang; 400 if both are true); `"prefix"`, by
            `"prefix": true` on that message (DeepSeek, Mistral; 400 for an assistant's last
            message without it, or another message with it); `"prefill"`, by that message alone
            (Anthropic; 400 if it ends with whitespace). `None`: not at all. What is not asked for
            in the gateway's own way gets a new answer. The model goes on with the rest of the
            answer that the conversation was meant to have without the partial one, whose
            whitespace at the end does not count; or, if that does not begin so, with some other
            text. `max_tokens` limits what is new.
        echo: Whether a continued answer begins with the partial one.
        lanes: Whether turns on a WebSocket are told apart by `stream_id`; otherwise one that has
            it gets an error.
        websocket_rejection: How a key that died is rejected on a WebSocket: by this close, or with
            `None` by an `error` event with the status 401. A handshake is answered 401.
        websocket_lifetime: Seconds after which a WebSocket takes no further turn.
        ledger: Whether `requests` keeps what was seen; a server that runs for days turns it off.
        on_request: Called with each request when it is over: answered, or left.

    Attributes:
        base_url: Of the in-memory connections: `"http://gateway.test/v1"`.
        history: The chats that it keeps.
        requests: One `SeenRequest` for each request, in the order in which they came.
        refuse_refresh: Whether `POST /auth` answers 401.
        refuse_connections: Whether new connections are refused: in memory at once, over TCP by
            a reset after they were accepted.
        refreshes: How often `POST /auth` and `refresh` were called, refused calls included.
        rejected: 401s answered, those of `POST /auth` not included.
        auth_errors: `auth_error` frames sent.

    Raises:
        ValueError: The key cannot be sent in a header.

    >>> import trio
    >>> async def main():
    ...     gateway = FakeGateway(tokens=3)
    ...     body = {"model": "fake-model", "messages": [{"role": "user", "content": "Hello"}]}
    ...     async with gateway.http_client() as client:
    ...         headers = {"authorization": f"Bearer {gateway.key}"}
    ...         reply = await client.post("/chat/completions", json=body, headers=headers)
    ...         gateway.rotate()
    ...         refused = await client.post("/chat/completions", json=body, headers=headers)
    ...     text = reply.json()["choices"][0]["message"]["content"]
    ...     print(text == gateway.intended(body), refused.status_code)
    ...     print(gateway.requests[-1])
    >>> trio.run(main)  # doctest: +NORMALIZE_WHITESPACE
    True 401
    SeenRequest(method='POST', path='/v1/chat/completions', generation=1, status=401, tokens=0,
                resumed_after=None, complete=False, faults=[])
    """

    base_url = f"http://{_HOST}/v1"

    def __init__(
        self,
        key: str = "gw_test_1",
        *,
        tokens: int = 12,
        token_interval: float = 0.0,
        on_rotation: Literal["frame", "cut", "ignore"] = "frame",
        answer: Answer | None = None,
        auth_latency: float = 0.0,
        models: Sequence[str] | None = ("fake-model",),
        shape: Shape = "openai",
        framing: Framing = "chunked",
        event_ids: bool | Literal["ignored"] = False,
        on_lost_stream: Literal["restart", "404"] = "restart",
        continues: Continues | None = None,
        echo: bool = False,
        lanes: bool = True,
        websocket_rejection: Close | None = None,
        websocket_lifetime: float = 3600.0,
        ledger: bool = True,
        on_request: Callable[[SeenRequest], None] | None = None,
    ) -> None:
        self.tokens = tokens
        self.token_interval = token_interval
        self.on_rotation = on_rotation
        self.auth_latency = auth_latency
        self.models = models
        self.framing: Framing = framing
        self.event_ids: bool | Literal["ignored"] = event_ids
        self.on_lost_stream: Literal["restart", "404"] = on_lost_stream
        self.continues: Continues | None = continues
        self.echo = echo
        self.lanes = lanes
        self.websocket_rejection = websocket_rejection
        self.websocket_lifetime = websocket_lifetime
        self.refuse_refresh = False
        self.refuse_connections = False
        self.requests: list[SeenRequest] = []
        self.refreshes = 0
        self.rejected = 0
        self.auth_errors = 0
        self.history = FakeHistory()
        self._completions = Completions(self, answer, shape)
        self._ledger = ledger
        self._on_request = on_request
        self._keys = KeyRing(key)
        self._plan = FaultPlan()
        self._seen: Counter[str] = Counter()
        self._total = 0

    def __repr__(self) -> str:
        return (
            f"<FakeGateway generation={self.generation} requests={self._total} "
            f"rejected={self.rejected} refreshes={self.refreshes} "
            f"open_streams={self.open_streams}>"
        )

    # Keys

    @property
    def key(self) -> str:
        """The valid API key; after `expire()`, the one that was."""
        return self._keys.default.key

    @property
    def generation(self) -> int:
        """1 for the first key, one more for each that followed."""
        return self._keys.default.generation

    def add_account(self, token: str) -> str:
        """Make one more account, with a valid key of its own.

        Args:
            token: The identity token that signs in to it: `POST /auth` with this `token` answers
                this account's key. With any other it answers the default account's.

        Returns:
            Its first key.

        Raises:
            ValueError: The token is blank, or another account's.

        >>> gateway = FakeGateway()
        >>> first = gateway.add_account("token-of-alice")
        >>> gateway.rotate(account="token-of-alice") == first
        False
        >>> gateway.key  # Alice's rotation leaves the others alone
        'gw_test_1'
        """
        return self._keys.add_account(token).key

    @property
    def open_streams(self) -> int:
        """How many streams are being served."""
        return len(self._completions.streams)

    def rotate(self, key: str | None = None, *, account: str | None = None) -> str:
        """Replace an account's key: every older one is answered 401 from now on.

        Streams that run under an older key end as `on_rotation` says, at once even if they wait
        for their next token.

        Args:
            key: The new key; by default one is made up.
            account: The token of the account; `None`: the default one.

        Returns:
            The new key.

        Raises:
            ValueError: The key cannot be sent in a header, or is one that was valid before; or
                there is no such account.
        """
        return self._rotate(self._keys.account(account), key)

    def _rotate(self, account: Account, key: str | None = None) -> str:
        new = self._keys.rotate(account, key)
        self._end_streams(account)
        return new

    def expire(self, *, account: str | None = None) -> None:
        """Let an account's key die: it has none until `POST /auth` or `refresh` issues another.

        Args:
            account: The token of the account; `None`: the default one.

        Raises:
            ValueError: There is no such account.
        """
        owner = self._keys.account(account)
        owner.expired = True
        self._end_streams(owner)

    async def refresh(self, rejected: Key | None = None) -> str:  # noqa: ARG002
        """What `POST /auth` does, as a refresh callable: same counter, latency and refusal.

        Faults of the path `"/auth"` strike here too: a `Stall` as it is, the others as the
        exception that a client would make of them.

        Raises:
            AuthenticationError: `refuse_refresh` is set.
        """
        self.refreshes += 1
        for fault in self._plan.due("/auth", self._count("/auth"), None, None):
            match fault:
                case Stall(seconds):
                    await trio.sleep(seconds)
                case Status(status=status) if status >= 400:
                    raise _STATUS_ERRORS.get(status, errors.InternalServerError)(
                        "the fake gateway was told to fail", status=status
                    )
                case Cut() | Reset():
                    raise errors.APIConnectionError("the fake gateway was told to hang up")
                case _:
                    pass
        await trio.sleep(self.auth_latency)
        if self.refuse_refresh:
            raise errors.AuthenticationError("the fake gateway refuses to sign in", status=401)
        return self._issue(self._keys.default)

    def _issue(self, account: Account) -> str:
        return self._rotate(account) if account.expired else account.key

    def _end_streams(self, account: Account) -> None:
        """End all that an account has: none of them can run under a key that was made just now."""
        if self.on_rotation != "ignore":
            self._completions.streams.end(account)

    def forget_streams(self) -> None:
        """Lose the streams and the responses that were kept, as a server that restarts does."""
        self._completions.kept.forget()
        self._completions.stored.forget()

    # Answers and faults

    def intended(self, body: Mapping[str, object]) -> str:
        """The whole text that the first answer to this request's body is meant to have.

        Of several choices, the first. If the body asks to go on from a partial answer
        (`continues`), that one and what follows.
        """
        return self._completions.intended(body)

    def fault(
        self,
        fault: Fault,
        *,
        request: int | None = None,
        generation: int | None = None,
        token: int | None = None,
        times: int | None = 1,
        path: Path = "/v1/chat/completions",
    ) -> None:
        """Let something go wrong: when all that is named here comes together.

        Faults that fit the same moment strike in the order in which they were added, until one
        ends the answer; the rest wait for their next chance. A fault is used up when it strikes,
        not before.

        Args:
            fault: What goes wrong.
            request: Only in this request to `path`: 1 for the first that the gateway ever saw.
            generation: Only in requests with the key of this generation, within its account.
            token: Before this token of a streamed answer: 0 for the first one, when the head is
                sent; the number of tokens for after the last. Tokens of a stream that is taken
                up keep their numbers, and those that are not sent again cannot meet a fault.
                `None` means in place of the head, and before the key is looked at; for a fault
                that needs a stream around it (an error frame, for example), as 0.
            times: How often it strikes; `None` for ever.
            path: Which endpoint; of the history, `{id}` stands for any session.

        Raises:
            ValueError: The fault cannot be in that place.

        >>> gateway = FakeGateway()
        >>> gateway.fault(Status(429, headers={"retry-after": "2"}), request=1)
        >>> gateway.fault(Cut(), token=3)
        """
        self._plan.add(
            fault,
            path=path,
            request=request,
            generation=generation,
            token=token,
            times=times,
        )

    def _count(self, path: str) -> int:
        self._seen[path] += 1
        return self._seen[path]

    # Connections

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until its end, and close it.

        Raises:
            Exception: What the callable `answer` raised.
        """
        if self.refuse_connections:
            await leave(stream, reset=True)
            return
        await serve(stream, self._handle, partial(self._upgrade, stream))

    @asynccontextmanager
    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> AsyncGenerator[str]:
        """Serve on a TCP port for as long as the block runs; gives the base URL.

        Args:
            host: The address to listen at.
            port: The port; 0 lets the system choose.

        Raises:
            OSError: The port cannot be had.

        >>> import httpx, trio
        >>> async def main():
        ...     async with FakeGateway().listen() as base_url:
        ...         async with httpx.AsyncClient() as client:
        ...             print((await client.get(f"{base_url}/models")).json())
        >>> trio.run(main)
        {'detail': 'Authorization header is required'}
        """
        listeners = await trio.open_tcp_listeners(port, host=host)
        async with Background("fake gateway") as nursery:
            await nursery.start(partial(trio.serve_listeners, self.serve_stream, listeners))
            address, bound_port = listeners[0].socket.getsockname()[:2]
            address = f"[{address}]" if ":" in address else address
            yield f"http://{address}:{bound_port}/v1"

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[trio.abc.Stream]:
        """One in-memory connection; gives the client's end, which is closed after the block."""
        async with Background("fake gateway") as nursery:
            stream = await self._connect(nursery)
            try:
                yield stream
            finally:
                # In memory nothing can take long; a Cancelled from here would hide the block's
                # own exception.
                with trio.CancelScope(shield=True):
                    await stream.aclose()

    @overload
    def http_client(self) -> AbstractAsyncContextManager[httpx.AsyncClient]: ...

    @overload
    def http_client(
        self, module: HttpxModule[_ClientT]
    ) -> AbstractAsyncContextManager[_ClientT]: ...

    def http_client(
        self, module: HttpxModule[object] = httpx
    ) -> AbstractAsyncContextManager[object]:
        """An `AsyncClient` whose connections are in-memory streams, served while the block runs.

        It knows one host, that of `base_url`; relative URLs are taken from there. It has no
        timeouts and no limit of connections unless they are set.

        Args:
            module: `httpx`, or `httpx2`, which the OpenAI SDK wants.
        """
        return self._http_client(module)

    @asynccontextmanager
    async def _http_client(self, module: HttpxModule[_ClientT]) -> AsyncGenerator[_ClientT]:
        async with Background("fake gateway") as nursery:
            client = memory_client(module, self.base_url, _HOST, partial(self._connect, nursery))
            try:
                yield client
            finally:
                with trio.CancelScope(shield=True):  # as in connect()
                    await getattr(client, "aclose")()  # noqa: B009  both modules have it

    async def _connect(self, nursery: trio.Nursery) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        if self.refuse_connections:
            raise ConnectionRefusedError(f"{_HOST} refuses connections")
        ours, theirs = memory_connection()
        nursery.start_soon(self.serve_stream, ours)
        return theirs

    # Requests

    async def _handle(self, exchange: Exchange) -> None:
        exchange.framing = self.framing
        path = exchange.target.partition("?")[0]
        headers = {name.lower(): value for name, value in exchange.headers}
        key = _key_of(headers)
        try:
            body = msgspec.json.decode(exchange.body, type=dict[str, object])
        except msgspec.DecodeError:
            body = None
        call = self._call(exchange, exchange.method, path, headers, body)
        try:
            await self._respond(call, key)
        finally:
            if self._on_request is not None:
                self._on_request(call.seen)

    def _call(
        self,
        exchange: Exchange,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: dict[str, object] | None,
    ) -> Call:
        """A request that has come, which the ledger has from now on."""
        seen = SeenRequest(
            method,
            path,
            {n: "[secret]" if n in _SECRET_HEADERS else v for n, v in headers.items()},
            body,
            self._keys.generation_of(_key_of(headers)),
        )
        if self._ledger:
            self.requests.append(seen)
        self._total += 1
        pattern = pattern_of(path)
        number = self._count(pattern)
        return Call(self, self._plan, exchange, seen, pattern, number, self._total)

    async def _upgrade(self, stream: trio.abc.Stream, exchange: Exchange, behind: bytes) -> bool:
        """See `_server.Upgrade`."""
        headers = {name.lower(): value for name, value in exchange.headers}
        path = exchange.target.partition("?")[0]
        if headers.get("upgrade", "").lower() != "websocket" or path != "/v1/responses":
            return False
        call = self._call(exchange, "GET", f"{path} (handshake)", headers, None)
        try:
            fault = await call.strike(None)
            accepted = self._keys.accept(_key_of(headers))
            if isinstance(fault, Status):
                await call.send_status(fault)
            elif isinstance(accepted, str):
                await call.send_status(Status(401, accepted))
            else:
                call.seen.status = 101
                websocket = WebSocket(
                    stream,
                    exchange,
                    behind,
                    stored=self._completions.stored,
                    lifetime=self.websocket_lifetime,
                )
                await self._serve_websocket(websocket)
                call.seen.complete = True
        finally:
            if self._on_request is not None:
                self._on_request(call.seen)
        return True

    async def _serve_websocket(self, websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await serve_turns(websocket, partial(self._answer_turn, websocket))
        except HangUp as error:
            if error.close is None:
                raise
            await hang_up(websocket, error)

    async def _answer_turn(
        self, websocket: WebSocket, body: dict[str, object], stream_id: str | None
    ) -> None:
        headers, stored = websocket.headers, websocket.stored
        turn = Turn(websocket)
        call = self._call(turn, "WEBSOCKET", "/v1/responses (websocket)", headers, body)
        lane: dict[str, str] = {} if stream_id is None else {"stream_id": stream_id}
        try:
            fault = await call.strike(None)
            refused = fault if isinstance(fault, Status) else None
            param: str | None = None
            accepted = self._keys.accept(_key_of(headers))
            if refused is None and isinstance(accepted, str):
                if self.websocket_rejection is not None:
                    raise HangUp(close=self.websocket_rejection)
                refused = Status(401, accepted, code="invalid_api_key")
            elif refused is None and trio.current_time() >= websocket.until:
                reason = "The connection has been open for too long: connect again"
                refused = Status(400, reason, code="websocket_connection_limit_reached")
            elif refused is None and stream_id is not None and not self.lanes:
                refused = Status(400, "Unknown parameter: 'stream_id'.", code="unknown_parameter")
                param, lane = "stream_id", {}  # Who does not know it does not say it either.
            elif refused is None:
                refused = self._completions.refusal("responses", headers, body, stored)
            if refused is not None:
                call.seen.status = refused.status
                self.rejected += refused.status == 401
                message = refused.message or "The turn failed"
                event = error_event(refused.status, refused.code, message, param=param, **lane)
                turn.put_body(frame(event))
                await turn.flush()
                return
            if isinstance(accepted, Account):
                call.account = accepted
            asked = {n: value for n, value in body.items() if n not in ("type", "stream_id")}
            run = self._completions.turn(call.serial, asked, stored, stream_id)
            await self._completions.streams.serve(call, run, Place())
        finally:
            if self._on_request is not None:
                self._on_request(call.seen)

    async def _respond(self, call: Call, key: str | None) -> None:
        exchange, path = call.exchange, call.seen.path
        fault = await call.strike(None)
        if isinstance(fault, Status):
            await call.send_status(fault)
            return
        match exchange.method, path:
            case "POST", "/auth":
                await self._auth(call)
                return
            case ("GET", "/v1/models"):
                pass
            case "POST", _ if path in API_PATHS:
                pass
            case ("GET" | "DELETE", _) if call.path == "/v1/responses/{id}":
                pass
            case ("POST", _) if call.path == "/v1/responses/{id}/cancel":
                pass
            case _ if call.path in HISTORY_PATHS:
                pass
            case _ if call.path in PATHS:
                await call.send_status(Status(405, "Method Not Allowed", "detail"))
                return
            case _:
                await call.send_status(Status(404, "Not Found"))
                return
        accepted = self._keys.accept(key)
        if isinstance(accepted, str):
            await call.send_status(Status(401, accepted))
            return
        call.account = accepted
        if path == "/v1/models":
            await self._send_models(call)
        elif path in API_PATHS:
            await self._completions.respond(call)
        elif path.startswith("/v1/responses/"):
            await self._completions.respond_stored(call, exchange.target.partition("?")[2])
        else:
            await self.history.respond(call)

    async def _send_models(self, call: Call) -> None:
        models = ("fake-model",) if self.models is None else self.models
        data = [
            {"id": model, "object": "model", "created": 1_700_000_000, "owned_by": "fake"}
            for model in models
        ]
        answer = msgspec.json.encode({"object": "list", "data": data})
        await call.send(200, "application/json", answer)
        call.seen.complete = True

    async def _auth(self, call: Call) -> None:
        self.refreshes += 1
        await trio.sleep(self.auth_latency)
        if self.refuse_refresh:
            await call.send_status(Status(401, "The identity token is not accepted"))
            return
        body = call.seen.body or {}
        answer: dict[str, object] = {
            "success": True,
            "message": "User authenticated successfully",
            "user_id": 1,
            "api_key": self._issue(self._keys.signed_in(body.get("token"))),
            "auth_method": "email",
            "display_name": "Test User",
            "email": body.get("email"),
            "credits": 100.0,
            "tier": "basic",
            "subscription_status": "active",
        }
        await call.send(200, "application/json", msgspec.json.encode(answer))
        call.seen.complete = True


_STATUS_ERRORS: dict[int, type[errors.GatewayError]] = {
    401: errors.AuthenticationError,
    403: errors.PermissionDeniedError,
    429: errors.RateLimitError,
}


def _key_of(headers: Mapping[str, str]) -> str | None:
    """The key of a request; `""` for an empty one, `None` where there is no header for it."""
    if (authorization := headers.get("authorization")) is not None:
        scheme, _, value = authorization.partition(" ")
        return value.strip() if scheme.lower() == "bearer" else ""
    return headers.get("x-api-key", headers.get("api-key"))
