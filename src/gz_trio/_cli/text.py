"""Text on a terminal: what a model sends must not steer it."""

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
