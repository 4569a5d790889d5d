"""Whose mistake it was: `UsageError` is the user's to mend, `PluginError` its author's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong: where, what was found, what was expected and how to mend it."""

    where: str
    """`recipe.yaml:12 adversary.epsilon`, `train.conll:31` …"""
    found: str
    expected: str = ""
    mend: str = ""

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.found}" if self.where else self.found]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.mend:
            parts.append(self.mend)
        return "; ".join(parts)


class AlignkitError(Exception):
    """Base of everything that alignkit raises on purpose. `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(AlignkitError):
    """The user can mend it: a recipe, a file, a command line, two things that cannot go together.

    Carries every mistake that was found, not only the first.

    Example:
        >>> raise UsageError(Mistake("train.conll:31", "1 column", "at least 2 columns"))
    """

    exit_code = 2

    def __init__(self, *mistakes: Mistake | str):
        self.mistakes = [Mistake("", m) if isinstance(m, str) else m for m in mistakes]
        super().__init__("\n".join(map(str, self.mistakes)))


class PluginError(AlignkitError):
    """A component breaks its contract; the message names the plugin, and its author must mend it."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: `FGM` and `kl_reference` are `fgm` and `kl-reference`."""
    import difflib

    folded = {one.casefold().replace("_", "-"): one for one in sorted(known)}
    close = difflib.get_close_matches(name.casefold().replace("_", "-"), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest known name, or a list of what there is, or nothing.

    Example:
        >>> nearest("epsilonn", ["epsilon", "alpha"])
        "did you mean 'epsilon'?"
    """
    known = sorted(set(known))
    if (guess := closest(name, known)) is not None:
        return f"did you mean {guess!r}?"
    return f"there is {', '.join(known)}" if 0 < len(known) <= 40 else ""
