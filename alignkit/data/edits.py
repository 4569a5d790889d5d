"""Slips of the keyboard: which words of a text can be misspelt, and every way to misspell one by a single edit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal

from alignkit.data.scripts import UNSPACED

Operation = Literal["swap", "drop", "add", "substitute"]

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: [
        *row[max(i - 1, 0) : i],
        *row[i + 1 : i + 2],
        *(other[i] for k, other in enumerate(_ROWS) if abs(k - r) == 1 and i < len(other)),
    ]
    for r, row in enumerate(_ROWS)
    for i, letter in enumerate(row)
}
_TOKEN = re.compile(rf"[^\s{UNSPACED}]+")
_LETTERS = re.compile(rf"[^\W\d_{UNSPACED}]+")
_SPECIAL = re.compile(r"[@#\d_<>\[\]{}|\\`]|://|\w\.\w")
"""Tokens that are no plain words: addresses, mentions, tags, numbers, placeholders, code."""


def plain_words(text: str, least: int = 4) -> Iterator[tuple[int, int]]:
    """Where the words of a text begin and end that a slip of the keyboard may be in: runs of `least` letters or more.

    Addresses, @mentions, #tags, numbers, placeholders, code, and scripts without spaces have none.

    Example:
        >>> text = "Ask @someone about well-known films in 2024"
        >>> [text[start:end] for start, end in plain_words(text)]
        ['about', 'well', 'known', 'films']
    """
    for token in _TOKEN.finditer(text):
        if not _SPECIAL.search(token.group()):
            for run in _LETTERS.finditer(text, *token.span()):
                if run.end() - run.start() >= least:
                    yield run.span()


# -- edits of one word -------------------------------------------------------------------------------------------


def swaps(word: str) -> list[str]:
    """`word` with two inner neighbours swapped, every way that changes it."""
    pairs = range(1, len(word) - 2)
    return [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in pairs if word[i] != word[i + 1]]


def drops(word: str) -> list[str]:
    """`word` without one inner letter, every way."""
    return [word[:i] + word[i + 1 :] for i in range(1, len(word) - 1)]


def additions(word: str) -> list[str]:
    """`word` with a key that lies beside an inner letter's struck before it, every way."""
    return [word[:i] + key + word[i:] for i in range(1, len(word) - 1) for key in _keys_beside(word[i])]


def substitutions(word: str) -> list[str]:
    """`word` with an inner letter replaced by a key beside it, every way."""
    return [word[:i] + key + word[i + 1 :] for i in range(1, len(word) - 1) for key in _keys_beside(word[i])]


def _keys_beside(letter: str) -> list[str]:
    keys = _NEIGHBOURS.get(letter.lower(), [])
    return [key.upper() for key in keys] if letter.isupper() else keys


OPERATIONS: dict[str, Callable[[str], list[str]]] = {
    "swap": swaps,
    "drop": drops,
    "add": additions,
    "substitute": substitutions,
}
"""The edits of Pruthi et al. 2019 (arXiv:1905.11268), each giving every outcome."""
