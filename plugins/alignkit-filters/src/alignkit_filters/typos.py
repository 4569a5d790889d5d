"""Slips of the keyboard: single-character edits inside words."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated

from numpy.random import Generator
from pydantic import Field

from alignkit.components import Augmenter
from alignkit.data import Example
from alignkit.data.edits import OPERATIONS, Operation, plain_words

Share = Annotated[float, Field(gt=0, le=1)]


def misspell(word: str, operations: Sequence[Operation], generator: Generator) -> str:
    """`word` with one edit: an operation that can change it drawn first, then one of its outcomes, both uniformly."""
    outcomes = [found for operation in operations if (found := OPERATIONS[operation](word))]
    chosen = outcomes[generator.integers(len(outcomes))]
    return chosen[generator.integers(len(chosen))]


# -- edits of an example -----------------------------------------------------------------------------------------


def with_typos(example: Example, rate: float, operations: Sequence[Operation], generator: Generator) -> Example | None:
    """A copy in which a share of the eligible words is misspelt, at least one; None where no word is eligible.

    Args:
        example: its inputs are rewritten, assistant turns are not; word lists keep their length.
        rate: share of the eligible words, rounded to a whole number of words.
        operations: the edits to draw from.
        generator: NumPy's, the only source of randomness.
    """
    eligible: list[str] = []

    def note(word: str) -> str:
        eligible.append(word)
        return word

    _map_eligible(example, note, operations)
    if not eligible:
        return None
    count = max(1, round(rate * len(eligible)))
    chosen = set(generator.choice(len(eligible), size=count, replace=False).tolist())
    position = itertools.count()
    return _map_eligible(
        example, lambda word: misspell(word, operations, generator) if next(position) in chosen else word, operations
    )


def _map_eligible(example: Example, change: Callable[[str], str], operations: Sequence[Operation]) -> Example:
    def text(value: str) -> str:
        parts, end = [], 0
        for start, stop in plain_words(value):
            word = value[start:stop]
            possible = any(OPERATIONS[operation](word) for operation in operations)
            parts += [value[end:start], change(word) if possible else word]
            end = stop
        return "".join([*parts, value[end:]])

    return example.map_text(text)


class Typos(Augmenter):
    """Adds copies of training examples with single-character slips inside words.

    The edits are those of Pruthi et al. 2019 (arXiv:1905.11268): two inner neighbours swapped, a letter
    dropped, a letter added, a letter replaced by a neighbour on the QWERTY keyboard; in words of four letters and
    more, whose first and last letters stay, because people read such words with ease. Where the paper adds any
    letter, we add a neighbouring key, as fingers do. Addresses, @mentions, #tags, numbers, placeholders and scripts
    without spaces are left alone. Labels stay aligned: word lists keep their length, assistant turns their text.

    Asked about a single example, as in `evaluation: {under: [typos]}`, it always answers one where any word is
    eligible, whatever the `share`.

    Cost: none per step; the training split grows by up to `share`.

    Relations: hardens against what is typed, where the adversaries `fgm` and `pgd` harden against directions in
    embedding space; they go together.

    Example:
        >>> import numpy
        >>> row = Example({"text": "A perfectly plain sentence."}, inputs=("text",))
        >>> Typos(operations=["swap"]).augment_examples([row], numpy.random.default_rng(5))[0]["text"] != row["text"]
        True
    """

    rate: Share = 0.1
    """Share of an example's eligible words that are misspelt, above 0; at least one word is."""
    share: Share = 1.0
    """Share of the training examples that get a copy, drawn one by one."""
    operations: Annotated[tuple[Operation, ...], Field(min_length=1)] = ("swap", "drop", "add", "substitute")
    """Edits to draw from, all equally likely: `swap`, `drop`, `add`, `substitute`."""

    def augment_examples(self, examples: list[Example], generator: Generator) -> list[Example]:
        drawn = examples if len(examples) == 1 else [e for e in examples if generator.random() < self.share]
        copies = (with_typos(example, self.rate, self.operations, generator) for example in drawn)
        return [copy for copy in copies if copy is not None]
