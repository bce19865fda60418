"""TLS of one client connection, the server in memory beside it: bytes in, bytes out."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st

from gz_trio import APIConnectionError, RetryPolicy
from gz_trio._protocol.retry import Raise, RetryHistory, decide
from gz_trio._transport.tls import TlsClient, default_ssl_context
from tests.secrets_guard import SECRET_MARK

HOST = "gateway.test"
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
CLOSE_NOTIFY = b""  # as `read` gives it

authority = trustme.CA()
certificate_of_host = authority.issue_cert(HOST)

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


# Not trustme's `configure_cert` and `configure_trust`: they are typed for PyOpenSSL too, which is
# not installed.
def with_certificate(context: ssl.SSLContext, pem: trustme.Blob) -> ssl.SSLContext:
    with pem.tempfile() as path:
        context.load_cert_chain(path)
    return context


def trusting(context: ssl.SSLContext) -> ssl.SSLContext:
    context.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
    return context


def speaking_only(
    context: ssl.SSLContext, version: ssl.TLSVersion, ciphers: str = ""
) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = version
    if ciphers:
        context.set_ciphers(ciphers)
    return context


def client_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """What a user makes for a private authority."""
    context = trusting(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    return context if version is None else speaking_only(context, version)


def server_context(certificate: trustme.LeafCert = certificate_of_host) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return with_certificate(context, certificate.private_key_and_cert_chain_pem)


class Server:
    """The other side."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl_object = (context or server_context()).wrap_bio(
            self.incoming, self.outgoing, server_side=True
        )

    def answer(self, data: bytes) -> bytes:
        """What it sends in the handshake when it gets `data`."""
        self.incoming.write(data)
        with suppress(ssl.SSLError):
            self.ssl_object.do_handshake()
        return self.outgoing.read()

    def say(self, *texts: bytes) -> bytes:
        """The ciphertext of `texts`, a record each."""
        for text in texts:
            self.ssl_object.write(text)
        return self.outgoing.read()

    def goodbye(self) -> bytes:
        """The ciphertext of a close_notify."""
        with suppress(ssl.SSLWantReadError):
            self.ssl_object.unwrap()
        return self.outgoing.read()

    def hear(self, data: bytes) -> bytes:
        """The plaintext of `data`."""
        self.incoming.write(data)
        heard = b""
        with suppress(ssl.SSLWantReadError):
            while text := self.ssl_object.read():
                heard += text
        return heard


def whole(data: bytes) -> Iterable[bytes]:
    return [data] if data else []


def shake_hands(
    client: TlsClient, server: Server, cut: Callable[[bytes], Iterable[bytes]] = whole
) -> None:
    done = client.handshake()
    while not done:
        for piece in cut(server.answer(client.take_outgoing())):
            client.receive(piece)
            done = done or client.handshake()
    for piece in cut(server.answer(client.take_outgoing())):
        client.receive(piece)


def connected(
    context: ssl.SSLContext | None = None, server: Server | None = None
) -> tuple[TlsClient, Server]:
    client, server = TlsClient(context or client_context(), HOST), server or Server()
    shake_hands(client, server)
    return client, server


def read_all(client: TlsClient) -> list[bytes]:
    """All that there is to read now, record by record, and the end if there is one."""
    records: list[bytes] = []
    while data := client.read():
        records.append(data)
    assert not client.has_more  # a loop over it would not end
    return records if data is None else [*records, data]


def read_to_the_end(client: TlsClient) -> list[bytes | str]:
    """Likewise, an error instead of the end."""
    records: list[bytes | str] = []
    try:
        while data := client.read():
            records.append(data)
    except APIConnectionError as error:
        return [*records, str(error)]
    assert data is not None, "more is waited for, though nothing more comes"
    return [*records, data]


def cut_at(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


# What is said comes over


@both_versions
def test_text_comes_over_both_ways_and_ends_with_a_close_notify(version: ssl.TLSVersion) -> None:
    client, server = connected(client_context(version))
    assert read_all(client) == []  # of TLS 1.3, session tickets have come: no text
    client.write(b"GET / HTTP/1.1\r\n\r\n")
    assert server.hear(client.take_outgoing()) == b"GET / HTTP/1.1\r\n\r\n"
    client.receive(server.say(b"HTTP/1.1 200 OK\r\n\r\n", b"Once"))
    assert read_all(client) == [b"HTTP/1.1 200 OK\r\n\r\n", b"Once"]
    client.receive(memoryview(server.say(b" upon a time") + server.goodbye()))
    assert read_all(client) == [b" upon a time", CLOSE_NOTIFY]
    assert client.take_outgoing() == b""


def test_what_the_server_says_together_with_its_last_flight_is_not_lost() -> None:
    client, server = TlsClient(client_context(TLS_1_2), HOST), Server()
    client.handshake()
    client.receive(server.answer(client.take_outgoing()))
    assert not client.handshake()
    client.receive(server.answer(client.take_outgoing()) + server.say(b"welcome"))
    assert client.handshake()
    assert client.has_more
    assert read_all(client) == [b"welcome"]


def test_a_read_gives_one_record_and_no_rest_of_it_stays_behind() -> None:
    client, server = connected()
    read_all(client)
    text = bytes(range(256)) * 256
    client.receive(server.say(text))
    records = [client.read() for _ in range(4)]
    assert records == [text[at : at + 16 * 1024] for at in range(0, len(text), 16 * 1024)]
    assert not client.has_more
    assert client.read() is None


def test_has_more_says_whether_there_may_be_something_to_read() -> None:
    client, server = connected()
    read_all(client)
    assert not client.has_more
    client.receive(server.say(b"one", b"two"))
    assert client.has_more
    assert client.read() == b"one"
    assert client.has_more
    assert client.read() == b"two"
    assert not client.has_more
    client.receive(server.say(b"three"))
    client.receive(b"")
    assert client.read() == b"three"
    assert client.has_more  # an end, and which one
    with pytest.raises(APIConnectionError, match="cut off"):
        client.read()


def test_after_a_proper_end_there_is_no_more() -> None:
    client, server = connected()
    read_all(client)
    client.receive(server.goodbye())
    client.receive(b"")
    assert client.has_more
    assert client.read() == CLOSE_NOTIFY
    assert not client.has_more


def test_openssl_is_not_asked_where_it_can_give_nothing() -> None:
    calls = 0  # an exception for each token would cost more than the token

    class Counting(ssl.SSLObject):
        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            nonlocal calls
            calls += 1
            return super().read(len, buffer)

    context = client_context()
    context.sslobject_class = Counting
    client, server = connected(context)
    read_all(client)
    calls = 0
    for _ in range(3):
        client.receive(server.say(b"token"))
        assert client.read() == b"token"
        assert client.read() is None
    assert calls == 3


@both_versions
@given(places=st.lists(st.integers(0, 5_000)), bytewise=st.booleans())
def test_it_does_not_matter_how_the_ciphertext_is_cut_up(
    version: ssl.TLSVersion, places: list[int], bytewise: bool
) -> None:
    def cut(data: bytes) -> list[bytes]:
        return cut_at(data, range(len(data)) if bytewise else places)

    client, server = TlsClient(client_context(version), HOST), Server()
    shake_hands(client, server, cut)
    read_all(client)
    texts = [b"a", b"b" * 250, b"c" * 3_000, b"d"]
    records: list[bytes] = []
    for piece in cut(server.say(*texts) + server.goodbye()):
        client.receive(piece)
        records += read_all(client)
    assert records == [*texts, CLOSE_NOTIFY]


async def test_it_speaks_with_trio_s_own_tls_over_a_stream_of_trio_s() -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def serve() -> None:
        stream = trio.SSLStream(theirs, server_context(), server_side=True)
        text = bytes(await stream.receive_some())
        await stream.send_all(text.upper())
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        client = TlsClient(client_context(), HOST)
        while not client.handshake():
            await ours.send_all(client.take_outgoing())
            client.receive(await ours.receive_some())
        client.write(b"hello")
        await ours.send_all(client.take_outgoing())
        records: list[bytes] = []
        while CLOSE_NOTIFY not in records:
            client.receive(await ours.receive_some())
            records += read_all(client)
    await ours.aclose()
    assert records == [b"HELLO", CLOSE_NOTIFY]


# The end


@both_versions
@pytest.mark.parametrize("option", [0, ssl.OP_IGNORE_UNEXPECTED_EOF])
def test_an_end_without_close_notify_is_an_error_wherever_it_comes(
    version: ssl.TLSVersion, option: int
) -> None:
    context = client_context(version)
    context.options |= option  # by which OpenSSL would call it a proper end
    texts = [b"Once", b" upon", b" a time"]
    _, server = connected(context)
    ends = [len(server.say(text)) for text in texts]
    ends = [sum(ends[: count + 1]) for count in range(len(ends))]
    for length in range(ends[-1] + 1):
        client, server = connected(context)
        read_all(client)
        client.receive((server.say(*texts) + server.goodbye())[:length])
        client.receive(b"")
        *records, end = read_to_the_end(client)
        assert records == texts[: sum(length >= end for end in ends)]
        assert end == (f"the TLS connection to {HOST} was cut off: it ended without a close_notify")


def test_a_connection_that_was_cut_off_is_worth_another_try_and_stays_cut_off() -> None:
    client, _ = connected()
    client.receive(b"")
    for _ in range(2):
        with pytest.raises(APIConnectionError, match="cut off") as caught:
            client.read()
        assert caught.value.retryable


@both_versions
def test_what_comes_after_a_close_notify_is_ignored(version: ssl.TLSVersion) -> None:
    client, server = connected(client_context(version))
    read_all(client)
    record = b"\x17\x03\x03\x00\x40" + b"x" * 0x40
    client.receive(server.goodbye() + record)
    for _ in range(2):
        assert client.read() == CLOSE_NOTIFY
        assert not client.has_more
    client.receive(record)
    assert client.read() == CLOSE_NOTIFY
    assert not client.has_more


@both_versions
def test_close_tells_the_server_and_waits_for_nothing(version: ssl.TLSVersion) -> None:
    client, server = connected(client_context(version))
    client.receive(server.say(b"not yet read"))
    client.write(b"last words")
    client.close()
    client.close()
    assert server.hear(client.take_outgoing()) == b"last words"
    assert server.ssl_object.read() == CLOSE_NOTIFY


def test_close_after_the_server_has_closed_answers_it() -> None:
    client, server = connected()
    client.receive(server.goodbye())
    assert read_all(client) == [CLOSE_NOTIFY]
    client.close()
    server.incoming.write(client.take_outgoing())
    server.ssl_object.unwrap()  # raises SSLWantReadError unless it has been answered
    assert client.read() == CLOSE_NOTIFY


def test_close_before_the_handshake_or_after_a_failure_says_nothing() -> None:
    client = TlsClient(client_context(), HOST)
    client.close()
    assert client.take_outgoing() == b""
    client, _ = connected()
    client.receive(b"\x17\x03\x03\x00\x02no")
    with pytest.raises(APIConnectionError):
        read_all(client)
    assert client.take_outgoing()  # the alert
    client.close()
    assert client.take_outgoing() == b""


def test_nothing_can_be_written_after_close_or_a_failure() -> None:
    client, _ = connected()
    client.close()
    with pytest.raises(
        APIConnectionError, match=f"the TLS connection to {HOST} broke: nothing can"
    ):
        client.write(b"more")
    client, _ = connected()
    client.receive(b"\x17\x03\x03\x00\x02no")
    with pytest.raises(APIConnectionError):
        read_all(client)
    with pytest.raises(
        APIConnectionError, match=f"the TLS connection to {HOST} broke: nothing can"
    ):
        client.write(b"more")


# Whom the certificate is for


@pytest.mark.parametrize(
    ("certified", "given_as", "server_name"),
    [
        ("gateway.test", "gateway.test", "gateway.test"),
        ("gateway.test", "GateWay.Test", "GateWay.Test"),
        ("gateway.test", "gateway.test.", "gateway.test"),
        ("*.gateway.test", "eu.gateway.test", "eu.gateway.test"),
        ("127.0.0.1", "127.0.0.1", None),
        ("::1", "::1", None),
        ("fe80::1", "fe80::1%eth0", None),
        ("bücher.test", "bücher.test", "xn--bcher-kva.test"),
        ("bücher.test", "bücher.test.", "xn--bcher-kva.test"),
        ("bücher.test", "bücher。test。", "xn--bcher-kva.test"),
        ("bücher.test", "xn--bcher-kva.test", "xn--bcher-kva.test"),
        ("straße.test", "straße.test", "xn--strae-oqa.test"),
    ],
)
def test_a_server_is_asked_for_by_name_and_has_to_prove_it(
    certified: str, given_as: str, server_name: str | None
) -> None:
    asked_for: list[str | None] = []

    def note(_object: object, name: str | None, _context: ssl.SSLContext) -> None:
        asked_for.append(name)

    context = server_context(authority.issue_cert(certified))
    context.sni_callback = note
    client, server = TlsClient(client_context(), given_as), Server(context)
    shake_hands(client, server)
    client.receive(server.say(b"hello"))
    assert read_all(client) == [b"hello"]
    assert asked_for == [server_name]


@pytest.mark.parametrize(
    ("certified", "given_as"),
    [
        ("other.test", "gateway.test"),
        ("*.test", "eu.gateway.test"),
        ("other.test", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "127.0.0.2"),
        ("::1", "::2"),
        ("strasse.test", "straße.test"),  # IDNA 2003 has one for the other
    ],
)
def test_a_certificate_for_another_host_is_refused(certified: str, given_as: str) -> None:
    client = TlsClient(client_context(), given_as)
    with pytest.raises(APIConnectionError) as caught:
        shake_hands(client, Server(server_context(authority.issue_cert(certified))))
    assert str(caught.value) == (
        f"no TLS connection to {given_as}: its certificate is for another host: check the base URL"
    )
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "name", ["", ".gateway.test", "a..test", "a" * 64 + ".test", "☃☃.test", "\udc80.test"]
)
def test_a_name_that_no_host_can_have_is_refused(name: str) -> None:
    with pytest.raises(APIConnectionError, match="cannot be used") as caught:
        TlsClient(client_context(), name)
    assert not caught.value.retryable


# Failures that a person has to see to


def client_certificate_wanted(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = trusting(server_context())
    context.verify_mode = ssl.CERT_REQUIRED
    return speaking_only(context, version)


def with_client_certificate(issuer: trustme.CA) -> ssl.SSLContext:
    pem = issuer.issue_cert("client.test").private_key_and_cert_chain_pem
    return with_certificate(client_context(), pem)


PAST, FUTURE = datetime(2020, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def not_presenting_its_intermediate() -> ssl.SSLContext:
    certificate = authority.create_child_ca().issue_cert(HOST)
    leaf = certificate.cert_chain_pems[0].bytes()
    pem = trustme.Blob(certificate.private_key_pem.bytes() + leaf)
    return with_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pem)


def self_signed() -> ssl.SSLContext:
    other = trustme.CA()
    pem = trustme.Blob(other.private_key_pem.bytes() + other.cert_pem.bytes())
    return with_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pem)


def presenting_its_authority() -> ssl.SSLContext:
    other = trustme.CA()
    pem = other.issue_cert(HOST).private_key_and_cert_chain_pem.bytes() + other.cert_pem.bytes()
    return with_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), trustme.Blob(pem))


def allowing_no_version() -> ssl.SSLContext:
    context = client_context(TLS_1_3)
    context.maximum_version = TLS_1_2
    return context


@pytest.mark.parametrize(
    ("server", "client", "message"),
    [
        pytest.param(
            lambda: server_context(trustme.CA().issue_cert(HOST)),
            client_context,
            "not signed by an authority that is trusted here: for a private one, give `ssl_context",
            id="another authority",
        ),
        pytest.param(
            self_signed,
            client_context,
            "not signed by an authority that is trusted here",
            id="self-signed",
        ),
        pytest.param(
            presenting_its_authority,
            client_context,
            "not signed by an authority that is trusted here",
            id="another authority, and its certificate",
        ),
        pytest.param(
            not_presenting_its_intermediate,
            client_context,
            "not signed by an authority that is trusted here",
            id="no chain",
        ),
        pytest.param(
            lambda: server_context(authority.issue_cert(HOST, not_before=PAST, not_after=PAST)),
            client_context,
            "its certificate has expired: is this machine's clock right?",
            id="expired",
        ),
        pytest.param(
            lambda: server_context(authority.issue_cert(HOST, not_before=FUTURE)),
            client_context,
            "its certificate is not valid yet: is this machine's clock right?",
            id="not valid yet",
        ),
        pytest.param(
            lambda: speaking_only(server_context(), TLS_1_2),
            lambda: client_context(TLS_1_3),
            "no version of TLS is spoken by both sides",
            id="server too old",
        ),
        pytest.param(
            lambda: speaking_only(server_context(), TLS_1_3),
            lambda: client_context(TLS_1_2),
            "no version of TLS is spoken by both sides",
            id="client too old",
        ),
        pytest.param(
            server_context,
            allowing_no_version,
            "no version of TLS is spoken by both sides",
            id="no version allowed",
        ),
        pytest.param(
            lambda: speaking_only(server_context(), TLS_1_2, "ECDHE-ECDSA-AES128-GCM-SHA256"),
            lambda: speaking_only(client_context(), TLS_1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"),
            r"the server broke it off \(handshake_failure\)",
            id="no cipher in common",
        ),
        pytest.param(
            lambda: client_certificate_wanted(TLS_1_2),
            client_context,
            r"the server broke it off \(handshake_failure\)",
            id="no client certificate, TLS 1.2",
        ),
        pytest.param(
            lambda: client_certificate_wanted(TLS_1_3),
            client_context,
            r"the server wants a client certificate, or another one \(certificate_required\): give",
            id="no client certificate, TLS 1.3",
        ),
        pytest.param(
            lambda: client_certificate_wanted(TLS_1_2),
            lambda: with_client_certificate(trustme.CA()),
            r"the server wants a client certificate, or another one \(unknown_ca\): give",
            id="client certificate of another authority, TLS 1.2",
        ),
        pytest.param(
            lambda: client_certificate_wanted(TLS_1_3),
            lambda: with_client_certificate(trustme.CA()),
            r"the server wants a client certificate, or another one \(unknown_ca\): give",
            id="client certificate of another authority, TLS 1.3",
        ),
    ],
)
def test_a_failure_by_how_either_side_is_set_up_names_host_and_reason_and_is_not_tried_again(
    server: Callable[[], ssl.SSLContext], client: Callable[[], ssl.SSLContext], message: str
) -> None:
    with pytest.raises(APIConnectionError, match=message) as caught:
        read_all(connected(client(), Server(server()))[0])
    error = caught.value
    assert re.match(f"(no|the) TLS connection to {HOST}( broke)?: ", str(error))
    assert isinstance(error.__cause__, ssl.SSLError)
    assert decide(error, history=RetryHistory(), policy=RetryPolicy(), jitter=0) == Raise()


def test_a_server_that_answers_with_an_older_version_has_none_in_common() -> None:
    client = TlsClient(client_context(), HOST)
    client.handshake()
    # TLS 1.0, a random number, no session, ECDHE_RSA_WITH_AES_128_CBC_SHA, no compression
    server_hello = b"\x03\x01" + b"x" * 32 + b"\x00" + b"\xc0\x13" + b"\x00"
    message = b"\x02" + len(server_hello).to_bytes(3, "big") + server_hello
    client.receive(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message)
    with pytest.raises(APIConnectionError, match="no version of TLS is spoken by both") as caught:
        client.handshake()
    assert not caught.value.retryable


def test_a_server_that_is_not_trusted_is_told_by_an_alert() -> None:
    client, server = TlsClient(ssl.create_default_context(), HOST), Server()
    with pytest.raises(APIConnectionError, match="not signed"):
        shake_hands(client, server)
    server.incoming.write(client.take_outgoing())
    with pytest.raises(ssl.SSLError, match="unknown ca"):
        server.ssl_object.read()


@both_versions
def test_a_client_certificate_is_given_where_the_context_has_one(version: ssl.TLSVersion) -> None:
    context = with_client_certificate(authority)
    client, server = connected(context, Server(client_certificate_wanted(version)))
    client.receive(server.say(b"hello"))
    assert read_all(client) == [b"hello"]
    presented = server.ssl_object.getpeercert()
    assert presented
    assert presented["subjectAltName"] == (("DNS", "client.test"),)


@pytest.mark.parametrize(
    "answer",
    [
        f"HTTP/1.1 400 Bad Request\r\n\r\n{SECRET_MARK}".encode(),
        f"SSH-2.0-OpenSSH_9.2 {SECRET_MARK}\r\n".encode(),
        b"\0" * 100,
        b"{}" * 3,
    ],
)
def test_a_server_that_speaks_no_tls_is_called_so_and_not_quoted(answer: bytes) -> None:
    client = TlsClient(client_context(), HOST)
    client.handshake()
    client.receive(answer)
    with pytest.raises(APIConnectionError) as caught:
        client.handshake()
    assert str(caught.value) == (
        f"no TLS connection to {HOST}: what answers there does not speak TLS: check scheme and "
        "port of the base URL"
    )
    assert not caught.value.retryable


def broken_off(client: TlsClient) -> str:
    with pytest.raises(APIConnectionError) as caught:
        client.handshake()
    assert caught.value.retryable
    return str(caught.value)


def test_a_handshake_that_is_broken_off_is_worth_another_try() -> None:
    message = (
        f"no TLS connection to {HOST}: the server closed it during the handshake; is it up, and "
        "the base URL right?"
    )
    for missing in range(1, 400, 7):
        client = TlsClient(client_context(TLS_1_2), HOST)
        client.handshake()
        client.receive(Server().answer(client.take_outgoing())[:-missing])
        assert not client.handshake()
        client.receive(b"")
        assert broken_off(client) == message
    client = TlsClient(client_context(), HOST)
    client.handshake()
    client.receive(b"\x15\x03\x03\x00\x02\x01\x00")  # close_notify
    assert broken_off(client) == message


def test_only_a_server_that_says_that_the_trouble_is_its_own_is_worth_another_try() -> None:
    passing: set[int] = set()
    for description in range(256):
        client = TlsClient(client_context(), HOST)
        client.handshake()
        client.receive(bytes([21, 3, 3, 0, 2, 2, description]))  # a fatal alert
        with pytest.raises(APIConnectionError, match=f"no TLS connection to {HOST}: ") as caught:
            client.handshake()
        if caught.value.retryable:
            passing.add(description)
    assert passing == {80, 90}  # internal_error, user_canceled (RFC 8446 section 6)


@pytest.mark.parametrize("offered", [["h2"], ["h2", "http/1.1"]])
def test_a_context_by_which_the_server_chooses_http_2_is_refused(offered: list[str]) -> None:
    client, server = client_context(), server_context()
    client.set_alpn_protocols(offered)
    server.set_alpn_protocols(["h2", "http/1.1"])
    with pytest.raises(APIConnectionError, match=r"offer http/1\.1 alone") as caught:
        connected(client, Server(server))
    assert not caught.value.retryable


def test_a_protocol_that_nobody_offered_is_refused() -> None:
    class ChosenByTheServer(ssl.SSLObject):
        def selected_alpn_protocol(self) -> str | None:
            return b"\xff".decode()  # which is how the ssl module reads it

    context = client_context()
    context.sslobject_class = ChosenByTheServer
    with pytest.raises(APIConnectionError, match=r"offer http/1\.1 alone"):
        connected(context)


def test_a_context_for_servers_is_refused() -> None:
    with pytest.raises(APIConnectionError, match="`ssl_context=`, cannot be used") as caught:
        TlsClient(server_context(), HOST)
    assert not caught.value.retryable


def test_a_context_that_verifies_by_itself_is_asked_and_not_quoted() -> None:
    # As truststore does, which asks the operating system; its words may be the certificate's.
    class Verifying(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            raise ssl.SSLCertVerificationError(f"{SECRET_MARK}: not in the key chain")

    context = client_context()
    context.sslobject_class = Verifying
    with pytest.raises(APIConnectionError, match="does not pass verification") as caught:
        connected(context)
    assert not caught.value.retryable


# What breaks on the way


@both_versions
@given(at=st.integers(0, 200), change=st.integers(1, 255))
def test_a_changed_byte_changes_no_text_and_is_an_error(
    version: ssl.TLSVersion, at: int, change: int
) -> None:
    client, server = connected(client_context(version))
    read_all(client)
    texts = [b"Once", b" upon", b" a time"]
    data = bytearray(server.say(*texts) + server.goodbye())
    data[at % len(data)] ^= change
    client.receive(bytes(data))
    client.receive(b"")
    *records, end = read_to_the_end(client)
    assert records == texts[: len(records)]
    assert isinstance(end, str)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="plaintext"),
        pytest.param(b"\x17\x03\x03\xff\xff" + b"x" * 0xFFFF, id="a record too large"),
        pytest.param(b"\x17\x03\x03\x00\x40" + b"x" * 0x40, id="a record of nobody's"),
        pytest.param(b"\x15\x03\x03\x00\x02\x02\x50", id="an alert in the clear"),
        pytest.param(b"\x16\x03\x03\x00\x04\x00\x00\x00\x00", id="a HelloRequest in the clear"),
    ],
)
@both_versions
def test_what_is_no_record_of_this_connection_breaks_it_and_is_worth_another_try(
    version: ssl.TLSVersion, damage: bytes
) -> None:
    client, server = connected(client_context(version))
    read_all(client)
    client.receive(server.say(b"before") + damage)
    assert client.read() == b"before"
    with pytest.raises(APIConnectionError, match=f"the TLS connection to {HOST} broke") as caught:
        client.read()
    assert caught.value.retryable
    assert not client.has_more
    assert client.take_outgoing()[0] == 23 if version is TLS_1_3 else 21  # an alert tells the peer


@given(answers=st.lists(st.binary(min_size=1), min_size=1), in_handshake=st.booleans())
def test_whatever_comes_the_only_error_is_ours(answers: list[bytes], in_handshake: bool) -> None:
    client = TlsClient(client_context(), HOST)
    if not in_handshake:
        client, _ = connected()
    with pytest.raises(APIConnectionError):
        for answer in [*answers, b""]:
            client.receive(answer)
            if in_handshake:
                client.handshake()
            else:
                read_all(client)


# After the handshake


@contextmanager
def openssl_server(
    version: str, context: ssl.SSLContext, directory: Path
) -> Generator[OpensslServer]:
    (directory / "certificate.pem").write_bytes(
        certificate_of_host.private_key_and_cert_chain_pem.bytes()
    )
    command = ["openssl", "s_server", version, "-accept", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "-cert", str(directory / "certificate.pem")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            assert process.stdout
            while not (match := re.match(rb"ACCEPT .*:(\d+)", process.stdout.readline())):
                assert process.poll() is None
            with socket.create_connection(("127.0.0.1", int(match[1])), timeout=30) as sock:
                yield OpensslServer(process, sock, TlsClient(context, HOST))
        finally:
            process.kill()


class OpensslServer:
    """`openssl s_server`, which can do what the ssl module cannot, and a client of it."""

    def __init__(
        self, process: subprocess.Popen[bytes], sock: socket.socket, client: TlsClient
    ) -> None:
        self._process = process
        self._sock = sock
        self.client = client
        while not client.handshake():
            self.send()
            self.receive()
        self.send()

    def command(self, line: bytes) -> None:
        """A command, if it is one (`openssl-s_server(1)`), else a text to send."""
        assert self._process.stdin
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def send(self) -> bytes:
        sent = self.client.take_outgoing()
        self._sock.sendall(sent)
        return sent

    def receive(self) -> None:
        self.client.receive(self._sock.recv(65536))

    def read(self) -> bytes:
        """The next text."""
        while (data := self.client.read()) is None:
            self.send()
            self.receive()
        return data


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def content_types(data: bytes) -> list[int]:
    """Of each record (RFC 8446 section 5.1); 23 is what the others look like when encrypted."""
    types: list[int] = []
    while data:
        types.append(data[0])
        data = data[5 + int.from_bytes(data[3:5], "big") :]
    return types


@needs_openssl
def test_new_keys_are_taken_and_answered_with_new_keys_before_the_next_text(
    tmp_path: Path,
) -> None:
    with openssl_server("-tls1_3", client_context(), tmp_path) as server:
        server.command(b"first\n")
        assert server.read() == b"first\n"
        server.client.write(b"text\n")
        assert content_types(server.send()) == [23]
        for _ in range(3):
            server.command(b"K\n")  # KeyUpdate, update_requested (RFC 8446 section 4.6.3)
            server.receive()
            assert server.client.read() is None
            server.command(b"next\n")
            assert server.read() == b"next\n"
            server.client.write(b"text\n")
            assert content_types(server.send()) == [23, 23]  # the KeyUpdate, then the text
        server.command(b"k\n")  # KeyUpdate, update_not_requested
        server.receive()
        assert server.client.read() is None
        server.command(b"last\n")
        assert server.read() == b"last\n"
        server.client.write(b"text\n")
        assert content_types(server.send()) == [23]


@needs_openssl
def test_no_server_renegotiates_a_context_of_ours(
    tmp_path: Path, context_of_ours: ssl.SSLContext
) -> None:
    with openssl_server("-tls1_2", context_of_ours, tmp_path) as server:
        server.command(b"text\n")
        assert server.read() == b"text\n"
        server.command(b"r\n")
        server.receive()
        assert server.client.read() is None
        assert content_types(server.send()) == [21]  # the alert no_renegotiation, no ClientHello
        with pytest.raises(APIConnectionError, match=r"broke it off \(handshake_failure\)"):
            server.read()


@needs_openssl
def test_a_context_of_the_user_s_that_lets_servers_renegotiate_stays_so(tmp_path: Path) -> None:
    with openssl_server("-tls1_2", client_context(), tmp_path) as server:
        server.command(b"r\n")
        server.receive()
        assert server.client.read() is None
        with pytest.raises(APIConnectionError, match="the server is renegotiating it"):
            server.client.write(b"meanwhile")
        server.command(b"text\n")
        assert server.read() == b"text\n"


# Contexts


@pytest.fixture
def context_of_ours(monkeypatch: pytest.MonkeyPatch) -> Generator[ssl.SSLContext]:
    """What `default_ssl_context` gives where the environment names the authority."""
    with authority.cert_pem.tempfile() as path:
        monkeypatch.setenv("SSL_CERT_FILE", path)
        yield default_ssl_context.__wrapped__()


def test_a_context_of_ours_verifies_and_offers_http_1_1(context_of_ours: ssl.SSLContext) -> None:
    context = server_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, server = connected(context_of_ours, Server(context))
    assert server.ssl_object.selected_alpn_protocol() == "http/1.1"
    with pytest.raises(APIConnectionError, match="not signed"):
        connected(context_of_ours, Server(server_context(trustme.CA().issue_cert(HOST))))
    with pytest.raises(APIConnectionError, match="for another host"):
        connected(context_of_ours, Server(server_context(authority.issue_cert("other.test"))))


def test_there_is_one_context_of_ours_because_to_make_one_takes_long() -> None:
    assert default_ssl_context() is default_ssl_context()


@pytest.mark.parametrize("content", [None, b"no certificates"])
def test_trusted_certificates_that_cannot_be_read_are_an_error_that_says_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(APIConnectionError, match="check SSL_CERT_FILE") as caught:
        default_ssl_context.__wrapped__()
    assert not caught.value.retryable


def test_a_context_of_the_user_s_is_left_as_it_is() -> None:
    context = client_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    before = (context.options, context.minimum_version, context.verify_flags)
    server = server_context(trustme.CA().issue_cert("other.test"))
    server.set_alpn_protocols(["http/1.1"])
    _, peer = connected(context, Server(server))
    assert peer.ssl_object.selected_alpn_protocol() is None
    assert (context.options, context.minimum_version, context.verify_flags) == before
    assert (context.check_hostname, context.verify_mode) == (False, ssl.CERT_NONE)
