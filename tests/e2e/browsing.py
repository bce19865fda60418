"""A chat page in a real browser, before a proxy and a fake gateway that run in a thread beside it.

Playwright has the test's thread for its own loop, and Trio another, which `open_site` starts and
ends. Screenshots go into `screenshots` beside this file, or where `GZ_TRIO_SCREENSHOTS` says.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

import trio
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect

from gz_trio import Key, MemoryKeyStore, open_authenticator, open_gateway
from gz_trio.proxy import Proxy, open_proxy
from gz_trio.testing import FakeGateway, Stall

_T = TypeVar("_T")

SCREENSHOTS = Path(os.environ.get("GZ_TRIO_SCREENSHOTS") or Path(__file__).with_name("screenshots"))


ANSWER = """\
A **stream** outlives the key that it was started with.

## In three steps

1. The gateway answers *401*, and the stream pauses.
2. The key is refreshed **once**, however many streams wait:
   - who comes later joins them
   - a late 401 takes the newer key
3. Each stream goes on where it stopped.

```python
async with session.stream("Tell me a story.") as reply:
    async for delta in reply:  # pauses and carries on over a 401, and this line is rather long
        print(delta.text, end="", flush=True)
```

| failure | what follows |
|---|---|
| `401` | refresh the key, then go on |
| `429` | wait, then go on |

> No text lost, none doubled.

See [the documentation](https://example.org/docs), or try `gz-trio demo`.
"""


class Site:
    """A proxy with its page, the gateway behind it, and a browser that looks at it.

    Args:
        fake: The gateway; what is done with it while it serves goes through `do`.
        browser: The browser.
        name: Of the test, for screenshots.

    Attributes:
        errors: What the browser wrote into its console: errors, warnings, violations of the
            policy, exceptions.
        requests: All that the browser asked for.
    """

    def __init__(self, fake: FakeGateway, browser: Browser, name: str) -> None:
        self.fake = fake
        self.errors: list[str] = []
        self.requests: list[Request] = []
        self._name = name
        self._browser = browser
        self._context = browser.new_context()
        self._proxy: Proxy
        self._token: trio.lowlevel.TrioToken
        self._ready = threading.Event()
        self._done = trio.Event()
        self._may_refresh = trio.Event()
        self._may_refresh.set()

    # The server's side

    @contextmanager
    def serve(self, *, refreshable: bool, signed_in: bool) -> Generator[None]:
        """Serve in a thread, for as long as the block runs."""
        thread = threading.Thread(target=trio.run, args=(self._serve, refreshable, signed_in))
        thread.start()
        try:
            assert self._ready.wait(30)
            yield
        finally:
            self._context.close()
            self.do(self._done.set)
            thread.join()

    async def _serve(self, refreshable: bool, signed_in: bool) -> None:
        self._token = trio.lowlevel.current_trio_token()
        refresh = self._refresh if refreshable else None
        async with (
            self.fake.listen() as base_url,
            open_authenticator(
                MemoryKeyStore(self.fake.key if signed_in else None),
                refresh,
                wait_for_sign_in=True,
            ) as authenticator,
            open_gateway(base_url, authenticator) as gateway,
            open_proxy(gateway, log=lambda _line: None) as self._proxy,
        ):
            self._ready.set()
            await self._done.wait()
            self._proxy.end_now()

    async def _refresh(self, rejected: Key | None) -> str:
        await self._may_refresh.wait()
        return await self.fake.refresh(rejected)

    def do(self, what: Callable[..., _T], *arguments: object) -> _T:
        """Call something in Trio's thread."""
        return trio.from_thread.run_sync(what, *arguments, trio_token=self._token)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something of the server's."""

        async def wait() -> None:
            with trio.fail_after(10):
                while not condition():  # noqa: ASYNC110 - what may be asked for has no event
                    await trio.sleep(0.005)

        trio.from_thread.run(wait, trio_token=self._token)

    def hold_refresh(self) -> None:
        """Have refreshes wait."""
        self._may_refresh = trio.Event()

    def let_refresh_go(self) -> None:
        """Let them go."""
        self.do(self._may_refresh.set)

    # The browser's side

    def open(
        self,
        *,
        width: int = 1200,
        height: int = 800,
        scheme: Literal["light", "dark"] = "light",
    ) -> Page:
        """A tab with the page."""
        page = self._context.new_page()
        page.set_default_timeout(10_000)
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda sent: self.requests.append(sent))  # noqa: PLW0108
        known = bool(self._context.cookies())
        page.goto(f"{self._proxy.url}/" if known else self.do(self._proxy.new_page_url))
        expect(page.locator("#account-words")).not_to_be_empty()
        return page

    def _listen(self, told: ConsoleMessage) -> None:
        if told.type in ("error", "warning"):
            self.errors.append(told.text)

    def screenshot(self, page: Page, name: str = "") -> None:
        """Keep what is to be seen, as a file of the test run."""
        file = re.sub(r"\W+", "-", f"{self._name} {name}".strip())
        page.screenshot(path=SCREENSHOTS / f"{file}.png")

    # What both have of a conversation

    def kept(self) -> list[tuple[str, str]]:
        """All messages in the gateway's history: role and content."""
        history = self.fake.history
        return self.do(
            lambda: [
                (str(message["role"]), str(message["content"]))
                for session in history.sessions
                for message in history.messages(session)
            ]
        )


class OpenSite(Protocol):
    """What the fixture `open_site` gives."""

    def __call__(
        self, fake: FakeGateway, *, refreshable: bool = True, signed_in: bool = True
    ) -> Site: ...


def counted(body: Mapping[str, object], _attempt: int) -> list[str]:
    """An answer whose every word is another, so that none can be lost or doubled unseen."""
    return [f"word-{number} " for number in range(40)]


COUNTED = "".join(counted({}, 1)).strip()


def stopping_at_word_8() -> FakeGateway:
    """A gateway whose first answer goes no further, until its key dies or its reader leaves."""
    fake = FakeGateway(answer=counted)
    fake.fault(Stall(), token=8)
    return fake


def ask(page: Page, question: str) -> None:
    """Type a question, and send it."""
    expect(page.locator("#model")).not_to_have_value("")
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")


def shows_one_turn(page: Page, question: str, answer: str) -> None:
    """The page shows this turn, complete, and nothing else."""
    expect(page.locator(".running")).to_have_count(0)
    expect(page.locator(".question .words")).to_have_text([question])
    expect(page.locator(".answer .markdown")).to_have_text([answer])


def sign_in(page: Page, key: str, *, same_account: bool) -> None:
    """Paste a key into the form."""
    page.locator("#open-sign-in").click()
    page.locator("#key").fill(key)
    page.get_by_label("The same account's" if same_account else "Another account's").check()
    page.locator("#sign-in-do").click()
    expect(page.locator("#sign-in")).to_be_hidden()


def devtools(page: Page, method: str, **parameters: object) -> dict[str, object]:
    """What is said by the browser's own protocol, which the page's policy does not bind."""
    session = page.context.new_cdp_session(page)
    return cast(
        "dict[str, object]",
        session.send(method, parameters),  # pyright: ignore[reportUnknownMemberType]
    )
