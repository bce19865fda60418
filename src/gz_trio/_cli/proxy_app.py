"""The command `gz-trio proxy` and its options, as `--help` shows them."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from . import proxy as command
from .auth import Place
from .run import run as run_command

NO_PLACE = Place()

# The command line's own `help` for this command comes before a docstring, not before this.
ABOUT = """
Any program that speaks OpenAI's or Anthropic's API gets a base URL and a local token in place of a
key, and never sees a 401 or a broken stream again: when a key dies in the middle of an answer, the
proxy gets another one and the answer goes on. At `/` there is a page to chat with.

The key comes from where `--store`, `--key-file` or `--profile` say, else from the environment
variable `GZ_API_KEY`, else from `OPENAI_API_KEY`, else it is the one that `gz-trio auth login` has
stored in its own file. When the gateway rejects it, streams wait for `--refresh-command`, or for
the gateway's `POST /auth` if there is an identity token in `GZ_IDENTITY_TOKEN`; without either for
somebody to sign in again, on the page or by `gz-trio auth login --same-account`.

Only this machine reaches it. Prints the base URLs, the local token and a link to the page, then a
line for each request. Ctrl-C ends it once open requests have ended, at most a minute later; a
second one at once.
"""

proxy = App(name="proxy", help_format="markdown", help_epilogue=ABOUT)


@proxy.default
def serve_proxy(
    *,
    base_url: str,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65_535))] = 8399,
    place: Place = NO_PLACE,
    refresh_command: str | None = None,
    key_header: command.KeyHeader = "Authorization",
    model: str | None = None,
    no_local_token: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Serve a gateway to the programs of this machine, over keys that expire.

    Args:
        base_url: The gateway's URL, like `https://api.gatewayz.ai/v1`.
        host: The loopback address to listen at.
        port: The port; 0 takes any that is free.
        place: Where the key is.
        refresh_command: A program that prints a new key, with its arguments; no shell runs it.
        key_header: The header that the gateway wants its key in.
        model: The model that the page begins with.
        no_local_token: Serve every program of this machine, whatever it sends for a key.
    """
    return run_command(
        partial(
            command.serve,
            base_url,
            host,
            port,
            place=place,
            refresh_command=refresh_command,
            key_header=key_header,
            model=model,
            local_token=not no_local_token,
            environment=os.environ,
        )
    )
