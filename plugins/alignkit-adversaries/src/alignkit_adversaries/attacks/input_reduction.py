"""Input reduction: how few words a prediction needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from alignkit.components import Attack, Attempt
from alignkit.tasks.words import words
from alignkit_adversaries.attacks.words import Word, reduced, words_in, words_read

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.data import Example
    from alignkit.evaluation.victim import Search, Victim

SHORTENED = ("question", "text_pair")
"""Of an example that has one of these, it alone is shortened: the question of a context, the hypothesis of a pair."""


class InputReductionAttack(Attack):
    """Takes the least important word out again and again, as long as the prediction stays.

    Feng et al. 2018, arXiv:1804.07781. A model that is as sure of a few words that say nothing is pathological: it
    does not predict for the reasons that people would. Attacked are rows that are right, so a prediction stays as long
    as it is right. A word matters as much as the loss rises without it. Of a question with its context the question is
    shortened, of a pair of texts the second, as in the paper; of other examples all inputs. What the labels are about
    stays: entities, answers, choices; with a word its tag goes. A sentence without entities, or a question without an
    answer, is left alone: that there is still nothing in it when it has become shorter proves nothing. Where nothing of
    the input has to stay, its last word does. Chinese and Japanese lose a character at a time. What the model does not
    read of a text that is too long goes first, and is not counted.

    Reported are `words_left` and `share_left`, of the words that could have been taken out, over the right rows. As
    no prediction changes, `attack_success` is the share of right rows that were reduced to `nonsense` words or fewer,
    and `accuracy_under_attack` that of rows that are right and were not; the task's own metrics would say nothing.

    The paper keeps a beam of five and estimates by gradients; we search greedily and measure. After the first round,
    in which all words are tried, a round tries the `candidates` that mattered least when they were tried last, and the
    others only if none of those can go. That words of entities stay is AllenNLP's, for tagging.

    Cost: for n words at most n + `candidates` n forward passes, and n for the last round; all examples' in shared
    batches.

    Relations: the other attacks change predictions by changes that should not matter; this one keeps them through
    changes that should.

    Example:
        >>> InputReductionAttack(nonsense=2).candidates
        10
    """

    measures_task: ClassVar[bool] = False

    nonsense: PositiveInt = 1
    """Words, besides those that have to stay, of which or fewer no person could predict anything."""
    candidates: PositiveInt = 10
    """Words that are tried in each round."""

    def attempt(self, victim: Victim, examples: list[Example]) -> Mapping[str, list[Attempt]]:
        """One setting; `broken` is an input that was reduced to nonsense."""
        return {"": victim.together([self._search(victim, example) for example in examples])}

    def _search(self, victim: Victim, example: Example) -> Search:
        (clean,) = yield [example]
        removable, least = shortened(victim.task, example)
        seen = set(words_read(victim.task, victim.tokenizer, example, removable))
        if clean.score < 1.0 or not seen:
            return Attempt(clean.prediction, broken=False)
        left, reached = [i for i, word in enumerate(removable) if word in seen], clean
        losses: dict[int, float] = {}
        while len(left) > least:
            order = sorted(left, key=lambda i: losses.get(i, 0.0))
            first = self.candidates if losses else len(order)
            gone = None
            for part in filter(None, (order[:first], order[first:])):
                tried = [reduced(example, removable, [*_others(left, removable), i]) for i in part]
                answers = yield tried
                losses |= {i: judged.loss for i, judged in zip(part, answers, strict=True)}
                stays = [(losses[i], i, j) for i, j in zip(part, answers, strict=True) if j.queries and j.score >= 1.0]
                if stays:
                    _, gone, reached = min(stays, key=lambda found: found[:2])
                    break
            if gone is None:
                break
            left.remove(gone)
        shorter = len(left) < len(seen)
        return Attempt(
            reached.prediction,
            reduced(example, removable, _others(left, removable)) if shorter else None,
            broken=shorter and len(left) <= self.nonsense,
            measures={"words_left": float(len(left)), "share_left": len(left) / len(seen)},
        )


def shortened(task: Task, example: Example) -> tuple[list[Word], int]:
    """The words that may be taken out, and how many of them have to stay; none where nothing would be proved."""
    kept = task.kept_spans(example)
    if kept and not any(kept.values()):
        return [], 0
    fields = next(((name,) for name in SHORTENED if name in example.inputs), example.inputs)
    tokens = {n for n in fields if isinstance(example[n], list) and all(isinstance(item, str) for item in example[n])}

    found = words_in(example, words, kept, [name for name in fields if name not in tokens])
    found += words_in(example, lambda text: [(0, len(text))], kept, tokens)
    return found, 0 if any(kept.get(name) for name in fields) else 1


def _others(left: list[int], removable: list[Word]) -> list[int]:
    """The numbers that are not left."""
    there = set(left)
    return [i for i in range(len(removable)) if i not in there]
