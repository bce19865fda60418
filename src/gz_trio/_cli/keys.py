"""Where a command that talks to a gateway finds its key: its options say so, or the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .. import KeyStore, MemoryKeyStore
from .auth import Place, Store

KEY_VARIABLES = ("GZ_API_KEY", "OPENAI_API_KEY")


@dataclass(frozen=True)
class KeyAtHand:
    """A key store, and what there is to say of it.

    Args:
        store: It.
        shared: The same, if other programs can sign in and out there; else it is in memory.
        variable: The environment variable that its key comes from.
    """

    store: KeyStore
    shared: Store | None
    variable: str | None


def key_at_hand(place: Place, environment: Mapping[str, str], *, refreshed: bool) -> KeyAtHand:
    """The key of the options, else of the environment, else where `gz-trio auth login` puts it.

    Args:
        place: What the options say.
        environment: Where a key is looked for.
        refreshed: Whether there is a way to a key: then a place is used only if it is named.

    Raises:
        UsageError: An option or a variable lacks, or a package.
        ValueError: The key of the environment cannot be sent.
    """
    shared = place.open(environment)
    variable = next((name for name in KEY_VARIABLES if environment.get(name)), None)
    if place == Place() and (variable is not None or refreshed):
        key = environment[variable] if variable else None
        return KeyAtHand(MemoryKeyStore(key), None, variable)
    return KeyAtHand(shared, shared, None)
