"""Ready refresh callables: a program that prints the key, and the gateway's own sign-in.

They tell how a refresh failed by what they raise (`classify_refresh_failure`), and finish an
exchange that was sent for 10 seconds after they were cancelled: a token may be good for one
exchange only, and what was paid for it is kept.
"""

from __future__ import annotations

import math
import re
import shlex
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Annotated, Literal

import httpx
import msgspec
import trio

from .._protocol import lenient_json
from .._protocol.errors import (
    APIConnectionError,
    AuthenticationError,
    GatewayError,
    PermissionDeniedError,
    RateLimitError,
    RefreshError,
    error_from_response,
)
from .._protocol.keys import Key
from .._protocol.refresh import RefreshOutcomeUnknown
from .shield import shielded_after_cancel

FINISH_SECONDS = 10.0
"""How long an exchange that was sent may go on after a cancellation."""

# Programs


class CommandRefresh:
    """Refreshes by running a program that prints a key, as AWS's `credential_process` does.

    On its standard output the program prints either the key alone on a line, or a JSON object:
    the key as `api_key`, `key` or `access_token`; when it ends, if that is known, as `expires_at`
    (seconds of Unix time, or RFC 3339) or `expires_in` (seconds from now); and `refresh_token`
    where there is one. Its standard error goes to this process's own, for the user to see; its
    standard input is empty. It is told nothing of the rejected key.

    It runs in this process's group, so that it can ask for a password at the terminal and ends
    with it on Ctrl-C. When it is cancelled it has 10 seconds to finish, then it is asked to end
    (SIGTERM), after 5 more it is killed. Programs that it has started itself are not.

    Args:
        command: The program and its arguments, as a sequence or as one string, which is split as
            a POSIX shell does (`shlex`). There is no shell: no variables, pipes or `~`.
        now: Unix time in seconds, for `expires_in`.

    Raises:
        ValueError: `command` is empty, holds an unclosed quote, or begins with `NAME=value`.

    >>> refresh = CommandRefresh("echo sk-new")
    >>> refresh
    <CommandRefresh 'echo'>
    >>> trio.run(refresh, None).value
    'sk-new'
    """

    def __init__(
        self, command: str | Sequence[str], *, now: Callable[[], float] = time.time
    ) -> None:
        self._argv = _argv(command)
        self._now = now

    def __repr__(self) -> str:
        # The arguments may hold secrets.
        return f"<CommandRefresh {self._argv[0]!r}>"

    async def __call__(self, rejected: Key | None) -> Key:  # noqa: ARG002 - no place for it
        """Run the program once. A checkpoint.

        Raises:
            RefreshError: It could not be started, failed, or printed no key.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        output = await shielded_after_cancel(FINISH_SECONDS, self._run)
        return _printed_key(output, self._name, self._now())

    @property
    def _name(self) -> str:
        return f"the refresh command {self._argv[0]!r}"

    @trio.lowlevel.enable_ki_protection  # it would leave the program running
    async def _run(self) -> bytes:
        """What the program printed."""
        try:
            process = await trio.lowlevel.open_process(
                self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise RefreshError(
                f"{self._name} could not be started ({error.strerror}): is it installed, "
                "executable, and in the PATH?"
            ) from error
        try:
            output = await _read_output(process)
            if len(output) > _OUTPUT_LIMIT:
                raise RefreshError(
                    f"{self._name} printed more than {_OUTPUT_LIMIT >> 10} KiB, which is no key: "
                    "only the key may go to its standard output"
                )
            status = await process.wait()
        except BaseException:
            with trio.move_on_after(2 * _TERMINATE_SECONDS, shield=True):
                await _end(process)
            raise
        if status != 0:
            how = f"exit status {status}" if status > 0 else f"signal {_signal_name(-status)}"
            raise RefreshError(
                f"{self._name} ended with {how}: run it by hand to see why; what it wrote to "
                "standard error may say"
            )
        return output


_OUTPUT_LIMIT = 64 << 10  # bytes
_DRAIN_SECONDS = 1.0
_TERMINATE_SECONDS = 5.0
_ASSIGNMENT = re.compile(r"\w+=")


def _argv(command: str | Sequence[str]) -> list[str]:
    if isinstance(command, str):
        argv = None
        with suppress(ValueError):  # its own message is raised without it, as a clear one
            argv = shlex.split(command)
        if argv is None:
            raise ValueError("the refresh command has a quote or a backslash that nothing closes")
    else:
        argv = list(command)
    if not argv or not argv[0].strip():
        raise ValueError("the refresh command is empty: give a program, and its arguments")
    if _ASSIGNMENT.match(argv[0]):
        # Would be named in messages as the program, with its value.
        raise ValueError(
            "the refresh command begins with NAME=value, which only a shell understands: write "
            "env NAME=value PROGRAM"
        )
    if any("\0" in argument for argument in argv):
        raise ValueError("the refresh command holds a NUL character, which no argument can")
    return argv


async def _read_output(process: trio.Process) -> bytes:
    """All that the program prints, up to a little over the limit; its end of the pipe is closed."""
    output = bytearray()
    stdout = process.stdout
    assert stdout is not None  # noqa: S101  it was asked for
    async with stdout, trio.open_nursery() as nursery:

        async def stop_at_exit() -> None:
            # A child of the program's may hold the pipe open for as long as it lives. What the
            # program itself has printed is in the pipe when it exits.
            await process.wait()
            await trio.sleep(_DRAIN_SECONDS)
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop_at_exit)
        async for chunk in stdout:
            output += chunk
            if len(output) > _OUTPUT_LIMIT:
                break
        nursery.cancel_scope.cancel()
    return bytes(output)


async def _end(process: trio.Process) -> None:
    """Leaves no process and no zombie."""
    for end in (process.terminate, process.kill):
        # A program that has taken another user's rights cannot be signalled.
        with suppress(PermissionError):
            end()
        with trio.move_on_after(_TERMINATE_SECONDS):
            await process.wait()
            return


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


class _Printed(msgspec.Struct, frozen=True):
    api_key: str | None = None
    key: str | None = None
    access_token: str | None = None
    expires_at: float | Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    expires_in: float | None = None
    refresh_token: str | None = None


def _printed_key(output: bytes, name: str, now: float) -> Key:
    """The key that the program `name` printed; its output is never quoted, by a cause neither."""
    key: Key | None = None
    problem = (
        "printed something that is no key: it must print the key alone, or a JSON object with "
        "api_key, key or access_token (and expires_at, in seconds or as RFC 3339 says)"
    )
    with suppress(*lenient_json.MSGSPEC_ERRORS, ValueError):
        text = output.decode().strip()
        if not text:
            problem = "printed nothing: it must print the key to its standard output"
        elif text.startswith("{"):
            key = _key_of_object(text, now)
        elif len(text.splitlines()) > 1:
            problem = (
                "printed several lines: only the key may go to its standard output, messages "
                "go to standard error"
            )
        elif text[0] not in "\"'[":  # as `jq` prints a string; no key begins so
            key = Key(text)
    if key is None:
        raise RefreshError(f"{name} {problem}")
    return key


def _key_of_object(text: str, now: float) -> Key:
    """Raises `ValueError`, or what msgspec raises, where there is none."""
    printed = msgspec.json.decode(text, type=_Printed)
    expires_at = printed.expires_at
    if isinstance(expires_at, datetime):
        expires_at = expires_at.timestamp()
    elif expires_at is None and printed.expires_in is not None:
        expires_at = now + printed.expires_in
    if expires_at is not None and not math.isfinite(expires_at):
        raise ValueError("no time")
    return Key(
        printed.api_key or printed.key or printed.access_token or "",
        expires_at=expires_at,
        refresh_token=printed.refresh_token or None,
    )


# HTTP

_CONNECT_SECONDS = 10.0
# For callers that set no limit of their own: longer than an authenticator's 30 s and the 10 s
# in which an exchange may finish after them.
_ANSWER_SECONDS = 60.0
_ANSWER_LIMIT = 1 << 20  # bytes

# RFC 6749 section 5.2, but `invalid_request`: that is a mistake of ours, not a refusal.
_REFUSALS = frozenset(
    {
        "invalid_grant",
        "invalid_client",
        "unauthorized_client",
        "invalid_scope",
        "unsupported_grant_type",
    }
)
# Before anything of the request was sent. By name: httpx2 has classes of its own, so called.
_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"})
_CANNOT_BE_SENT = frozenset({"LocalProtocolError", "UnsupportedProtocol"})


class GatewayRefresh:
    """Refreshes by the gateway's sign-in, `POST /auth`, which gives an API key for a token.

    Args:
        base_url: The gateway's base URL; a trailing `/v1` is left out, `/auth` added.
        token: The identity token of the user, as the sign-in service issued it; or an async
            function that gives a current one, called before each exchange.
        user: What the sign-in service says of the user, sent as it is (JSON).
        email: The user's address.
        is_new_user: The user signs in for the first time.
        environment_tag: `"live"`, `"test"` or `"development"`: what kind of key is wanted.
        auto_create_api_key: Have the gateway make a key for a user who has none.
        http_client: The `httpx.AsyncClient` (or httpx2's) to send it with; not closed. By default
            a connection of its own for each exchange. Redirects are never followed.
        now: Unix time in seconds, for a `Retry-After` that is a date.

    Raises:
        ValueError: `base_url` is no http or https URL, `token` is blank.
        TypeError: `user` cannot be written as JSON.

    >>> async def main():
    ...     fake = FakeGateway()
    ...     async with fake.http_client() as client:
    ...         refresh = GatewayRefresh(fake.base_url, token="jwt", http_client=client)
    ...         print((await refresh(None)).value == fake.key)
    >>> trio.run(main)
    True
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | Callable[[], Awaitable[str]],
        user: Mapping[str, object] | None = None,
        email: str | None = None,
        is_new_user: bool = False,
        environment_tag: Literal["live", "test", "development"] = "live",
        auto_create_api_key: bool = True,
        http_client: httpx.AsyncClient | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        url = _auth_url(base_url)
        self._url = str(url)
        self._origin = str(url.copy_with(raw_path=b"/")).rstrip("/")
        if isinstance(token, str) and not token.strip():
            raise ValueError("the identity token is empty: give the one that the sign-in issued")
        self._token = token
        self._fields = {
            "user": msgspec.Raw(msgspec.json.encode(dict(user or {}))),
            "email": email,
            "is_new_user": is_new_user,
            "environment_tag": environment_tag,
            "auto_create_api_key": auto_create_api_key,
        }
        self._http_client = http_client
        # Made here: it takes tens of milliseconds, in which no stream would move.
        self._ssl_context = httpx.create_ssl_context() if http_client is None else None
        self._now = now

    def __repr__(self) -> str:
        return f"<GatewayRefresh {self._origin}>"

    async def __call__(self, rejected: Key | None) -> Key:  # noqa: ARG002 - the token is sent
        """Exchange the token for a key, once. A checkpoint.

        Raises:
            AuthenticationError: The gateway refuses the token, or
            PermissionDeniedError: the user: sign in again.
            APIConnectionError: Nothing was exchanged: no connection, or the service is not
                available (503, a proxy's 403).
            RateLimitError: Nothing was exchanged: too many requests (429).
            RefreshError: There is no key in the answer, or the gateway does not accept the
                request. After a timeout, a broken connection or a failure of the server it is not
                known what became of the token.
        """
        token = self._token if isinstance(self._token, str) else await self._token()
        content = _encoded(self._fields | {"token": token}) if token.strip() else None
        if content is None:
            raise RefreshError("the identity token is empty or no text: sign in again")
        status, headers, body = await _exchange(
            partial(_client, self._http_client, self._ssl_context),
            self._url,
            {"content-type": "application/json"},
            content,
            self._origin,
        )
        if not 200 <= status < 300:
            raise _error_of_answer(status, headers, body, self._origin, self._now())
        return _key_of_answer(status, body, self._origin)


def _auth_url(base_url: str) -> httpx.URL:
    url = None
    with suppress(httpx.InvalidURL):
        url = httpx.URL(base_url)
    if url is None or url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            "the base URL must begin with https:// or http:// and name a host, like "
            "https://api.gatewayz.ai/v1"
        )
    if url.userinfo or url.query or url.fragment:
        raise ValueError(
            "the base URL must not hold a user name, a password, a query or a fragment"
        )
    return url.copy_with(path=url.path.rstrip("/").removesuffix("/v1").rstrip("/") + "/auth")


def _encoded(fields: Mapping[str, object]) -> bytes | None:
    # Half of a surrogate pair; the error would hold the whole text.
    with suppress(UnicodeEncodeError):
        return msgspec.json.encode(fields)
    return None


@asynccontextmanager
async def _client(
    given: httpx.AsyncClient | None, ssl_context: ssl.SSLContext | None
) -> AsyncGenerator[httpx.AsyncClient]:
    if given is not None:
        yield given
        return
    async with httpx.AsyncClient(verify=ssl_context or True) as client:
        yield client


async def _exchange(
    open_client: Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]],
    url: str,
    headers: Mapping[str, str],
    content: bytes,
    origin: str,
) -> tuple[int, Mapping[str, str], bytes]:
    """Send a token once, and give the whole answer: its status, headers and body.

    A cancellation ends it at once for as long as nothing was sent; after that the answer has
    `FINISH_SECONDS` to come.

    Raises:
        APIConnectionError: Nothing was sent.
        RefreshOutcomeUnknown: Anything that went wrong later.
        RefreshError: The request cannot be sent.
    """
    sent = False

    async def trace(event: str, _info: object) -> None:
        nonlocal sent
        await trio.lowlevel.checkpoint()
        if event.endswith(".send_request_headers.started"):
            sent = True

    async def post() -> tuple[int, Mapping[str, str], bytes]:
        # The client is opened and closed in here: to close it is a checkpoint, where a
        # cancellation would cost the answer.
        async with open_client() as client:
            request = client.build_request(
                "POST",
                url,
                content=content,
                headers={"accept": "application/json", "accept-encoding": "identity", **headers},
                timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS, _ANSWER_SECONDS, _CONNECT_SECONDS),
                extensions={"trace": trace},
            )
            response = await client.send(request, stream=True, follow_redirects=False, auth=None)
            body = bytearray()
            try:
                with trio.CancelScope() as too_long:
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > _ANSWER_LIMIT:
                            too_long.cancel()
            finally:
                await response.aclose()
        if too_long.cancel_called:
            raise RefreshOutcomeUnknown(
                f"the answer of {origin} is longer than any sign-in's: is the base URL right?"
            )
        return response.status_code, response.headers, bytes(body)

    try:
        return await shielded_after_cancel(lambda: FINISH_SECONDS if sent else 0.0, post)
    except Exception as error:
        names = {base.__name__ for base in type(error).__mro__}
        if "RequestError" not in names:
            raise
        failure = _error_of_transport(names, origin)
    # Without its cause: httpx's errors carry the request, and with it the token.
    raise failure


def _error_of_transport(names: set[str], origin: str) -> GatewayError:
    if names & _NOT_SENT:
        return APIConnectionError(
            f"no connection to {origin}: is the gateway up, and the base URL right?"
        )
    if names & _CANNOT_BE_SENT:
        return RefreshError(
            f"the request to {origin} cannot be sent by HTTP: check the client's headers"
        )
    what = "took too long" if "TimeoutException" in names else "broke"
    return RefreshOutcomeUnknown(
        f"the exchange with {origin} {what} after the token was sent, which may be spent: try "
        "again, and sign in again if that is refused"
    )


def _error_of_answer(
    status: int, headers: Mapping[str, str], body: bytes, origin: str, now: float
) -> GatewayError:
    """What an answer without a key means: refused, unreachable, unknown, or none of them."""
    sent = error_from_response(status, headers, body, now=now)
    kind: type[GatewayError]
    if (sent.code or "").lower() in _REFUSALS or status == 401:
        kind, what = AuthenticationError, "refuses the sign-in: sign in again"
    elif status == 403 and _json_object(body) is not None:
        kind, what = PermissionDeniedError, "does not let this user in: sign in as another"
    elif status == 403:
        kind, what = APIConnectionError, "is behind a proxy that does not let this through"
    elif status == 429:
        kind, what = RateLimitError, "has had too many sign-ins: wait"
    elif status == 503:
        kind, what = APIConnectionError, "is not available: try again later"
    elif status >= 500 or status == 408:
        kind, what = RefreshOutcomeUnknown, "failed while it signed in: try again later"
    elif 300 <= status < 400:
        kind = RefreshError
        what = "redirects, which is not followed with a token: give the new address as base URL"
    else:
        kind = RefreshError
        what = "does not accept the sign-in: check the base URL; its words are in `body`"
    return kind(
        f"the gateway {origin} {what} ({status})",
        status=status,
        code=sent.code,
        type=sent.type,
        request_id=sent.request_id,
        body=body,
        hints=sent.hints,
    )


def _key_of_answer(status: int, body: bytes, origin: str) -> Key:
    """The key in a gateway's answer; never quoted, and no cause that holds it."""
    answer = _json_object(body)
    if answer is None:
        raise RefreshOutcomeUnknown(
            f"the answer of {origin} to the sign-in is not JSON: is the base URL right?",
            status=status,
        )
    value = answer.get("api_key")
    if not isinstance(value, str) or not value.strip():
        refusal = _error_of_answer(status, {}, body, origin, 0.0)
        if type(refusal) is AuthenticationError:
            raise refusal
        raise RefreshError(
            f"the gateway {origin} signed in but gave no API key: does the user have one?",
            status=status,
            body=body,
        )
    with suppress(ValueError):
        return Key(value)
    raise RefreshError(f"the gateway {origin} gave an API key that cannot be sent in a header")


def _json_object(body: bytes) -> dict[str, object] | None:
    with suppress(ValueError):
        return lenient_json.as_object(lenient_json.decode(body))
    return None
