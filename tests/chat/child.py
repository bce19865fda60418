"""Another process that chats: `python -m tests.chat.child BASE_URL STORE NUMBER SESSIONS`.

Its sessions share the key store, a file or a Redis URL, with other processes. It prints `begun`
when each of them has some text, and then, for each, the body that was sent and the text that came,
or what went wrong.
"""

from __future__ import annotations

import json
import sys

import trio

from gz_trio import Gateway, GatewayError, GatewayRefresh, open_authenticator, open_gateway
from tests.children import say, store_at


async def main(base_url: str, place: str, number: int, sessions: int) -> None:
    left = sessions
    told: list[tuple[dict[str, object], str, str]] = []

    async def chat(gateway: Gateway, chat: int) -> None:
        nonlocal left
        messages = [{"role": "user", "content": f"Process {number}, chat {chat}"}]
        body: dict[str, object] = {"model": "fake-model", "messages": messages}
        async with gateway.stream(body) as reply:
            error = ""
            try:
                await anext(reply)
                left -= 1
                if not left:
                    say("begun")
                async for _ in reply:
                    pass
            except GatewayError as raised:
                error = f"{type(raised).__name__}: {raised}"
            told.append((body, reply.text, error))

    async with (
        open_authenticator(store_at(place), GatewayRefresh(base_url, token="jwt")) as authenticator,
        open_gateway(base_url, authenticator) as gateway,
        trio.open_nursery() as nursery,
    ):
        for one in range(sessions):
            nursery.start_soon(chat, gateway, one)
    say(json.dumps(told))


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
