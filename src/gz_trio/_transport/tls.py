"""TLS of one client connection, as bytes in and bytes out: no socket, no task, no waiting.

An `ssl.SSLObject` between two memory buffers. What a socket gave goes into `receive`, plaintext
comes out of `read`; plaintext goes into `write`, and what `take_outgoing` gives is to be sent. So
one loop over many sockets drives it as well as one task with one stream.

The end of the socket is never told to OpenSSL, but kept here: by an option of the context it may
take a connection that was cut off for one that was closed, and that is an attack (RFC 8446
section 6.1).
"""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from functools import cache

import httpx

from .._protocol.errors import APIConnectionError

_RECORD_BYTES = 16 * 1024  # the most plaintext that a record holds (RFC 8446 section 5.1)

_HTTP_1_1 = "http/1.1"  # its ALPN name (RFC 7301 section 6)

# OpenSSL's names of alerts that the server sent.
_ALERT = re.compile(r"(?:SSLV3|TLSV1|TLSV13)_(?:ALERT_)?(\w+)")

_ABOUT_OUR_CERTIFICATE = {
    "ACCESS_DENIED",
    "BAD_CERTIFICATE",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REQUIRED",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_UNKNOWN",
    "UNKNOWN_CA",
    "UNSUPPORTED_CERTIFICATE",
}

# What does not depend on how either side is set up, so may pass.
_PASSING_ALERTS = {"INTERNAL_ERROR", "USER_CANCELLED"}

_NO_COMMON_VERSION = {
    "NO_PROTOCOLS_AVAILABLE",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
}

_NOT_TRUSTED = (
    "its certificate is not signed by an authority that is trusted here: for a private one, give "
    "`ssl_context=` a context that knows it"
)
_ANOTHER_NAME = "its certificate is for another host: check the base URL"
_VERIFICATION = {  # by OpenSSL's X509_V_ERR codes
    9: "its certificate is not valid yet: is this machine's clock right?",
    10: "its certificate has expired: is this machine's clock right?",
    18: _NOT_TRUSTED,
    19: _NOT_TRUSTED,
    20: _NOT_TRUSTED,
    62: _ANOTHER_NAME,
    64: _ANOTHER_NAME,
}


class TlsClient:
    r"""The client's side of one TLS connection.

    `handshake` comes first. After each call, `take_outgoing` may hold something to be sent: replies
    that the server is owed, and after an error, when nothing else is of use, the alert.

    Args:
        context: What is trusted, and what is checked. It is not changed.
        server_hostname: Whom the certificate must be for: a host name, also an internationalised
            one (RFC 5890), or an IP address. A dot at its end, or a zone, is no part of the name.

    Raises:
        APIConnectionError: The name or the context cannot be used. Not retryable.

    >>> tls = TlsClient(default_ssl_context(), "gateway.test")
    >>> tls.handshake()  # its first step: the ClientHello
    False
    >>> tls.take_outgoing()[:1]
    b'\x16'
    """

    __slots__ = (
        "_cut_off",
        "_decrypt",
        "_ended",
        "_host",
        "_incoming",
        "_outgoing",
        "_ssl_object",
    )

    def __init__(self, context: ssl.SSLContext, server_hostname: str) -> None:
        self._host = server_hostname
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        try:
            self._ssl_object = context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=certificate_name(server_hostname)
            )
        except (ssl.SSLError, ValueError, httpx.InvalidURL) as error:
            raise APIConnectionError(
                f"no TLS connection to {server_hostname}: this name, or the `ssl_context=`, cannot "
                "be used by a client",
                retryable=False,
            ) from error
        self._decrypt = self._ssl_object.read  # a look-up less for each record
        self._cut_off = False  # the socket ended; whether properly, only what was received tells
        self._ended = False  # by a close_notify

    def handshake(self) -> bool:
        """Go on with the handshake. Call it first, then after each `receive` until it is done.

        Returns:
            Whether it is done. Then `has_more` tells whether the server has already said more.

        Raises:
            APIConnectionError: It failed; `retryable` tells whether another try may do better.
        """
        try:
            self._ssl_object.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError) as error:
            if self._cut_off or isinstance(error, ssl.SSLZeroReturnError):
                raise APIConnectionError(
                    f"no TLS connection to {self._host}: the server closed it during the "
                    "handshake; is it up, and the base URL right?"
                ) from None
            return False
        except ssl.SSLError as error:
            raise tls_error(error, self._host, in_handshake=True) from error
        if not self._speaks_http_1_1():
            raise APIConnectionError(
                f"no TLS connection to {self._host}: the server chose another protocol than "
                f"HTTP/1.1; let the `ssl_context=` offer {_HTTP_1_1} alone (set_alpn_protocols)",
                retryable=False,
            )
        return True

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take ciphertext that the server sent; `b""` is the end of what it sends.

        After `b""`, read until `read` gives `b""` or raises.
        """
        if data:
            self._incoming.write(data)
        else:
            self._cut_off = True

    def read(self) -> bytes | None:
        """The plaintext of the next record, at most 16 KiB.

        Returns:
            `b""` at the proper end, the server's close_notify; `None` if more ciphertext is needed.

        Raises:
            APIConnectionError: The connection ended without a close_notify, so there may have
                been more; or the server broke it off, or sent what is no TLS.
        """
        # An exception costs more than a record, so what can give nothing is not tried. OpenSSL
        # itself holds no plaintext back: it is given room for all that a record can hold.
        if self._incoming.pending:
            try:
                if data := self._decrypt(_RECORD_BYTES):
                    return data
            except ssl.SSLWantReadError:
                pass  # part of a record, or one about the connection itself
            except ssl.SSLZeroReturnError:
                self._end()
            except ssl.SSLError as error:
                self._incoming.read()
                raise tls_error(error, self._host, in_handshake=False) from error
            else:
                self._end()
        if self._ended:
            return b""
        if self._cut_off:
            raise APIConnectionError(
                f"the TLS connection to {self._host} was cut off: it ended without a close_notify"
            )
        return None

    @property
    def has_more(self) -> bool:
        """Whether `read` may give more, or an end, without another `receive`."""
        return self._incoming.pending > 0 or (self._cut_off and not self._ended)

    def write(self, data: bytes) -> None:
        """Encrypt `data`; then `take_outgoing` gives what is to be sent.

        Raises:
            APIConnectionError: The connection is closed or has failed, or the server is
                renegotiating (TLS 1.2, and a context that allows it).
        """
        try:
            self._ssl_object.write(data)
        except ssl.SSLError as error:
            renegotiating = isinstance(error, ssl.SSLWantReadError)
            why = "the server is renegotiating it" if renegotiating else "nothing can be sent now"
            raise APIConnectionError(f"the TLS connection to {self._host} broke: {why}") from error

    def close(self) -> None:
        """Say that no more will be written (close_notify). The server's is not waited for.

        Says nothing where there is no connection to close. Nothing can be read afterwards.
        """
        # It also looks for the server's close_notify, which need not have come.
        with suppress(ssl.SSLError):
            self._ssl_object.unwrap()

    def take_outgoing(self) -> bytes:
        """What is to be sent to the server, or `b""`."""
        return self._outgoing.read()

    def _speaks_http_1_1(self) -> bool:
        try:
            return self._ssl_object.selected_alpn_protocol() in (None, _HTTP_1_1)
        except UnicodeDecodeError:  # OpenSSL does not check that it was offered
            return False

    def _end(self) -> None:
        self._ended = True
        self._incoming.read()  # what comes after a close_notify is ignored (RFC 8446 section 6.1)


@cache
def default_ssl_context() -> ssl.SSLContext:
    """The context where the user gave none: it checks certificate and host name.

    One for all: to read the trusted certificates takes longer than a request. They are those that
    httpx trusts: of `SSL_CERT_FILE` or `SSL_CERT_DIR` where that is set, else certifi's.

    Raises:
        APIConnectionError: They cannot be read. Not retryable.
    """
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        raise APIConnectionError(
            "the trusted certificates cannot be read: check SSL_CERT_FILE and SSL_CERT_DIR",
            retryable=False,
        ) from error
    context.set_alpn_protocols([_HTTP_1_1])
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def certificate_name(host: str) -> str:
    """The name as a certificate, and SNI, have it (RFC 6066 section 3, RFC 6874 section 4)."""
    name = host.partition("%")[0]
    if not name.isascii():
        # Not left to the ssl module: it follows IDNA 2003, by which `straße` is another host's name
        # than the one that was resolved.
        name = httpx.URL(scheme="https", host=name).raw_host.decode("ascii")
    return name.removesuffix(".")


def tls_error(error: ssl.SSLError, host: str, *, in_handshake: bool) -> APIConnectionError:
    """What `error` means, in words. None of them are the server's: OpenSSL has tables of them.

    A handshake that failed would fail again, so it is not retryable, unless the server says that
    the trouble is its own. A connection that breaks later may do better as a new one.

    Args:
        error: What OpenSSL says of a handshake or a read.
        host: As the base URL names it.
        in_handshake: Whether the connection was still being made.
    """
    retryable = not in_handshake
    # A context that asks the operating system (truststore) raises errors with fewer attributes.
    reason = getattr(error, "reason", None) or ""
    words = f" ({reason.lower().replace('_', ' ')})" if reason else ""
    alert = match[1] if (match := _ALERT.fullmatch(reason)) else ""
    if isinstance(error, ssl.SSLCertVerificationError):
        code = getattr(error, "verify_code", 0)
        why = _VERIFICATION.get(code, f"its certificate does not pass verification (code {code})")
    elif reason in _NO_COMMON_VERSION:
        why = "no version of TLS is spoken by both sides"
    elif alert in _ABOUT_OUR_CERTIFICATE:
        # In TLS 1.3 the server looks at our certificate when for us the handshake is over.
        retryable = False
        why = (
            f"the server wants a client certificate, or another one ({alert.lower()}): give "
            "`ssl_context=` a context with it"
        )
    elif alert:
        retryable = retryable or alert in _PASSING_ALERTS
        why = f"the server broke it off ({alert.lower()})"
    elif in_handshake and reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        why = "what answers there does not speak TLS: check scheme and port of the base URL"
    elif in_handshake:
        why = f"the two sides come to no agreement{words}"
    else:
        why = f"what came is no TLS, or was changed on the way{words}"
    what = f"no TLS connection to {host}" if in_handshake else f"the TLS connection to {host} broke"
    return APIConnectionError(f"{what}: {why}", retryable=retryable)
