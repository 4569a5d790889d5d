"""The kind `attack`: how robust a finished model is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from alignkit.components.answers import Attempt
from alignkit.components.component import Component
from alignkit.errors import Mistake

if TYPE_CHECKING:
    from alignkit.components.task import Task
    from alignkit.data import Example
    from alignkit.evaluation.victim import Victim


class Attack(Component, abstract=True):
    """Tries to make a finished model fail, example by example: how robust it is, measured. Implements `attempt`.

    Takes no part in training; that is an adversary's. `alignkit attack` and `evaluation: {attacks: [...]}` ask it.
    """

    kind: ClassVar[str] = "attack"
    must_override: ClassVar[tuple[str, ...]] = ("attempt",)
    directions: ClassVar[Mapping[str, int]] = {}
    """Of its measures: 1 where more is better for the model, -1 where less is, 0 where neither is; of those that are
    not in it their names decide."""
    needs_score: ClassVar[bool] = True
    """The task has to say which predictions are right. False for attacks that have a goal of their own. May be a
    property."""
    measures_task: ClassVar[bool] = True
    """The task's metrics are taken of its predictions, too, where the task scores them. False where they would say
    nothing (attacks that leave predictions as they are)."""

    limit: PositiveInt | None = 500
    """Rows of a split that are attacked, taken at even distances; None: all."""

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """Before anything is attacked: what the task, for the model that it is to be put to, lacks for it."""
        return ()

    def check_tokenizer(self, task: Task, tokenizer: Any) -> Iterable[Mistake]:
        """As `check_task`, and after it, once the model's tokenizer is known: what the attack lacks in it."""
        return ()

    def attempt(self, victim: Victim, examples: list[Example]) -> Mapping[str, list[Attempt]]:
        """What the attack makes of each example, at each of its settings.

        Args:
            victim: the model, to ask for predictions, losses and gradients.
            examples: those whose predictions are not entirely wrong already; there may be none.

        Returns:
            By setting (`""` where there is one alone; radii …) one attempt per example, in order. What becomes of an
            example depends neither on the others nor on their order: draw from `victim.generator(name, example)`.
        """
        raise NotImplementedError
