"""Text in which the words of swap lists give way to their counterparts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from alignkit.data import Example
from alignkit_constraints import grammar
from alignkit_constraints.swap_lists import SwapList

UNSPACED = ("zh",)
"""Languages that put no spaces between words: a word is found wherever its characters are."""

CONTEXT = 80
"""Characters on either side of a word that its grammar is told by."""


class Edit(NamedTuple):
    """Characters `start` to `end` of a text give way to `new`."""

    start: int
    end: int
    new: str


class _Place(NamedTuple):
    """Where a spelling stands in the lists."""

    spelling: str
    part: int
    line: int
    column: int


class Swapper:
    """Replaces each word of the lists by its counterpart, in one go, longest match first.

    Whole words (`he` in "he's", not in "the"), except in languages without spaces. Case is ignored for lower-case
    entries and kept in the text (`She` for `He`, `HER` for `HIS`); a word of an entry that starts with a capital, a
    name, is found only where the text has the capital, one without small letters (`US`) only as it is. The first part
    that has an entry decides; one whose counterpart is itself is left alone. In English, `grammar` decides between
    several counterparts of one part, and an article before the word follows it.

    Args:
        parts: what `read_list` gives, of all lists in their order.
        language: of the texts; in Chinese (`zh`) words are found without spaces around them.
        cased: False: names are found in small letters, too.

    Example:
        >>> swap = Swapper([SwapList(((("he",), ("she",)), (("actor",), ("waitress",))))])
        >>> swap("Then HE said he's an actor.")
        "Then SHE said she's a waitress."
    """

    def __init__(self, parts: Sequence[SwapList], language: str = "en", cased: bool = True):
        self.parts, self.language, self.cased = list(parts), language, cased
        self.places: dict[str, list[_Place]] = {}
        for p, part in enumerate(self.parts):
            for n, line in enumerate(part.lines):
                for c, cell in enumerate(line):
                    for spelling in cell:
                        self.places.setdefault(spelling.casefold(), []).append(_Place(spelling, p, n, c))
        words = "|".join(re.escape(word) for word in sorted(self.places, key=len, reverse=True)) or r"(?!)"
        whole = words if language in UNSPACED else rf"(?<![^\W_])(?:{words})(?![^\W_])"
        self.pattern = re.compile(whole, re.IGNORECASE)

    def __call__(self, text: str, draw: int = 0) -> str:
        """The text swapped; `draw` chooses where a list gives a choice."""
        for start, end, new in reversed(self.edits(text, draw)):
            text = text[:start] + new + text[end:]
        return text

    def edits(self, text: str, draw: int = 0) -> list[Edit]:
        """What changes in a text, from its beginning on; no two overlap."""
        found = []
        for match in self.pattern.finditer(text):
            start, end = match.span()
            old, before, after = match.group(), text[max(0, start - CONTEXT) : start], text[end : end + CONTEXT]
            new = self._counterpart(old, before, after, draw)
            if new is None or new == old:
                continue
            if self.language == "en" and (change := grammar.article(before, old, new)):
                found.append(Edit(start - len(before) + change[0], start - len(before) + change[1], change[2]))
            found.append(Edit(start, end, new))
        return found

    def _counterpart(self, old: str, before: str, after: str, draw: int) -> str | None:
        places = [place for place in self.places.get(old.casefold(), ()) if self._means(place.spelling, old)]
        if not places:
            return None
        places = [place for place in places if place.part == places[0].part]
        part = self.parts[places[0].part]
        options = [(place.column, part.counterpart(place.line, place.column, draw)) for place in places]
        new = grammar.chosen(options, before, after) if self.language == "en" else options[0][1]
        if old != places[0].spelling:
            return _in_case_of(old, new)
        starts = self.language == "en" and old[0].isupper() and grammar.sentence_starts(before)
        return new[0].upper() + new[1:] if starts else new

    def _means(self, spelling: str, found: str) -> bool:
        """Whether a spelling of the lists is meant, by the capitals of its words."""
        pairs = list(zip(spelling.split(), found.split(), strict=True))
        if any(len(listed) > 1 and listed.isupper() and listed != word for listed, word in pairs):
            return False
        return not self.cased or all(word[0].isupper() for listed, word in pairs if listed[0].isupper())

    def words(self, words: Sequence[str], draw: int = 0) -> list[str]:
        """Words swapped as one text and cut up again where they were: as many as before.

        A counterpart of several words stays within the word that it replaces. What is found across several words gives
        way only to as many, or in languages without spaces to as many characters.
        """
        gap = "" if self.language in UNSPACED else " "
        ends = [end - len(gap) for end in accumulate(len(word) + len(gap) for word in words)]
        starts = [end - len(word) for end, word in zip(ends, words, strict=True)]
        found = list(words)
        for start, end, new in reversed(self.edits(gap.join(words), draw)):
            touched = [i for i in range(len(words)) if starts[i] < end and start < ends[i]]
            spans = [(max(start - starts[i], 0), min(end, ends[i]) - starts[i]) for i in touched]
            pieces = [new] if len(touched) == 1 else _pieces(new, [stop - begin for begin, stop in spans], gap)
            for i, (begin, stop), piece in zip(touched, spans, pieces, strict=False):
                found[i] = found[i][:begin] + piece + found[i][stop:]
        return found


def _pieces(new: str, lengths: Sequence[int], gap: str) -> list[str]:
    """A counterpart cut into as many pieces as it replaces; none where that cannot be."""
    if gap:
        pieces = new.split(gap)
        return pieces if len(pieces) == len(lengths) else []
    stops = list(accumulate(lengths, initial=0))
    return [new[a:b] for a, b in pairwise(stops)] if len(new) == stops[-1] else []


def _in_case_of(model: str, word: str) -> str:
    if len(model) > 1 and model.isupper():
        return word.upper()
    if model.islower():
        return word.lower()
    return word[0].upper() + word[1:] if model[0].isupper() else word


def swapped(example: Example, swap: Swapper, seed: int = 0) -> Example | None:
    """The example with its inputs swapped, word lists word for word; None where there was nothing to swap.

    Where lists give a choice, it depends on the seed and the example's inputs alone.
    """
    key = f"{seed}/{' '.join(example.words)}".encode()
    draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    changed = example.map_text(lambda text: swap(text, draw), word=lambda word: word)
    lists = {n: v for n in example.inputs if isinstance(v := example[n], list) and _is_words(v)}
    changed = changed.replace(**{name: swap.words(words, draw) for name, words in lists.items()})
    return None if all(changed[n] == example[n] for n in example.inputs) else changed


def _is_words(value: Sequence[object]) -> bool:
    return all(isinstance(word, str) for word in value)
