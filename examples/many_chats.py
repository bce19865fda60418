"""Asks the same question in many chats at once; all of them share one key and its refresh.

python examples/many_chats.py https://api.gatewayz.ai/v1 gpt-4o-mini 100 print-a-key

The last argument is a program that prints a new key; it is run once whenever the old one is
rejected, however many chats were streaming.
"""

import sys

import trio

import gz_trio


async def chat(gateway: gz_trio.Gateway, model: str, lengths: list[int]) -> None:
    async with gateway.open_session(model) as session:
        lengths.append(len(await session.ask("How do stories begin?")))


async def main(base_url: str, model: str, number: int, *command: str) -> None:
    lengths: list[int] = []
    async with (
        gz_trio.open_authenticator(
            gz_trio.MemoryKeyStore(), gz_trio.CommandRefresh(command)
        ) as authenticator,
        gz_trio.open_gateway(base_url, authenticator) as gateway,
        trio.open_nursery() as nursery,
    ):
        for _ in range(number):
            nursery.start_soon(chat, gateway, model, lengths)
    print(f"{len(lengths)} answers, {sum(lengths)} characters")


if __name__ == "__main__":
    _, base_url, model, number, *command = sys.argv
    trio.run(main, base_url, model, int(number), *command)
