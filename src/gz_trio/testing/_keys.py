"""Which API keys the fake gateway accepts: one at a time, or none."""

from __future__ import annotations

import re

from .._protocol.keys import Key


class KeyRing:
    """The valid key, and all that were valid before it."""

    def __init__(self, key: str) -> None:
        self.key = Key(key).value
        self.expired = False
        self._generations = {self.key: 1}

    @property
    def generation(self) -> int:
        """1 for the first key, one more for each that followed."""
        return len(self._generations)

    def generation_of(self, key: str | None) -> int | None:
        """The generation of a key; `None` for one that never was valid."""
        return None if key is None else self._generations.get(key)

    def rotate(self, key: str | None) -> str:
        """Put `key`, or one that is made up, in place of the valid one."""
        new = self._made_up() if key is None else Key(key).value
        if new in self._generations:
            raise ValueError("a key that was valid before cannot be the new one: give another")
        self._generations[new] = self.generation + 1
        self.key = new
        self.expired = False
        return new

    def rejection(self, key: str | None) -> str | None:
        """Why a request with this key is answered 401, if it is."""
        if key is None:
            return "Authorization header is required"
        if not key:
            return "API key is required"
        if key not in self._generations:
            return "Invalid API key"
        if self.expired or key != self.key:
            return "API key is inactive or expired"
        return None

    def _made_up(self) -> str:
        stem = re.sub(r"[_-]\d+$", "", self.key)
        number = self.generation + 1
        while (key := f"{stem}_{number}") in self._generations:
            number += 1
        return key
