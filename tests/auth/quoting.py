"""Whether an error gives secrets away."""

from __future__ import annotations

import traceback

from gz_trio import GatewayError


def assert_quotes_nothing(error: GatewayError, *secrets: str) -> None:
    """Neither the message nor a traceback nor a cause shows any of `secrets`."""
    shown = "".join(traceback.format_exception(error)) + repr(error)
    links: list[BaseException | None] = [error.__cause__, error.__context__]
    for link in filter(None, links):
        shown += repr(vars(link)) + repr(link)
    for secret in secrets:
        assert secret not in shown
