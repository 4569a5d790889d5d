"""Phrases as a tokenizer spells them, by what stands before their last tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignkit.errors import Mistake, UsageError
from alignkit.tasks.prompts import answer_ids, token_ids

Ids = tuple[int, ...]
Table = Mapping[Ids, frozenset[int]]
"""What stands before -> the tokens that would complete a phrase."""
PLACES = ("{}", " {}")
"""Where a phrase may stand in a text: at its beginning, and within it."""
OPENING = '"'
"""What may stand right before a phrase, where a tokenizer marks the beginnings of words and not spaces."""


def spellings(phrase: str, tokenizer: Any) -> set[Ids]:
    """The tokens of a phrase at the beginning of a text, after a space, and right after a quotation mark."""
    found = {token_ids(tokenizer, place.format(phrase)) for place in PLACES}
    return {*found, answer_ids(tokenizer, OPENING, phrase)} - {()}


def completions(phrases: Iterable[str], tokenizer: Any) -> Table:
    """The last tokens of phrases by the tokens before them.

    Raises:
        UsageError: phrases that the vocabulary has no tokens for.
    """
    found: dict[Ids, set[int]] = {}
    unknown = []
    for phrase in phrases:
        spelt = spellings(phrase, tokenizer)
        if not spelt or any(tokenizer.unk_token_id in ids for ids in spelt if tokenizer.unk_token_id is not None):
            unknown.append(
                Mistake("phrases", f"the model's vocabulary has no tokens for {phrase!r}", "one that it has")
            )
        for ids in spelt:
            found.setdefault(ids[:-1], set()).add(ids[-1])
    if unknown:
        raise UsageError(*unknown)
    return {before: frozenset(tokens) for before, tokens in found.items()}


def beginnings(phrases: Iterable[str], tokenizer: Any) -> Table:
    """The numbers of phrases by the tokens before their last ones."""
    found: dict[Ids, set[int]] = {}
    for number, phrase in enumerate(phrases):
        for ids in spellings(phrase, tokenizer):
            found.setdefault(ids[:-1], set()).add(number)
    return {before: frozenset(numbers) for before, numbers in found.items()}


def texts(
    ids: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]], positions: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[list[bool]]]:
    """Rows taken apart into their texts, each with what it goes on from: nothing, or a prompt that several share.

    Args:
        ids: B rows of T tokens.
        scored: which of them the model is scored on.
        positions: where the model takes a token to stand in its text. A text begins where they do not go on by one.

    Returns:
        The texts, and what of them is scored: each scored token of the rows once, in their order.

    Example:
        >>> texts([[7, 8, 1, 2]], [[False, True, True, True]], [[0, 1, 2, 2]])
        ([[7, 8, 1], [7, 8, 2]], [[False, True, True], [False, False, True]])
    """
    found: tuple[list[list[int]], list[list[bool]]] = ([], [])
    for row, marks, places in zip(ids, scored, positions, strict=True):
        starts = [t for t in range(len(row)) if t == 0 or places[t] != places[t - 1] + 1]
        for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
            shared = min(max(places[start] - places[0], 0), start)
            found[0].append([*row[:shared], *row[start:end]])
            found[1].append([*[False] * shared, *marks[start:end]])
    return found


def forbidden(
    ids: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]], table: Table
) -> tuple[list[int], list[int]]:
    """The tokens that would complete a phrase at each scored position, given what stands before it.

    Args:
        ids: texts of tokens.
        scored: which of them the model is scored on.
        table: by what stands before, the tokens that complete it.

    Returns:
        Positions, numbered text by text among the scored ones, and tokens; no pair twice.
    """
    lengths = sorted({len(before) for before in table})
    positions, tokens, number = [], [], 0
    for row, marks in zip(ids, scored, strict=True):
        for t in (t for t, mark in enumerate(marks) if mark):
            there = {x for k in lengths if k <= t for x in table.get(tuple(row[t - k : t]), ())}
            positions += [number] * len(there)
            tokens += sorted(there)
            number += 1
    return positions, tokens
