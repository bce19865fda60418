"""The servers of the interop tests, and what they really send.

`transformers serve` 5.23 with `--continuous-batching`, read off the wire:

- A reply is `text/event-stream; charset=utf-8`, chunked. The first chunk holds `role` alone and
  comes at once, before the engine has done anything: a 200 and a first event say nothing yet.
- **There is no `[DONE]`.** A whole reply ends with a chunk whose `delta` is `{}` and that holds
  `finish_reason` and `usage` both; a broken one ends without it. `usage` comes unasked;
  `stream_options` is ignored (and logged as unsupported).
- Text comes only when it is valid UTF-8 or cannot become so: bytes of broken UTF-8 wait for what
  follows and then arrive as U+FFFD, in one chunk with it. What still waits at the end is never
  sent, so a streamed text may lack U+FFFD at its end that the same answer has without streaming.
  A reply whose first token ends it has no text chunk at all. JSON escapes control characters, not
  U+FFFD.
- Keys with no value are left out (`finish_reason` of the chunks before the last); `model` comes
  back as `NAME@main`; `system_fingerprint` is `""`; the chunks' `id` is the header `x-request-id`,
  which the client may set (of two requests at once with the same one, one never gets its text).
- With `max_tokens` the finish reason is `length` (`stop` if the model ended first). Without, the
  limit is 1,024 tokens, whatever the model's own configuration says.
- `stop`, and any `temperature` but the first request's, are ignored under continuous batching; so
  is the first one's where the model's own configuration says `do_sample: false`.
- An unknown field in the body: 422 `{"detail": "Unexpected fields in the request: {'...'}"}`.
  Another model than the one it was started with: 400, not 404, `{"detail": "Server is pinned to
  ..."}`. JSON that does not parse: 422, `detail` a list. No or empty `messages`: 500, `text/plain`
  "Internal Server Error" without `x-request-id`. So is `GET /v1/models` where no cache folder is.
- A prompt that is longer than its cache: 200, the role chunk, then silence for ever.
- An error in mid-reply, by its source: `data: {"error": "..."}`, a string put in unescaped, and
  the end.
- It does not look at keys.

nginx 1.22, as a gateway that checks the key:

- Its 401 is an HTML page without `WWW-Authenticate`; `map` compares without regard to case.
- So are its 429, 502 and 504. It compresses nothing but 200, 403 and 404. An idle WebSocket it
  closes without a close frame.
- Of a server that is silent for `proxy_read_timeout`: 504 before the head, after it a body that
  breaks off. It prolongs no time-out by less than 300 ms, so one as short as that counts from the
  first byte.
- `nginx -s reload` leaves established replies to the old worker; until that has stopped accepting,
  a new connection may get either worker, so a new key may still meet the old map.
"""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import trio

from tests.interop.servers import Engine, Front, make_models

FIRST_KEY = "sk-interop-1"


@contextmanager
def shown_on_failure(log: Path) -> Generator[None]:
    """What a server logs during a test: pytest shows it if the test fails."""
    already = log.stat().st_size if log.exists() else 0
    yield
    with log.open("rb") as lines:
        lines.seek(already)
        last = lines.read().decode(errors="replace").splitlines()[-100:]
        sys.stdout.write("\n".join(["", f"{log.name}, the last lines:", *last, ""]))


async def until(condition: Callable[[], bool]) -> None:
    """For what nobody signals."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.001)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("torch") is None:
        pytest.skip("there is no inference engine here: run `nox -s interop`")
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture(scope="session")
def running_engine(models: Path) -> Generator[Engine]:
    engine = Engine(models / "greedy")
    with engine.running():
        yield engine


@pytest.fixture(scope="session")
def running_sampling_engine(models: Path) -> Generator[Engine]:
    engine = Engine(models / "sampling")
    with engine.running():
        yield engine


@pytest.fixture
def engine(running_engine: Engine) -> Generator[Engine]:
    """The inference engine itself, which takes any key or none."""
    with shown_on_failure(running_engine.log):
        yield running_engine


@pytest.fixture
def sampling_engine(running_sampling_engine: Engine) -> Generator[Engine]:
    """Another one, which never says the same twice."""
    with shown_on_failure(running_sampling_engine.log):
        yield running_sampling_engine


@pytest.fixture
def nginx(tmp_path: Path) -> Path:
    """A folder for a `Front`, where nginx is installed."""
    if not Front.installed():
        missing = "nginx is not installed: `apt-get install nginx-light`"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return tmp_path


@contextmanager
def running(front: Front) -> Generator[Front]:
    """Start nginx for a test."""
    with shown_on_failure(front.log):
        try:
            front.start()
            yield front
        finally:
            front.stop()


@pytest.fixture
def front(engine: Engine, nginx: Path) -> Generator[Front]:
    """nginx in front of the engine, started, which knows `FIRST_KEY`."""
    with running(Front(nginx, engine.port, FIRST_KEY)) as front:
        yield front
