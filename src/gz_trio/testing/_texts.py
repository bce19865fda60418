"""How far two texts agree."""

from __future__ import annotations


def lost_and_doubled(intended: str, handed: str) -> tuple[int, int]:
    """How many characters of `intended` are missing from `handed`, and how many are too many.

    For tests of what a reply is worth after faults: `intended` is what the gateway meant to send,
    see `FakeGateway.intended`.

    What both have in common is their longest common subsequence; by the bit-parallel method of
    H. Hyyrö, "Bit-Parallel LCS-length Computation Revisited" (2004), since texts may be long.

    >>> lost_and_doubled("once upon a time", "once on on a tie")
    (3, 3)
    """
    if intended == handed:
        return 0, 0
    places: dict[str, int] = {}
    for place, character in enumerate(intended):
        places[character] = places.get(character, 0) | 1 << place
    everywhere = (1 << len(intended)) - 1
    row = everywhere
    for character in handed:
        hits = row & places.get(character, 0)
        row = ((row + hits) | (row - hits)) & everywhere
    missing = row.bit_count()
    return missing, len(handed) - (len(intended) - missing)
