"""The kind `control`: what a finished model says, while it is asked."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from alignkit.components.answers import Intervention
from alignkit.components.component import Component
from alignkit.errors import Mistake

if TYPE_CHECKING:
    from alignkit.components.task import Task
    from alignkit.data import Example
    from alignkit.generation import Generating, Processor


class Control(Component, abstract=True):
    """Controls what a finished model says, while it is asked. Implements `reply`, `steered` or `finish`.

    Takes no part in training: the model stays as it is. `controls: [...]` in a recipe, `alignkit predict --control` and
    `alignkit.load(...).controls` put it to use; there is none otherwise. Whatever it did is said beside the answer.
    """

    kind: ClassVar[str] = "control"
    may_override: ClassVar[tuple[str, ...]] = ("reply", "steered", "finish")

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """Before the model is asked: what the task, which generates, lacks for it."""
        return ()

    def prepare(self, model: Any, tokenizer: Any, task: Task) -> None:
        """Before the first answer, and again for another model: load and measure what it needs. Leave model and random
        state as they are.

        What `state_dict` gives afterwards is kept with a run, and given back before `prepare` when the run is loaded.

        Raises:
            UsageError: it does not go with this model.
        """

    def reply(self, examples: list[Example]) -> list[Intervention]:
        """Before anything is generated: one intervention per example; its `text` is the answer, nobody else is asked.

        What becomes of an example depends neither on the others nor on their order.
        """
        raise NotImplementedError

    def steered(self, generating: Generating) -> AbstractContextManager[Processor | None]:
        """Around the generation of a batch: hooks on the model, and what changes the scores of the next token.

        Args:
            generating: the batch; `generating.note(row, intervention)` says what was done to a row's answer.

        Returns:
            A context manager; it gives a function of (ids [R, t], scores [R, V]) to scores, as transformers' logits
            processors are, or None.
        """
        raise NotImplementedError

    def finish(self, example: Example, text: str) -> Intervention | None:
        """When a text has been generated: look at it, and give another in its place where that is necessary."""
        raise NotImplementedError
