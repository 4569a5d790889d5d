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


def forbidden(
    ids: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]], begins: Sequence[Sequence[int]], table: Table
) -> tuple[list[int], list[int]]:
    """The tokens that would complete a phrase at each scored position, given what stands before it.

    Args:
        ids: B rows of T tokens.
        scored: which of them the model is scored on.
        begins: where the text begins that a token belongs to (0, unless a row holds several texts).
        table: by what stands before, the tokens that complete it.

    Returns:
        Positions, numbered row by row among the scored ones, and tokens; no pair twice.
    """
    lengths = sorted({len(before) for before in table})
    positions, tokens, number = [], [], 0
    for row, marks, starts in zip(ids, scored, begins, strict=True):
        for t in (t for t, mark in enumerate(marks) if mark):
            there = {x for k in lengths if t - k >= starts[t] for x in table.get(tuple(row[t - k : t]), ())}
            positions += [number] * len(there)
            tokens += sorted(there)
            number += 1
    return positions, tokens
