"""Who may ask the proxy for what: the rules as a table."""

import pytest
from starlette.datastructures import Headers

from gz_trio.proxy._guard import Guard, LocalSecrets

PORT = 8399
SECRETS = LocalSecrets(PORT)
GUARD = Guard("127.0.0.1", PORT, SECRETS)
OWN = "127.0.0.1:8399"
LED = {
    "host": OWN,
    "sec-fetch-site": "cross-site",
    "sec-fetch-mode": "navigate",
    "sec-fetch-dest": "document",
}


def origin_code(method: str, path: str, headers: dict[str, str], guard: Guard = GUARD) -> str:
    refusal = guard.refuse_origin(method, path, Headers(headers))
    return "let in" if refusal is None else f"{refusal.status} {refusal.code}"


def stranger_code(method: str, path: str, headers: dict[str, str], guard: Guard = GUARD) -> str:
    refusal = guard.refuse_stranger(method, path, Headers(headers))
    return "let in" if refusal is None else f"{refusal.status} {refusal.code}"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (OWN, "let in"),
        ("localhost:8399", "let in"),
        ("LocalHost:8399", "let in"),
        ("[::1]:8399", "let in"),
        ("127.0.0.1", "421 wrong_host"),
        ("127.0.0.1:80", "421 wrong_host"),
        ("127.0.0.2:8399", "421 wrong_host"),
        ("rebound.example:8399", "421 wrong_host"),
        ("localhost.example:8399", "421 wrong_host"),
        ("localhost:8399.example", "421 wrong_host"),
        ("", "421 wrong_host"),
    ],
)
def test_a_request_has_to_name_the_proxy(host: str, expected: str) -> None:
    assert origin_code("GET", "/v1/models", {"host": host}) == expected


def test_a_request_without_a_host_names_nobody() -> None:
    assert origin_code("GET", "/", {}) == "421 wrong_host"


def test_the_port_of_http_goes_without_saying() -> None:
    guard = Guard("127.0.0.1", 80, SECRETS)
    assert origin_code("GET", "/", {"host": "localhost"}, guard) == "let in"
    assert origin_code("GET", "/", {"host": "localhost:80"}, guard) == "let in"


def test_an_address_of_ip_version_6_stands_in_brackets() -> None:
    guard = Guard("::1", PORT, SECRETS)
    assert origin_code("GET", "/", {"host": "[::1]:8399"}, guard) == "let in"
    assert origin_code("GET", "/", {"host": OWN}, guard) == "421 wrong_host"


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (f"http://{OWN}", "let in"),
        ("null", "403 foreign_origin"),
        ("", "403 foreign_origin"),
        ("https://evil.example", "403 foreign_origin"),
        (f"https://{OWN}", "403 foreign_origin"),
        ("http://127.0.0.1:3000", "403 foreign_origin"),
        ("http://localhost:8399", "403 foreign_origin"),
        (f"http://{OWN}.evil.example", "403 foreign_origin"),
    ],
)
def test_pages_of_others_are_refused_even_with_the_right_token(origin: str, expected: str) -> None:
    headers = {"host": OWN, "origin": origin, "authorization": f"Bearer {SECRETS.token}"}
    assert origin_code("POST", "/v1/chat/completions", headers) == expected


def test_every_origin_that_is_named_counts() -> None:
    headers = Headers(
        raw=[
            (b"host", OWN.encode()),
            (b"origin", f"http://{OWN}".encode()),
            (b"origin", b"https://evil.example"),
        ]
    )
    refusal = GUARD.refuse_origin("POST", "/v1/models", headers)
    assert refusal is not None
    assert refusal.code == "foreign_origin"


@pytest.mark.parametrize(
    ("method", "path", "changes", "expected"),
    [
        ("GET", "/", {}, "let in"),
        ("GET", "/", {"sec-fetch-site": "same-site"}, "let in"),
        ("GET", "/v1/models", {}, "403 foreign_site"),
        ("GET", "/page/events", {}, "403 foreign_site"),
        ("POST", "/", {}, "403 foreign_site"),
        ("GET", "/", {"sec-fetch-dest": "iframe"}, "403 foreign_site"),
        ("GET", "/", {"sec-fetch-mode": "no-cors"}, "403 foreign_site"),
        ("GET", "/healthz", {"sec-fetch-mode": "no-cors"}, "403 foreign_site"),
        ("GET", "/v1/models", {"sec-fetch-site": "same-origin"}, "let in"),
        ("GET", "/v1/models", {"sec-fetch-site": "none"}, "let in"),
    ],
)
def test_other_sites_may_only_lead_a_user_to_the_page(
    method: str, path: str, changes: dict[str, str], expected: str
) -> None:
    assert origin_code(method, path, {**LED, **changes}) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": f"Bearer {SECRETS.token}"}, "let in"),
        ({"authorization": f"bearer  {SECRETS.token}"}, "let in"),
        ({"x-api-key": SECRETS.token}, "let in"),
        ({"api-key": SECRETS.token}, "let in"),
        ({"authorization": "Bearer sk-other", "x-api-key": SECRETS.token}, "let in"),
        ({}, "401 local_token"),
        ({"authorization": SECRETS.token}, "401 local_token"),
        ({"authorization": f"Basic {SECRETS.token}"}, "401 local_token"),
        ({"authorization": f"Bearer {SECRETS.token}x"}, "401 local_token"),
        ({"authorization": f"Bearer {SECRETS.token[:-1]}"}, "401 local_token"),
        ({"authorization": "Bearer "}, "401 local_token"),
        ({"x-api-key": ""}, "401 local_token"),
        ({"x-api-key": "\xff"}, "401 local_token"),
        ({"cookie": f"gz_trio_{PORT}={SECRETS.token}"}, "401 local_token"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/metrics", "/page/link", "/nothing"])
def test_the_local_token_is_wanted_in_one_of_the_three_key_headers(
    path: str, headers: dict[str, str], expected: str
) -> None:
    assert stranger_code("POST", path, headers) == expected


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("GET", "/", {}, "let in"),
        ("GET", "/page/sessions", {}, "let in"),
        ("HEAD", "/", {}, "let in"),
        ("POST", "/page/turns", {"origin": f"http://{OWN}"}, "let in"),
        ("POST", "/page/turns", {"sec-fetch-site": "same-origin"}, "let in"),
        ("GET", "/v1/models", {"sec-fetch-site": "same-origin"}, "let in"),
        # What a page at another port of this machine can have the browser send.
        ("POST", "/page/turns", {}, "401 local_token"),
        ("GET", "/v1/models", {}, "401 local_token"),
        ("GET", "/v1", {"sec-fetch-site": "none"}, "401 local_token"),
        ("POST", "/v1/chat/completions", {"sec-fetch-site": "none"}, "401 local_token"),
    ],
)
def test_the_cookie_is_for_the_page_and_for_nobody_who_is_led_along(
    method: str, path: str, headers: dict[str, str], expected: str
) -> None:
    cookie = SECRETS.set_cookie.partition(";")[0]
    sent = {"cookie": f"other=1; {cookie}; broken", **headers}
    assert stranger_code(method, path, sent) == expected
    assert stranger_code(method, path, {**headers, "cookie": f"{cookie}x"}).startswith("401 ")


def test_a_person_without_the_cookie_is_told_how_to_get_it() -> None:
    assert stranger_code("GET", "/", {}) == "401 no_link"


def test_whether_it_is_well_everybody_may_ask() -> None:
    assert stranger_code("GET", "/healthz", {}) == "let in"


def test_without_secrets_everybody_is_let_in_but_other_pages() -> None:
    guard = Guard("127.0.0.1", PORT, None)
    assert stranger_code("POST", "/v1/chat/completions", {}, guard) == "let in"
    assert origin_code("GET", "/", {"host": "evil.example"}, guard) == "421 wrong_host"
    headers = {"host": OWN, "origin": "null"}
    assert origin_code("POST", "/v1/models", headers, guard) == "403 foreign_origin"


def test_a_code_is_good_once_and_ends_the_one_before() -> None:
    secrets = LocalSecrets(PORT)
    assert not secrets.redeem("")
    first = secrets.new_code()
    second = secrets.new_code()
    assert not secrets.redeem(first)
    assert not secrets.redeem("ü")
    assert secrets.redeem(second)
    assert not secrets.redeem(second)


def test_each_start_has_secrets_of_its_own_and_none_is_another() -> None:
    other = LocalSecrets(PORT)
    assert len({SECRETS.token, SECRETS.set_cookie, other.token, other.set_cookie}) == 4
    assert SECRETS.token not in SECRETS.set_cookie
    assert SECRETS.token not in repr(SECRETS)


def test_scripts_and_other_sites_do_not_get_the_cookie() -> None:
    attributes = SECRETS.set_cookie.split("; ")[1:]
    assert attributes == ["HttpOnly", "SameSite=Strict", "Path=/"]
