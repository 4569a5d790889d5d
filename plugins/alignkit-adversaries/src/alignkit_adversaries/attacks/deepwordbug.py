"""DeepWordBug: misspells the words that matter most, one edit each, until the prediction breaks."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from alignkit.components import Attack, Attempt
from alignkit_adversaries.attacks.words import editable, rewritten, stand_in, words_read

if TYPE_CHECKING:
    from numpy.random import Generator

    from alignkit.data import Example
    from alignkit.evaluation.victim import Search, Victim

Operation = Literal["swap", "substitute", "delete", "insert"]


# -- edits of one word -------------------------------------------------------------------------------------------


def swapped(word: str, generator: Generator) -> str:
    """Two neighbours swapped that are not the same letter; the word as it is where there are none."""
    pairs = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    if not pairs:
        return word
    i = pairs[generator.integers(len(pairs))]
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def substituted(word: str, generator: Generator) -> str:
    """A letter replaced by another one, of its case."""
    i = int(generator.integers(len(word)))
    others = [letter for letter in string.ascii_lowercase if letter != word[i].lower()]
    return word[:i] + _like(word[i], others[generator.integers(len(others))]) + word[i + 1 :]


def deleted(word: str, generator: Generator) -> str:
    """A letter left out."""
    i = int(generator.integers(len(word)))
    return word[:i] + word[i + 1 :]


def inserted(word: str, generator: Generator) -> str:
    """A letter put before, after or between the others."""
    i = int(generator.integers(len(word) + 1))
    letter = string.ascii_lowercase[generator.integers(len(string.ascii_lowercase))]
    return word[:i] + _like(word[max(i - 1, 0)], letter) + word[i:]


def _like(model: str, letter: str) -> str:
    return letter.upper() if model.isupper() else letter


OPERATIONS: dict[str, tuple[Callable[[str, Generator], str], int]] = {
    "swap": (swapped, 2),
    "substitute": (substituted, 1),
    "delete": (deleted, 1),
    "insert": (inserted, 1),
}
"""Each with its edit distance, of insertions, deletions and substitutions."""


def slips(word: str, operations: Sequence[Operation], generator: Generator) -> dict[str, int]:
    """Other spellings of a word, one drawn for each operation, and their edit distances."""
    found: dict[str, int] = {}
    for operation in operations:
        edit, distance = OPERATIONS[operation]
        found.setdefault(edit(word, generator), distance)
    found.pop(word, None)
    return found


# -- the attack --------------------------------------------------------------------------------------------------


class DeepwordbugAttack(Attack):
    """Misspells the words that matter most, one edit each, until the prediction breaks.

    Gao et al. 2018, arXiv:1801.04354. A word matters as much as the loss rises when it is replaced by the tokenizer's
    unknown token: the paper's replace-1 score. Its temporal scores, which read heads and tails of the text, suit
    models that read from left to right. In that order each word gets one edit: of a swap of neighbours, a
    substitution, a deletion and an insertion of a letter, one drawn for each, the one that breaks the prediction, else
    the one that raises the loss most, if it does. The search ends when the prediction is less right than it was, when
    all words have been tried, or where the edit distance would exceed `maximum_edits`.

    The paper edits words by one of the operations until the edit distance is used up; taking the best of the four,
    keeping only what raises the loss, and stopping as soon as it breaks follow TextAttack's recipe
    `DeepWordBugGao2018`. That one leaves a list of English stop words alone; we leave short words alone, in any
    language (`minimum_length`). First and last letters may be edited, too.

    Labels stay aligned: word lists keep their length. Answers in a context and choices are left alone, as are
    addresses, @mentions, #tags, numbers, marks of entities, code, and scripts without spaces, which are not written
    letter by letter: a Chinese text cannot be attacked so, and survives. Of a text that is too long only words that the
    model reads are tried.

    Cost: a forward pass for the example, for each word, and up to four for each word tried; all examples' in shared
    batches.

    Relations: `typos` stays readable (inner letters only) and tries every slip in a word or two; `hotflip` needs
    gradients, and replaces whole tokens.

    Example:
        >>> DeepwordbugAttack(maximum_edits=5).operations
        ('swap', 'substitute', 'delete', 'insert')
    """

    maximum_edits: PositiveInt = 30
    """Edit distance of the whole text, at most: insertions, deletions and substitutions of letters; a swap is two."""
    operations: Annotated[tuple[Operation, ...], Field(min_length=1)] = ("swap", "substitute", "delete", "insert")
    """Edits to choose from."""
    minimum_length: Annotated[int, Field(ge=2)] = 4
    """Shortest word that is edited, in letters."""

    def attempt(self, victim: Victim, examples: list[Example]) -> Mapping[str, list[Attempt]]:
        """One setting; `edits` is the edit distance of texts that broke."""
        return {"": victim.together([self._search(victim, example) for example in examples])}

    def _search(self, victim: Victim, example: Example) -> Search:
        (clean,) = yield [example]
        words = editable(example, victim.task.fixed_spans(example), self.minimum_length)
        words = words_read(victim.task, victim.tokenizer, example, words)
        hidden = stand_in(victim.tokenizer)
        without = yield [rewritten(example, words, {i: hidden}) for i in range(len(words))]
        generator = victim.generator("deepwordbug", example)
        edits: dict[int, str] = {}
        distance, reached = 0, clean
        for i in sorted(range(len(words)), key=lambda i: -without[i].loss):
            spellings = slips(words[i].text, self.operations, generator)
            spellings = {text: d for text, d in spellings.items() if distance + d <= self.maximum_edits}
            answers = yield [rewritten(example, words, {**edits, i: text}) for text in spellings]
            fitting = [(judged, text) for judged, text in zip(answers, spellings, strict=True) if judged.queries]
            if not fitting:
                continue
            judged, text = max(fitting, key=lambda found: (found[0].score < clean.score, found[0].loss))
            if judged.score < clean.score or judged.loss > reached.loss:
                edits[i], reached = text, judged
                distance += spellings[text]
            if judged.score < clean.score:
                attacked = rewritten(example, words, edits)
                return Attempt(judged.prediction, attacked, measures={"edits": float(distance)})
        return Attempt(reached.prediction, rewritten(example, words, edits) if edits else None)
