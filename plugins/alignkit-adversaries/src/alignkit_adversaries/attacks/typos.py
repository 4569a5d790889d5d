"""The worst slips of the keyboard in a word or two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from alignkit.components import Attack, Attempt
from alignkit.data.edits import OPERATIONS, Operation
from alignkit_adversaries.attacks.words import editable, rewritten, words_read

if TYPE_CHECKING:
    from alignkit.data import Example
    from alignkit.evaluation.victim import Search, Victim

AT_ONCE = 32
"""Slips that are tried before it is looked whether one of them broke the prediction."""


class TyposAttack(Attack):
    """Makes the worst slip of the keyboard in one word, or in several one after the other.

    Pruthi et al. 2019, arXiv:1905.11268: two inner neighbours swapped, an inner letter dropped, a letter added, a
    letter replaced by a neighbour on the QWERTY keyboard, in words of four letters and more, whose first and last
    letters stay: people read such words with ease. Where the paper adds any letter we add a neighbouring key, as
    fingers do; where it leaves stop words alone, short ones are. Of all slips the one that breaks the prediction is
    taken, else the one with the highest loss; then the next word's. Slips are tried in an order drawn for each
    example, and the search ends as soon as one breaks the prediction, or when none raises the loss.

    These are the edits of the augmenter `typos`, which draws them at random: `evaluation: {under: [typos]}` says what
    usual typing costs, this attack what the worst of it does. Labels stay aligned: word lists keep their length.
    Answers in a context and choices are left alone, as are addresses, @mentions, #tags, numbers, marks of entities,
    code, scripts without spaces, which are not typed letter by letter, and what the model does not read of a text that
    is too long.

    Cost: up to `candidates` forward passes for each edit; all examples' in shared batches.

    Relations: `deepwordbug` edits as many words as it takes, any of their letters.

    Example:
        >>> TyposAttack(edits=2).candidates
        128
    """

    edits: PositiveInt = 1
    """Words that are misspelt, at most, each by one slip."""
    candidates: PositiveInt | None = 128
    """Slips of an example that are tried for each edit, drawn where there are more; None: all."""
    operations: Annotated[tuple[Operation, ...], Field(min_length=1)] = ("swap", "drop", "add", "substitute")
    """Slips to try: `swap`, `drop`, `add`, `substitute`."""

    def attempt(self, victim: Victim, examples: list[Example]) -> Mapping[str, list[Attempt]]:
        """One setting; `edits` is the number of words misspelt in texts that broke."""
        return {"": victim.together([self._search(victim, example) for example in examples])}

    def _search(self, victim: Victim, example: Example) -> Search:
        (clean,) = yield [example]
        words = editable(example, victim.task.fixed_spans(example), least=4)
        words = words_read(victim.task, victim.tokenizer, example, words)
        generator = victim.generator("typos", example)
        edits: dict[int, str] = {}
        reached = clean
        while len(edits) < self.edits:
            slips = [(i, text) for i in range(len(words)) if i not in edits for text in self._slips(words[i].text)]
            drawn = [slips[k] for k in generator.permutation(len(slips))[: self.candidates]]
            worst = None
            for start in range(0, len(drawn), AT_ONCE):
                part = drawn[start : start + AT_ONCE]
                answers = yield [rewritten(example, words, {**edits, i: text}) for i, text in part]
                for judged, (i, text) in zip(answers, part, strict=True):
                    rank = (judged.score < clean.score, judged.loss) if judged.queries else (False, 0.0)
                    if worst is None or rank > worst[0]:
                        worst = rank, judged, i, text
                if worst is not None and worst[0][0]:
                    break
            if worst is None or not (worst[0][0] or worst[0][1] > reached.loss):
                break
            (broken, _), reached, i, text = worst
            edits[i] = text
            if broken:
                attacked = rewritten(example, words, edits)
                return Attempt(reached.prediction, attacked, measures={"edits": float(len(edits))})
        return Attempt(reached.prediction, rewritten(example, words, edits) if edits else None)

    def _slips(self, word: str) -> list[str]:
        """Every other spelling of a word, each once."""
        return list(dict.fromkeys(text for operation in self.operations for text in OPERATIONS[operation](word)))
