"""The tokens of an example's own texts: where they are in what the model reads, and the example with others in place.

What a task adds to a text (special tokens, the marks around entities, a prompt's words) is none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.tasks.words import spaced

if TYPE_CHECKING:
    from alignkit.data import Example
    from alignkit.data.features import Features

Ids = np.ndarray
_READ = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
TAKEN = -1
"""Stands for a token that is no text's, or another text's already."""


@dataclass
class Site:
    """One token of one text."""

    name: str
    """The field of the example that holds the text."""
    word: int | None
    """Which word of a word list; None where the field is a text."""
    start: int
    end: int
    """Characters of the text, or of the word."""
    token: int
    places: list[tuple[int, int]] = field(default_factory=list)
    """Lines and positions in them: the same token may be read in several windows, and with each of several choices."""

    def text(self, example: Example) -> str:
        """The text, or the word of a word list, that it is in."""
        value: Any = example[self.name]
        found: str = value if self.word is None else value[self.word]
        return found


Replaced = Mapping[int, str]
"""Place in a list of sites -> the text that stands there instead."""


def find_sites(example: Example, lines: list[list[int]], tokenizer: Any, special: Collection[int]) -> list[Site]:
    """The tokens of the example's texts that a model reads, in the order of the texts.

    Each text is tokenised by itself, and the longest stretch of it is looked for in each line; the longest text comes
    first, and the last of several equal stretches is taken (before it may be other examples of a prompt). A token that
    is read differently by itself (the first one after a bracket …) is no site.

    Args:
        lines: ids of each window or choice, special tokens included.
        special: ids that are no text's.
    """
    texts = {name: list(_tokenised(name, example[name], tokenizer)) for name in example.inputs}
    order = sorted(texts, key=lambda name: -max((len(read) for read in texts[name]), default=0))
    found: dict[tuple[str, int | None, int, int], Site] = {}
    torn = set()
    for number, line in enumerate(lines):
        left = np.array([TAKEN if token in special else token for token in line])
        for name in order:
            runs = [(*longest_run(np.array([site.token for site in read]), left), read) for read in texts[name]]
            begin, at, length, read = max(runs, key=lambda run: run[2], default=(0, 0, 0, []))
            if length < min(2, len(read)):
                continue
            left[at : at + length] = TAKEN
            for k, site in enumerate(read[begin : begin + length]):
                key = (site.name, site.word, site.start, site.end)
                known = found.setdefault(key, site)
                known.places.append((number, at + k))
                if known.token != site.token or site.start == site.end:
                    torn.add(key)
    places = {name: place for place, name in enumerate(example.inputs)}
    kept = [site for key, site in found.items() if key not in torn]
    return sorted(kept, key=lambda site: (places[site.name], site.word or 0, site.start))


def longest_run(text: Ids, line: Ids) -> tuple[int, int, int]:
    """The longest stretch of a text in a line: where it begins in the text and in the line, and its length.

    Of several the one that begins first in the text, and of these the last one in the line.

    Args:
        text: [n].
        line: [T], `TAKEN` where nothing is looked for.
    """
    best = (0, 0, 0)
    runs = np.zeros(len(line) + 1, dtype=int)
    for i, token in enumerate(text):
        runs[1:] = np.where(line == token, runs[:-1] + 1, 0)
        end = len(runs) - 1 - int(runs[::-1].argmax())
        if runs[end] > best[2]:
            best = (i + 1 - int(runs[end]), end - int(runs[end]), int(runs[end]))
    return best


def replaced_texts(example: Example, sites: list[Site], texts: Replaced) -> dict[str, Any]:
    """The example's fields that change where some sites get another text; words of a word list stay as many."""
    found: dict[str, Any] = {}
    for place in sorted(texts, key=lambda place: sites[place].start, reverse=True):
        site = sites[place]
        value = found.setdefault(site.name, example[site.name])
        text = value if site.word is None else value[site.word]
        text = text[: site.start] + texts[place] + text[site.end :]
        found[site.name] = text if site.word is None else [*value[: site.word], text, *value[site.word + 1 :]]
    return found


def replaced_tokens(
    rows: list[Features], sites: list[Site], tokens: Mapping[int, int], texts: Replaced
) -> list[Features]:
    """An example's features with other tokens at some sites.

    Args:
        rows: those of each window.
        tokens: place in `sites` -> the new token.
        texts: place in `sites` -> the new token's text, by which what comes after it moves.
    """
    changed = [{**row, "input_ids": _copied(row["input_ids"])} for row in rows]
    flat = [ids for row in changed for ids in _lines(row["input_ids"])]
    for place, token in tokens.items():
        for line, position in sites[place].places:
            flat[line][position] = token
    moved = [(sites[place], text) for place, text in texts.items() if sites[place].name == "context"]
    for row in changed:
        if "offsets" in row:  # of extractive answers: characters of the context
            row["offsets"] = _moved(row["offsets"], moved)
    return changed


def lines_of(rows: list[Features]) -> list[list[int]]:
    """The ids of every window or choice of an example."""
    return [ids for row in rows for ids in _lines(row["input_ids"])]


def _lines(ids: list[Any]) -> list[list[int]]:
    """The choices of a row of choices [C][T]; otherwise the row."""
    return ids if ids and isinstance(ids[0], list) else [ids]


def _copied(ids: list[Any]) -> list[Any]:
    return [list(line) for line in ids] if ids and isinstance(ids[0], list) else list(ids)


def _moved(offsets: list[list[int]], changes: list[tuple[Site, str]]) -> list[list[int]]:
    """Characters (start, end) of tokens after texts were replaced; -1 stays."""

    def shift(position: int) -> int:
        return position + sum(len(text) - (s.end - s.start) for s, text in changes if s.end <= position)

    return [[shift(place) if place >= 0 else place for place in pair] for pair in offsets]


def _tokenised(name: str, value: Any, tokenizer: Any) -> Iterator[list[Site]]:
    """The tokens of a text by itself: as it is read at the beginning of a text, and after a space."""
    if isinstance(value, list):
        words = spaced(value, tokenizer)
        encoding = tokenizer(words, is_split_into_words=True, **_READ)
        yield list(_sites(name, encoding, encoding.word_ids(), words, value))
    elif value:
        for text in (value, f" {value}"):
            encoding = tokenizer(text, **_READ)
            yield list(_sites(name, encoding, [None] * len(encoding["input_ids"]), [text], [value]))


def _sites(name: str, encoding: Any, numbers: list[int | None], read: list[str], own: list[str]) -> Iterator[Site]:
    """Each token of an encoded text.

    Args:
        numbers: the word of each token, None in a text.
        read: the text or the words as the tokenizer got them, some with a space in front.
        own: the same as the example has them.
    """
    for token, number, (start, end) in zip(encoding["input_ids"], numbers, encoding["offset_mapping"], strict=True):
        text = own[number or 0]
        before = len(read[number or 0]) - len(text)
        start, end = max(start - before, 0), max(end - before, 0)
        start += len(text[start:end]) - len(text[start:end].lstrip())
        yield Site(name, number, start, end, token)
