"""The benchmark's server: a fake gateway in a process of its own, on a core of its own.

It prints its base URL, then obeys its standard input, one word a line: `rotate`, or `counts`,
which it answers with one line of JSON. It ends with its standard input.
"""

from __future__ import annotations

import argparse
import json
import sys

import trio

from gz_trio.testing import FakeGateway


def numbered_tokens(tokens: int, characters: int) -> list[str]:
    """An answer of so many tokens of so many characters, of which no two are the same."""
    return [f"{number:<{characters}}" for number in range(tokens)]


async def main(tokens: int, token_interval: float, token_characters: int | None) -> None:
    """Serve until the standard input ends."""
    gateway = FakeGateway("sk-1", tokens=tokens, token_interval=token_interval)
    if token_characters is not None:
        answer = numbered_tokens(tokens, token_characters)
        gateway = FakeGateway("sk-1", token_interval=token_interval, answer=lambda _, __: answer)
    commands = trio.wrap_file(sys.stdin)
    async with gateway.listen() as base_url:
        print(base_url, flush=True)
        async for line in commands:
            match line.strip():
                case "rotate":
                    gateway.rotate("sk-2")
                    print("rotated", flush=True)
                case "counts":
                    counts = {
                        "rejected": gateway.rejected,
                        "refreshes": gateway.refreshes,
                        "tokens": sum(request.tokens for request in gateway.requests),
                    }
                    print(json.dumps(counts), flush=True)
                case command:
                    raise ValueError(f"no such command: {command}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--token-interval", type=float, required=True)
    parser.add_argument("--token-characters", type=int)
    arguments = parser.parse_args()
    trio.run(main, arguments.tokens, arguments.token_interval, arguments.token_characters)
