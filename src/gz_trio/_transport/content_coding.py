"""Content codings (RFC 9110 section 8.4.1): what a compressed body says, a bounded piece at a time.

A few bytes may be compressed gigabytes, so no call makes more than `DECOMPRESSED_BYTES` of them.
"""

from __future__ import annotations

import zlib

from .._protocol.errors import APIConnectionError, ProtocolError

DECOMPRESSED_BYTES = 64 * 1024
"""At most so much comes of one call, for a reader may pause."""

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_RAW_DEFLATE = -zlib.MAX_WBITS
_GZIP_BEGINS = 0x1F  # RFC 1952 section 2.3.1
_ZLIB_METHOD = 8  # the lower half of the first byte, RFC 1950 section 2.2


def content_decoder(coding: str, origin: object) -> ContentDecoder | None:
    """The decoder of a body, or `None` where there is nothing to decode.

    Args:
        coding: The header `Content-Encoding`; `""` where there is none.
        origin: Whose answer it is; messages name it.

    >>> content_decoder("", "http://gateway.test") is None
    True
    """
    coding = coding.strip().lower()
    return None if coding in ("", "identity") else ContentDecoder(coding, origin)


class ContentDecoder:
    """Decodes one body. Made by `content_decoder`.

    `gzip` and `x-gzip` (of several members, too) and `deflate` (in the zlib format that the RFC
    asks for, and without it, as some servers send it) are known. Another coding is an error once
    there is a body: an empty one needs no decoding.

    >>> import gzip
    >>> decoder = ContentDecoder("gzip", "http://gateway.test")
    >>> decoder.decode(gzip.compress(b"Once upon a time"))
    b'Once upon a time'
    >>> decoder.has_more
    False
    >>> decoder.finish()
    """

    __slots__ = ("_coding", "_decompressor", "_ended", "_origin", "_over", "_rest", "has_more")

    def __init__(self, coding: str, origin: object) -> None:
        self.has_more = False
        self._coding = coding
        self._origin = origin
        self._decompressor: zlib._Decompress | None = None  # pyright: ignore[reportPrivateUsage]
        self._rest = b""
        self._ended = False
        self._over = False

    def decode(self, data: bytes) -> bytes:
        """What comes of `data`, which follows what was given before.

        At most `DECOMPRESSED_BYTES`. If then `has_more`, the rest comes of `decode(b"")`, of as
        many calls as it takes. Nothing comes only where nothing is left.

        Raises:
            ProtocolError: The coding is not known, or this is not it.
        """
        self._rest += data
        while not (decoded := self._decode_some()) and self.has_more:
            pass  # A member may be empty.
        return decoded

    def finish(self) -> None:
        """The body is at its end, and all that it gives has been taken.

        Raises:
            APIConnectionError: The body was cut: it ends before what is compressed in it does.
        """
        if self._decompressor is not None:
            raise APIConnectionError(
                f"the connection to {self._origin} broke: the compressed answer came without its "
                "end"
            )

    def _decode_some(self) -> bytes:
        """What comes of the rest, but not beyond the end of a member."""
        data, self._rest, self.has_more = self._rest, b"", False
        if self._decompressor is None:
            if not data or self._over:
                return b""
            if self._ended and (self._coding == "deflate" or data[0] != _GZIP_BEGINS):
                # Browsers and GNU gzip do not mind what follows the end, and is no member.
                self._over = True
                return b""
            self._decompressor = zlib.decompressobj(self._format(data[0]))
        try:
            decoded = self._decompressor.decompress(data, DECOMPRESSED_BYTES)
        except zlib.error as error:
            raise ProtocolError(f"the answer of {self._origin} is badly compressed") from error
        if self._decompressor.eof:
            self._rest = self._decompressor.unused_data
            self.has_more = bool(self._rest)
            self._decompressor = None
            self._ended = True
        else:
            self._rest = self._decompressor.unconsumed_tail
            # zlib may hold decoded bytes back though it has taken all that it was given.
            self.has_more = len(decoded) == DECOMPRESSED_BYTES
        return decoded

    def _format(self, first: int) -> int:
        if self._coding in ("gzip", "x-gzip"):
            return _GZIP_OR_ZLIB
        if self._coding == "deflate":
            # No compressor begins a raw block with these: they would be a reserved block type,
            # and a stored block whose padding is not zero (RFC 1951 section 3.2.3).
            wrapped = first == _GZIP_BEGINS or first & 0x0F == _ZLIB_METHOD
            return _GZIP_OR_ZLIB if wrapped else _RAW_DEFLATE
        raise ProtocolError(f"{self._origin} compresses in a way that was not asked for")
