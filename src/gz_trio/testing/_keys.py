"""Which API keys the fake gateway accepts: of each account one at a time, or none."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .._protocol.keys import Key


@dataclass(slots=True, eq=False)
class Account:
    """Whose keys they are.

    Attributes:
        key: The valid one, or the last that was.
        generation: 1 for the first key, one more for each that followed.
        expired: Whether there is no valid one.
    """

    key: str
    generation: int = 1
    expired: bool = False


class KeyRing:
    """The valid key of each account, and all that were valid before.

    Args:
        key: The first key of the default account.

    Attributes:
        default: The account of whoever signs in with a token that is no other account's.
    """

    def __init__(self, key: str) -> None:
        self.default = Account(Key(key).value)
        self._accounts: dict[str, Account] = {}
        self._owners = {self.default.key: (self.default, 1)}

    def add_account(self, token: str) -> Account:
        """Make an account, with a key that is made up."""
        if not token.strip():
            raise ValueError("an account needs a token: the identity token that signs in to it")
        if token in self._accounts:
            raise ValueError("there is an account with this token: give another")
        number = len(self._accounts) + 2
        account = Account(self._unused(f"gw_test_account{number}", 1))
        self._accounts[token] = account
        self._owners[account.key] = (account, 1)
        return account

    def account(self, token: str | None) -> Account:
        """The account with this token; the default one for `None`."""
        if token is None:
            return self.default
        if token not in self._accounts:
            raise ValueError("there is no account with this token: add_account makes one")
        return self._accounts[token]

    def signed_in(self, token: object) -> Account:
        """Whose account it is that somebody signs in to with this token, whatever it may be."""
        account = self._accounts.get(token) if isinstance(token, str) else None
        return account or self.default

    def generation_of(self, key: str | None) -> int | None:
        """The generation of a key; `None` for one that never was valid."""
        return self._owners[key][1] if key in self._owners else None

    def rotate(self, account: Account, key: str | None) -> str:
        """Put `key`, or one that is made up, in place of the account's valid one."""
        stem = re.sub(r"[_-]\d+$", "", account.key)
        number = account.generation + 1
        new = self._unused(stem, number) if key is None else Key(key).value
        if new in self._owners:
            raise ValueError("a key that was valid before cannot be the new one: give another")
        self._owners[new] = (account, number)
        account.key, account.generation, account.expired = new, number, False
        return new

    def accept(self, key: str | None) -> Account | str:
        """The account that a request with this key is of, or why it is answered 401."""
        if key is None:
            return "Authorization header is required"
        if not key:
            return "API key is required"
        if key not in self._owners:
            return "Invalid API key"
        account, generation = self._owners[key]
        if account.expired or generation != account.generation:
            return "API key is inactive or expired"
        return account

    def _unused(self, stem: str, number: int) -> str:
        while (key := f"{stem}_{number}") in self._owners:
            number += 1
        return key
