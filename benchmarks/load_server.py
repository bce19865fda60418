"""The load server: streams of tokens at a given pace, cheap enough to keep a client busy.

A process of its own, on a core of its own. It prints its port, then obeys its standard input, one
word a line, and answers each with one line of JSON; it ends with its standard input.

Raw non-blocking sockets and one epoll. Of a token nothing is made at its time but two stamps of
CLOCK_MONOTONIC, which processes share: when it was due, and when it was written. Each token is an
event of its own in an HTTP chunk of its own.

Who asks for a WebSocket gets one (RFC 6455), on which each text frame asks for a stream of the
Responses API; of its frames only what one client sends is understood.

Paced streams take their turns on a ring, in the order of their phases: no heap, no timer a stream.
Answers that end, each begun when it is asked for, are on a heap by their next token. A stream whose
socket is full misses no token: what it could not take is kept, with its stamps, so that a client
that is late sees how late.
"""

from __future__ import annotations

import base64
import ctypes
import gc
import hashlib
import heapq
import os
import random
import re
import resource
import select
import socket
import ssl
import sys
import time
from operator import attrgetter
from time import perf_counter_ns

import msgspec

WRITES_BETWEEN_LOOKS = 32
"""At most, before the server looks for requests and commands."""

TICK = 0.0001
"""The shortest sleep, in seconds: a finer one would cost more CPU than the writes. So much a token
may be late, and at 40,000 tokens a second four are written together."""

IDLE_SECONDS = 0.05
KEPT_BYTES = 1 << 20
"""Of a stream whose client does not read; from there on its tokens are left out, and counted."""

PR_SET_TIMERSLACK = 29
CONTENT_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
WEBSOCKET_KEY = re.compile(rb"sec-websocket-key: *([^\r\n]+)", re.IGNORECASE)
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BEARER = re.compile(rb"authorization: *bearer +([^\r\n]+)", re.IGNORECASE)
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

CHUNK = (
    b'data: {"id":"chatcmpl-BdJ8xKq2vTnUe5WfRz3yLm0aHs7Gc","object":"chat.completion.chunk",'
    b'"created":1764000000,"model":"gpt-4o-mini-2024-07-18",'
    b'"choices":[{"index":0,"delta":{"content":"%s"},"logprobs":null,"finish_reason":%s}]}\n\n'
)
STAMPS = b"%016d %016d"
"""Of a token: when it was due, and when it was written; nanoseconds of `perf_counter_ns`."""

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nX-Request-Id: req_7f3c1d2e9b8a4f60\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def http_chunk(data: bytes) -> bytes:
    """One chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# `%%`: the stamps are filled in later, and are as long as what stands for them here.
TOKEN = http_chunk(CHUNK % (STAMPS % (0, 0), b"null")).replace(STAMPS % (0, 0), STAMPS)
FINISH = http_chunk(CHUNK % (b"", b'"stop"')) + http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
USAGE = (
    b'data: {"id":"chatcmpl-BdJ8xKq2vTnUe5WfRz3yLm0aHs7Gc","object":"chat.completion.chunk",'
    b'"created":1764000000,"model":"gpt-4o-mini-2024-07-18","choices":[],'
    b'"usage":{"prompt_tokens":100,"completion_tokens":%d,"total_tokens":%d}}\n\n'
)
AUTH_ERROR = (
    http_chunk(
        b'data: {"error":{"message":"Authentication Error, key expired","type":"auth_error",'
        b'"param":"api_key","code":"401"}}\n\n'
    )
    + http_chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)
_UNAUTHORIZED_BODY = (
    b'{"error":{"message":"Authentication Error, expired key","type":"auth_error",'
    b'"param":"api_key","code":"401"}}'
)
UNAUTHORIZED = (
    b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(_UNAUTHORIZED_BODY), _UNAUTHORIZED_BODY)
)


def text_frame(data: bytes) -> bytes:
    """A message, as a server sends it."""
    size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2, "big")
    return b"\x81" + size + data


WEBSOCKET_TOKEN = text_frame(
    b'{"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_68f0c2e5b7d84a91",'
    b'"output_index":0,"content_index":0,"delta":"%s","logprobs":[]}' % (STAMPS % (0, 0))
).replace(STAMPS % (0, 0), STAMPS)
WEBSOCKET_HEAD = text_frame(
    b'{"type":"response.created","sequence_number":0,"response":{"id":"resp_68f0c2e5b7d84a91"}}'
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the server does with each request.

    Args:
        streams: So many begin together, when the last of them has been asked for: opening them is
            then no part of what is measured.
        interval: Seconds between the tokens of a stream; 0: as fast as it goes; `None`: there are
            none but the `first`.
        first: Tokens sent at once, in one write, when the stream is asked for.
        finish: Whether the answer ends with those.
        tokens: In place of streams without end: each request gets an answer of so many tokens of
            its own at once, the first when the request has been read, the last with the finish.
        per_write: Tokens a write.
        in_step: All streams have their tokens at the same instant; else phases are spread.
        tick: Seconds of the shortest sleep: what is due meanwhile is written together.
        seed: Of the phases.
        stamped: Whether tokens carry stamps. Else their text is the same in every answer.
        certificate: A file with a certificate chain and its key: TLS.
    """

    streams: int = 0
    interval: float | None = None
    first: int = 0
    finish: bool = False
    tokens: int = 0
    per_write: int = 1
    in_step: bool = False
    tick: float = TICK
    seed: int = 0
    stamped: bool = True
    certificate: str | None = None


class Counts(msgspec.Struct):
    """What the server did, and the two clocks at that instant, in nanoseconds."""

    cpu: int = 0
    now: int = 0
    accepted: int = 0
    open: int = 0
    requests: int = 0
    rejected: int = 0
    streams: int = 0
    tokens: int = 0
    left_out: int = 0
    answers: int = 0
    answering: int = 0
    """From reading the request to writing the last token, nanoseconds of all answers together."""


class Lateness(msgspec.Struct):
    """How late tokens of answers were written, in milliseconds, since it was last asked for."""

    samples: int
    p99: float
    max: float


LATENESS_STEP_NS = 10_000
LATENESS_STEPS = 10_000
"""Ten microseconds to a tenth of a second; what is later counts as that."""


class _Connection:
    __slots__ = (
        "asked", "events", "fd", "handshaking", "kept", "left", "open", "phase", "received",
        "send", "sock", "token", "websocket",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, *, handshaking: bool) -> None:
        self.sock = sock
        self.send = sock.send
        self.fd = sock.fileno()
        self.handshaking = handshaking
        self.events = select.EPOLLIN
        self.received = b""
        self.kept = b""  # What the socket did not take.
        self.phase = 0
        self.open = True
        self.websocket = False
        self.token = TOKEN
        self.asked = 0  # When its request was read.
        self.left = 0  # Tokens of its answer.


class Server:
    """One listener, its connections, and the ring of those that stream."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._counts = Counts()
        self._key: bytes | None = None  # Any will do.
        self._tls: ssl.SSLContext | None = None
        if plan.certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(plan.certificate)
        self._epoll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        self._streams: set[_Connection] = set()
        self._waiting: list[_Connection] = []  # For the last stream to be asked for.
        self._ring: list[_Connection] = []  # In the order of their phases.
        self._position = 0
        self._lap_began = 0
        self._interval = int((plan.interval or 0) * 1e9)
        self._phases = random.Random(plan.seed)
        self._unstamped = b"".join(TOKEN % (number, 0) for number in range(plan.per_write))
        self._first = plan.first
        self._answers: list[tuple[int, int, _Connection]] = []  # By when the next token is due.
        self._answer_end = http_chunk(CHUNK % (b"", b'"stop"')) + http_chunk(
            USAGE % (plan.tokens, 100 + plan.tokens)
        )
        self._answer_end += http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self._lateness = [0] * LATENESS_STEPS
        self._ended = False

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def run(self) -> None:
        """Serve until the standard input ends."""
        epoll = (self._epoll.fileno(),)
        while not self._ended:
            if self._answers:
                wait = self._write_answers()
            else:
                wait = self._write_what_is_due() if self._ring else IDLE_SECONDS
            # Not the epoll's own time-out, which is in milliseconds.
            if wait <= 0 or select.select(epoll, (), (), wait)[0]:
                for fd, mask in self._epoll.poll(0):
                    self._ready(fd, mask)

    def _write_what_is_due(self) -> float:
        """Seconds until the next token is due; 0 where there may be more to write now."""
        ring, per_write = self._ring, self._plan.per_write
        for _ in range(WRITES_BETWEEN_LOOKS):
            if not ring:
                return 0
            connection = ring[self._position]
            due = self._lap_began + connection.phase
            now = perf_counter_ns()
            if now < due:
                return max((due - now) / 1e9, self._plan.tick)
            if per_write == 1:
                self._write(connection, connection.token % (due, now))
            else:
                self._write(connection, (connection.token % (due, now)) * per_write)
            self._counts.tokens += per_write
            if not connection.open:
                continue  # It has left the ring, and the next one has its place.
            self._position += 1
            if self._position == len(ring):
                self._position = 0
                self._lap_began += self._interval
        return 0

    def _write_answers(self) -> float:
        """Likewise, of answers that end."""
        answers, lateness, counts = self._answers, self._lateness, self._counts
        for _ in range(WRITES_BETWEEN_LOOKS):
            if not answers:
                return 0
            due, number, connection = answers[0]
            now = perf_counter_ns()
            if now < due:
                return max((due - now) / 1e9, self._plan.tick)
            if not connection.open:
                heapq.heappop(answers)
                continue
            counts.tokens += 1
            lateness[min((now - due) // LATENESS_STEP_NS, LATENESS_STEPS - 1)] += 1
            connection.left -= 1
            if connection.left:
                heapq.heapreplace(answers, (due + self._interval, number, connection))
                self._write(connection, connection.token % (due, now))
            else:
                heapq.heappop(answers)
                counts.answers += 1
                counts.answering += now - connection.asked
                self._write(connection, connection.token % (due, now) + self._answer_end)
        return 0

    def _write(self, connection: _Connection, data: bytes) -> None:
        if connection.kept:
            if len(connection.kept) < KEPT_BYTES:
                connection.kept += data
            else:
                self._counts.left_out += 1
            return
        try:
            sent = connection.send(data)
        except WOULD_BLOCK:
            sent = 0
        except OSError:
            self._close(connection)
            return
        if sent != len(data):
            connection.kept = data[sent:]
            self._listen_for(connection, select.EPOLLIN | select.EPOLLOUT)

    def _ready(self, fd: int, mask: int) -> None:
        connection = self._connections.get(fd)
        if connection is not None:
            if connection.handshaking:
                self._shake_hands(connection)
            else:
                if mask & ~select.EPOLLOUT:
                    self._read(connection)
                if mask & select.EPOLLOUT and connection.open:
                    self._write_on(connection)
        elif fd == self._listener.fileno():
            self._accept()
        elif fd == sys.stdin.fileno():
            self._obey()

    def _write_on(self, connection: _Connection) -> None:
        """The socket takes more: what was kept, or in a flat-out stream the next tokens."""
        if connection.kept:
            data, connection.kept = connection.kept, b""
            self._write(connection, data)
        elif self._plan.interval == 0:
            self._write(connection, self._unstamped)
            self._counts.tokens += self._plan.per_write
        else:
            self._listen_for(connection, select.EPOLLIN)

    def _listen_for(self, connection: _Connection, events: int) -> None:
        if connection.events != events:
            connection.events = events
            self._epoll.modify(connection.fd, events)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            connection = _Connection(sock, handshaking=self._tls is not None)
            self._connections[connection.fd] = connection
            self._epoll.register(connection.fd, connection.events)
            self._counts.accepted += 1
            self._counts.open += 1

    def _shake_hands(self, connection: _Connection) -> None:
        assert isinstance(connection.sock, ssl.SSLSocket)
        try:
            connection.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._listen_for(connection, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._listen_for(connection, select.EPOLLOUT)
        except OSError:
            self._close(connection)
        else:
            connection.handshaking = False
            self._listen_for(connection, select.EPOLLIN)
            self._read(connection)  # The poller knows nothing of what TLS has taken in.

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(1 << 16)
        except WOULD_BLOCK:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.received += data
        if connection.websocket:
            self._read_frames(connection)
            return
        head, end, body = connection.received.partition(b"\r\n\r\n")
        if not end:
            return
        length = CONTENT_LENGTH.search(head)
        expected = int(length[1]) if length is not None else 0
        if len(body) >= expected:
            connection.received = body[expected:]
            self._answer(connection, head)

    def _read_frames(self, connection: _Connection) -> None:
        """The frames of a client, which are masked, and of less than 64 KiB."""
        while len(data := connection.received) >= 6:
            size, start = data[1] & 0x7F, 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            end = start + 4 + size
            if len(data) < end:
                return
            connection.received = data[end:]
            opcode = data[0] & 0x0F
            if opcode == 1:
                self._stream(connection, WEBSOCKET_HEAD)
            elif opcode == 8:
                self._close(connection)
                return
            elif opcode == 9:
                mask, payload = data[start : start + 4], data[start + 4 : end]
                plain = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
                self._write(connection, b"\x8a" + bytes([size]) + plain)

    def _upgrade(self, connection: _Connection, key: bytes) -> None:
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest())
        connection.websocket = True
        connection.token = WEBSOCKET_TOKEN
        self._write(
            connection,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept,
        )

    def _answer(self, connection: _Connection, head: bytes) -> None:
        plan = self._plan
        self._counts.requests += 1
        if self._key is not None:
            key = BEARER.search(head)
            if key is None or key[1] != self._key:
                self._counts.rejected += 1
                self._write(connection, UNAUTHORIZED)
                return
        websocket_key = WEBSOCKET_KEY.search(head)
        if websocket_key is not None:
            self._upgrade(connection, websocket_key[1])
        elif plan.tokens:
            self._begin_answer(connection)
        elif plan.finish:
            self._write(connection, self._begun(connection, HEAD) + FINISH)
        else:
            self._stream(connection, HEAD)

    def _begin_answer(self, connection: _Connection) -> None:
        connection.asked = perf_counter_ns()
        connection.left = self._plan.tokens
        heapq.heappush(self._answers, (connection.asked, self._counts.requests, connection))
        self._write(connection, HEAD)

    def _begun(self, connection: _Connection, head: bytes) -> bytes:
        data = head + b"".join(self._token(connection, number) for number in range(self._first))
        self._counts.tokens += self._first
        return data

    def _stream(self, connection: _Connection, head: bytes) -> None:
        self._write(connection, self._begun(connection, head))
        if connection.open:
            self._streams.add(connection)
            self._waiting.append(connection)
            if len(self._waiting) == self._plan.streams:
                self._begin()

    def _token(self, connection: _Connection, number: int) -> bytes:
        if self._plan.stamped:
            now = perf_counter_ns()
            return connection.token % (now, now)
        return connection.token % (number, 0)

    def _begin(self) -> None:
        """All streams that wait begin."""
        self._lap_began = perf_counter_ns()
        for connection in self._waiting:
            if self._plan.interval == 0:
                self._listen_for(connection, select.EPOLLIN | select.EPOLLOUT)
            elif self._plan.interval is not None:
                if not self._plan.in_step:
                    connection.phase = self._phases.randrange(self._interval)
                self._ring.append(connection)
        self._ring.sort(key=attrgetter("phase"))
        self._waiting.clear()

    def _close(self, connection: _Connection) -> None:
        if not connection.open:
            return
        connection.open = False
        self._counts.open -= 1
        if connection in self._ring:
            place = self._ring.index(connection)
            del self._ring[place]
            if place < self._position:
                self._position -= 1
            elif self._position == len(self._ring):
                self._position = 0
                self._lap_began += self._interval
        if connection in self._waiting:
            self._waiting.remove(connection)
        self._streams.discard(connection)
        del self._connections[connection.fd]
        self._epoll.unregister(connection.fd)
        connection.sock.close()

    def _obey(self) -> None:
        lines = os.read(sys.stdin.fileno(), 1 << 16).decode()
        if not lines:
            self._ended = True
        for line in lines.splitlines():
            match line.split():
                case ["mark"]:
                    pass
                case ["lateness"]:
                    print(msgspec.json.encode(self._take_lateness()).decode(), flush=True)
                    continue
                case ["rotate", key]:
                    # The streams that ran under the old key end as LiteLLM ends them. An answer
                    # under the new one is a token longer: the one by which a replay goes on.
                    self._key = key.encode()
                    self._first += 1
                    for connection in list(self._streams):
                        self._write(connection, AUTH_ERROR)
                    self._streams.clear()
                    self._waiting.clear()
                case _:
                    raise ValueError(f"no such command: {line}")
            self._counts.streams = len(self._streams)
            self._counts.cpu, self._counts.now = time.process_time_ns(), perf_counter_ns()
            print(msgspec.json.encode(self._counts).decode(), flush=True)

    def _take_lateness(self) -> Lateness:
        steps, self._lateness = self._lateness, [0] * LATENESS_STEPS
        samples = sum(steps)
        seen, p99, last = 0, 0, 0
        for step, count in enumerate(steps, start=1):
            if count:
                last = step
                if seen < samples * 0.99:
                    p99 = step
                seen += count
        return Lateness(samples, p99 * LATENESS_STEP_NS / 1e6, last * LATENESS_STEP_NS / 1e6)


def main() -> None:
    """Serve by the plan in the first argument."""
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    # Sleeps to the microsecond; the system's own slack is 50.
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    server = Server(plan)
    gc.disable()
    print(server.port, flush=True)
    server.run()


if __name__ == "__main__":
    main()
