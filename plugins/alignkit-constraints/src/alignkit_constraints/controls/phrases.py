"""Phrases in running text: read from a list, and found whatever their case and spacing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from alignkit.data.scripts import UNSPACED
from alignkit.errors import Mistake, UsageError

JOINING = rf"[^\W{UNSPACED}]"
"""A character that goes on with a word: a letter or digit of a script that writes spaces between words."""
_JOINING = re.compile(JOINING)


class Found(NamedTuple):
    """A phrase at `text[start:end]`."""

    phrase: str
    """As the list has it."""
    start: int
    end: int


def joins(character: str) -> bool:
    """A word goes on with this character: not with a space, a full stop, or a Chinese character.

    Example:
        >>> joins("a"), joins("."), joins("中")
        (True, False, False)
    """
    return bool(_JOINING.match(character))


class Phrases:
    """Phrases to look for.

    White space in a phrase is any run of white space in a text.

    Args:
        phrases: one or more, none of them blank.
        whole_words: a phrase does not count within a longer word (`ass` in `class`). A script without spaces has no
            words to be within: there a phrase counts anywhere.
        ignore_case: `A BOMB` is `a bomb`.

    Example:
        >>> Phrases(["a bomb"], whole_words=True).first("Is it A  bomb?")
        Found(phrase='a bomb', start=6, end=13)
    """

    def __init__(self, phrases: Sequence[str], whole_words: bool = False, ignore_case: bool = True) -> None:
        self.phrases, self.whole_words, self.ignore_case = list(dict.fromkeys(phrases)), whole_words, ignore_case
        flags = re.IGNORECASE if ignore_case else 0
        self._each = [re.compile(self._pattern(phrase), flags) for phrase in self.phrases]
        self._any = re.compile("|".join(f"(?:{self._pattern(phrase)})" for phrase in self.phrases), flags)

    def first(self, text: str) -> Found | None:
        """The phrase that begins first; of several at one place, the first of the list."""
        found = self._any.search(text)
        if found is None:
            return None
        matches = (
            (phrase, each.match(text, found.start())) for phrase, each in zip(self.phrases, self._each, strict=True)
        )
        phrase, match = next((phrase, match) for phrase, match in matches if match)
        return Found(phrase, match.start(), match.end())

    def _pattern(self, phrase: str) -> str:
        pattern = r"\s+".join(map(re.escape, phrase.split()))
        if not self.whole_words:
            return pattern
        left = rf"(?<!{JOINING})" if joins(phrase.strip()[0]) else ""
        right = rf"(?!{JOINING})" if joins(phrase.strip()[-1]) else ""
        return f"{left}{pattern}{right}"


def read_phrases(phrases: Path | Iterable[str], where: str) -> list[str]:
    """The phrases of a list, or of a UTF-8 file with one per line; empty lines and lines with `# ` first are skipped.

    Args:
        where: the field, for messages.

    Raises:
        UsageError: no such file, not UTF-8, or no phrase.
    """
    lines = read_lines(phrases) if isinstance(phrases, Path) else phrases
    found = [" ".join(line.split()) for line in lines if line.strip()]
    if not found:
        raise UsageError(Mistake(str(phrases) if isinstance(phrases, Path) else where, "no phrases", "one or more"))
    return list(dict.fromkeys(found))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file without those that are empty or begin with `# `.

    Raises:
        UsageError: no such file, or not UTF-8.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise UsageError(Mistake(f"{path}:{line}", found, "a UTF-8 file", "save the list as UTF-8")) from None
    except OSError as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise UsageError(Mistake(str(path), found, "a list, one entry per line")) from None
    return [line for line in lines if line.strip() and not line.startswith("# ")]


def listed(phrases: Path | Iterable[str], inline: str) -> str:
    """What a list is called in the audit: its file's name, or the field that holds it."""
    return phrases.name if isinstance(phrases, Path) else inline
