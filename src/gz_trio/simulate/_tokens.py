"""Counting the tokens of answers, where the server does not tell how many there are."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path


def tokenizer(name: str | None) -> Callable[[str], int] | None:
    """What counts the tokens of a text.

    Args:
        name: A tokenizer's file (`tokenizer.json`), or its name at the Hugging Face hub; `None`:
            nothing counts them.

    Raises:
        ValueError: It cannot be had; or the package `tokenizers` is not there, which comes with
            the extra `tokenizer`.
    """
    if name is None:
        return None
    try:
        # It brings no types: by name, so that no checker asks for them.
        kind = import_module("tokenizers").Tokenizer
    except ModuleNotFoundError:
        raise ValueError(
            "--tokenizer needs the package tokenizers, which comes with the extra tokenizer: "
            "pip install 'gz-trio[tokenizer]'"
        ) from None
    try:
        loaded = kind.from_file(name) if Path(name).is_file() else kind.from_pretrained(name)
    except Exception as error:  # Whatever it is: the package raises nothing more exact.
        raise ValueError(f"the tokenizer {name} cannot be loaded: {error}") from None
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)
