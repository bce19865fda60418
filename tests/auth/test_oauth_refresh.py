"""The refresh callable that is OAuth's refresh token grant (RFC 6749 section 6)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal
from urllib.parse import parse_qsl, unquote_plus

import httpx
import pytest

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    GatewayError,
    Key,
    MemoryKeyStore,
    OAuthRefresh,
    PermissionDeniedError,
    RateLimitError,
    RefreshError,
    open_authenticator,
)
from gz_trio._protocol.refresh import (
    RefreshFailure,
    RefreshOutcomeUnknown,
    classify_refresh_failure,
)
from tests.auth.quoting import assert_quotes_nothing

TOKEN_URL = "https://id.test/oauth/token"
HELD = Key("sk-old", refresh_token="rt-secret-1", generation=3, epoch=1)
SECRET = "cs-secret"
NOW = 1_000_000.0

Handler = Callable[[httpx.Request], httpx.Response]


class Server:
    """An authorization server that answers each request with the next of `answers`."""

    def __init__(self, *answers: httpx.Response | Mapping[str, object]) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    @property
    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.MockTransport(self.answer),
            follow_redirects=True,
            auth=("user", "password"),
        )

    def refresh(
        self,
        *,
        client_secret: str | None = None,
        client_auth: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic",
        scope: str | None = None,
        extra: Mapping[str, str | Sequence[str]] | None = None,
    ) -> OAuthRefresh:
        return OAuthRefresh(
            TOKEN_URL,
            client_id="program",
            client_secret=client_secret,
            client_auth=client_auth,
            scope=scope,
            extra=extra,
            http_client=self.client,
            now=lambda: NOW,
        )

    @property
    def sent(self) -> list[tuple[str, str]]:
        (request,) = self.requests
        return parse_qsl(request.content.decode(), keep_blank_values=True, strict_parsing=True)


def issued(value: str = "sk-new", /, **fields: object) -> dict[str, object]:
    return {"access_token": value, "token_type": "Bearer", **fields}


def jwt(claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2lnbmF0dXJl"


async def failure_of(answer: httpx.Response | Mapping[str, object]) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await Server(answer).refresh(client_secret=SECRET)(HELD)
    assert_quotes_nothing(caught.value, "rt-secret", SECRET)
    assert "https://id.test" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value


# The request


async def test_the_request_is_the_refresh_token_grant() -> None:
    server = Server(issued())
    assert await server.refresh()(HELD) == Key("sk-new")
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("POST", TOKEN_URL)
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["accept"] == "application/json"
    assert sorted(server.sent) == [
        ("client_id", "program"),
        ("grant_type", "refresh_token"),
        ("refresh_token", "rt-secret-1"),
    ]
    assert "authorization" not in request.headers, "a public client has no password"


async def test_a_secret_goes_into_the_header_form_encoded() -> None:
    """RFC 6749 section 2.3.1: each is encoded before the two are joined by a colon."""
    server = Server(issued())
    await server.refresh(client_secret="a:b c%/é")(HELD)
    scheme, _, credentials = server.requests[0].headers["authorization"].partition(" ")
    assert scheme == "Basic"
    name, _, secret = base64.b64decode(credentials).decode("ascii").partition(":")
    assert (unquote_plus(name), unquote_plus(secret)) == ("program", "a:b c%/é")
    assert sorted(dict(server.sent)) == ["grant_type", "refresh_token"]


async def test_a_secret_goes_into_the_body_where_the_server_wants_it_there() -> None:
    server = Server(issued())
    await server.refresh(client_secret="cs", client_auth="client_secret_post")(HELD)
    assert {("client_id", "program"), ("client_secret", "cs")} < set(server.sent)
    assert "authorization" not in server.requests[0].headers


async def test_scope_resource_and_audience_are_sent_as_they_are_given() -> None:
    server = Server(issued())
    extra = {"resource": ["https://a.test", "https://b.test"], "audience": "api"}
    await server.refresh(scope="chat models", extra=extra)(HELD)
    assert [pair for pair in server.sent if pair[0] not in ("grant_type", "client_id")] == [
        ("refresh_token", "rt-secret-1"),
        ("scope", "chat models"),
        ("resource", "https://a.test"),
        ("resource", "https://b.test"),
        ("audience", "api"),
    ]


@pytest.mark.parametrize("rejected", [None, Key("sk-old")])
async def test_without_a_refresh_token_only_a_sign_in_helps(rejected: Key | None) -> None:
    server = Server()
    with pytest.raises(AuthenticationError, match="no refresh token") as caught:
        await server.refresh()(rejected)
    assert classify_refresh_failure(caught.value) is RefreshFailure.REFUSED
    assert server.requests == []


@pytest.mark.parametrize(
    "url", ["", "id.test/token", "ftp://id.test", "https://", "https://u:p@id.test/", "https://a#b"]
)
def test_a_url_that_can_be_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="the token URL must"):
        OAuthRefresh(url, client_id="program")


def test_a_token_url_may_have_a_query() -> None:
    """RFC 6749 section 3.2 lets it."""
    OAuthRefresh("https://id.test/token?tenant=1", client_id="program")


def test_a_blank_client_id_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="client id"):
        OAuthRefresh(TOKEN_URL, client_id=" ")


@pytest.mark.parametrize("name", ["grant_type", "refresh_token", "client_secret", "scope"])
def test_a_parameter_is_not_sent_twice(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        OAuthRefresh(TOKEN_URL, client_id="program", extra={name: "x"})


# The answer


@pytest.mark.parametrize(
    ("fields", "expires_at"),
    [
        ({}, None),
        ({"expires_in": 3600}, NOW + 3600),
        ({"expires_in": "3600"}, NOW + 3600),
        ({"expires_in": 1.5}, NOW + 1.5),
        ({"expires_in": 0}, None),
        ({"expires_in": -1}, None),
        ({"expires_in": True}, None),
        ({"expires_in": "soon"}, None),
        ({"expires_in": None}, None),
        ({"expires_at": 2_000_000_000}, 2e9),
        ({"expires_at": "2033-05-18T03:33:20Z"}, 2e9),
        ({"expires_at": "2033-05-18T03:33:20", "expires_in": 60}, NOW + 60),
        ({"expires_at": 2_000_000_000, "expires_in": 60}, 2e9),
    ],
)
async def test_when_the_key_ends_is_what_the_answer_says(
    fields: dict[str, object], expires_at: float | None
) -> None:
    key = await Server(issued(**fields)).refresh()(HELD)
    assert key == Key("sk-new", expires_at=expires_at)


@pytest.mark.parametrize(
    ("value", "expires_at"),
    [
        (jwt({"exp": 2_000_000_000}), 2e9),
        (jwt({"exp": 2_000_000_000.5}), 2e9 + 0.5),
        (jwt({"sub": "somebody"}), None),
        (jwt({"exp": "soon"}), None),
        (jwt({"exp": True}), None),
        (jwt({"exp": 10**400}), None),
        (jwt(["exp"]), None),
        ("a.b.c", None),
        ("sk.é".encode("ascii", "replace").decode() + ".x", None),
    ],
)
async def test_a_key_that_is_a_jwt_says_itself_when_it_ends(
    value: str, expires_at: float | None
) -> None:
    assert await Server(issued(value)).refresh()(HELD) == Key(value, expires_at=expires_at)
    answer = await Server(issued(value, expires_in=60)).refresh()(HELD)
    assert answer.expires_at == NOW + 60, "the answer knows better"


@pytest.mark.parametrize("kind", ["bearer", "BEARER", None])
async def test_the_key_is_a_bearer_token(kind: object) -> None:
    assert await Server(issued(token_type=kind)).refresh()(HELD) == Key("sk-new")


async def test_a_key_that_is_to_be_used_otherwise_is_none() -> None:
    error = await failure_of(issued(token_type="DPoP"))
    assert "Bearer" in str(error)
    assert classify_refresh_failure(error) is RefreshFailure.BROKEN


@pytest.mark.parametrize("token", [None, "", " ", 7])
async def test_an_answer_without_a_refresh_token_names_none(token: object) -> None:
    assert await Server(issued(refresh_token=token)).refresh()(HELD) == Key("sk-new")


@pytest.mark.parametrize("answer", [{}, {"access_token": None}, {"access_token": " "}])
async def test_an_answer_without_a_key_is_a_failed_refresh(answer: dict[str, object]) -> None:
    error = await failure_of(answer)
    assert type(error) is RefreshError
    assert "no API key" in str(error)


REFUSED, UNREACHABLE = RefreshFailure.REFUSED, RefreshFailure.UNREACHABLE
UNKNOWN, BROKEN = RefreshFailure.UNKNOWN, RefreshFailure.BROKEN


@pytest.mark.parametrize(
    ("status", "body", "kind", "failure"),
    [
        (400, b'{"error": "invalid_grant"}', AuthenticationError, REFUSED),
        (401, b'{"error": "invalid_client"}', AuthenticationError, REFUSED),
        (400, b'{"error": "unauthorized_client"}', AuthenticationError, REFUSED),
        (400, b'{"error": "invalid_scope"}', AuthenticationError, REFUSED),
        (400, b'{"error": "unsupported_grant_type"}', AuthenticationError, REFUSED),
        (403, b'{"error": "access_denied"}', PermissionDeniedError, REFUSED),
        (403, b"<html>", APIConnectionError, UNREACHABLE),
        (429, b"", RateLimitError, UNREACHABLE),
        (503, b"", APIConnectionError, UNREACHABLE),
        (500, b"", RefreshOutcomeUnknown, UNKNOWN),
        (200, b"<html>", RefreshOutcomeUnknown, UNKNOWN),
        (400, b'{"error": "invalid_request"}', RefreshError, BROKEN),
        (404, b"", RefreshError, BROKEN),
        (302, b"", RefreshError, BROKEN),
    ],
)
async def test_rule_6_what_an_answer_says_of_the_token(
    status: int, body: bytes, kind: type[GatewayError], failure: RefreshFailure
) -> None:
    error = await failure_of(
        httpx.Response(status, content=body, headers={"location": "https://elsewhere.test/"})
    )
    assert type(error) is kind
    assert classify_refresh_failure(error) is failure
    assert error.status == status


def test_its_repr_shows_no_secret() -> None:
    refresh = OAuthRefresh(TOKEN_URL, client_id="program", client_secret=SECRET)
    assert repr(refresh) == "<OAuthRefresh https://id.test>"


# With an authenticator


async def test_a_refresh_token_that_rotates_is_stored_with_its_key() -> None:
    server = Server(issued("sk-2", refresh_token="rt-2"), issued("sk-3"), issued("sk-4"))
    store = MemoryKeyStore(Key("sk-1", refresh_token="rt-1"))
    held: list[tuple[str, str | None]] = []
    async with open_authenticator(store, server.refresh()) as authenticator:
        for _ in range(3):
            await authenticator.refresh()
            key = (await store.load()).key
            assert key is not None
            held.append((key.value, key.refresh_token))
    assert held == [("sk-2", "rt-2"), ("sk-3", "rt-2"), ("sk-4", "rt-2")]
    spent = [dict(parse_qsl(request.content.decode())) for request in server.requests]
    assert [fields["refresh_token"] for fields in spent] == ["rt-1", "rt-2", "rt-2"]


async def test_a_refusal_is_final_until_somebody_signs_in() -> None:
    server = Server(
        httpx.Response(400, json={"error": "invalid_grant"}), issued("sk-3", refresh_token="rt-3")
    )
    store = MemoryKeyStore(Key("sk-1", refresh_token="rt-1"))
    async with open_authenticator(store, server.refresh()) as authenticator:
        for _ in range(3):
            with pytest.raises(RefreshError, match="sign in again"):
                await authenticator.refresh(rejected="sk-1")
        assert len(server.requests) == 1
        assert (await store.load()).refused
        await authenticator.sign_in(Key("sk-2", refresh_token="rt-2"))
        assert (await authenticator.refresh(rejected="sk-2")).value == "sk-3"
