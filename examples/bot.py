"""Answers a question over any OpenAI-compatible gateway; the key is in the file key.json.

python examples/bot.py https://api.gatewayz.ai/v1 gpt-4o-mini "How do stories begin?" print-a-key

The last argument is a program that prints a new key; it is run when the old one is rejected.
"""

import sys
from collections.abc import Callable

import trio

import gz_trio


async def answer(session: gz_trio.Session, question: str, show: Callable[[str], None]) -> None:
    """Show the answer as it is written, and why it pauses."""
    async with session.stream(question) as reply:
        async for event in reply.events():
            match event:
                case gz_trio.Delta(text=text):
                    show(text)
                case gz_trio.Paused(reason="refresh"):
                    show(" (signing in ...) ")
                case gz_trio.RateLimited(wait=seconds):
                    show(f" (the gateway is busy, going on in {seconds:.0f} s) ")
                case _:
                    pass


async def main(base_url: str, model: str, question: str, *command: str) -> None:
    async with gz_trio.open_session(
        base_url,
        model=model,
        store=gz_trio.FileKeyStore("key.json"),
        refresh=gz_trio.CommandRefresh(command),
    ) as session:
        await answer(session, question, lambda text: print(text, end="", flush=True))
    print()


if __name__ == "__main__":
    _, base_url, model, question, *command = sys.argv
    try:
        trio.run(main, base_url, model, question, *command)
    except gz_trio.GatewayError as error:
        sys.exit(f"no answer: {error}")
