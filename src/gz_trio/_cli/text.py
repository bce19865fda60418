"""Text on a terminal: what a model sends must not steer it, and how far two texts agree."""

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    r"""`text` with its control characters made visible, but for newline and tab.

    A model's text is not to be trusted: an escape sequence in it could change the window's title,
    the clipboard, or what was printed before. Carriage returns are left out, for the sake of
    texts whose lines end in CR LF.

    >>> visible("red: \x1b[31m\r\n\x00 \x7f \x9b")
    'red: ␛[31m\n␀ ␡ <9b>'
    """
    return _CONTROL.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == 0x0D:
        return ""
    if code < 0x20:
        return chr(0x2400 + code)  # the block "Control Pictures" of Unicode
    return "\u2421" if code == 0x7F else f"<{code:02x}>"


def lost_and_doubled(intended: str, handed: str) -> tuple[int, int]:
    """How many characters of `intended` are missing from `handed`, and how many are too many.

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
