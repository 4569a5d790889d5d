"""Learning from labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignkit.components import Objective, Term, component_name
from alignkit.errors import Mistake, PluginError
from alignkit.tasks.stock import choices_there

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


class Supervised(Objective):
    """The model's own loss on the labels: the stock Trainer's, with its label smoothing, neftune and custom losses.

    The mean is over labels where there is one per token, else over examples; the unit is nats. A span head's softmax
    runs over the positions that are attended to, so that padding changes nothing; the stock one runs over all. So does
    that of a multiple-choice head, where rows differ in how many choices they have.
    """

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """A task whose model has no loss of its own."""
        if not setting.task.stock_loss:
            found = f"task {setting.task.name} has no loss on labels"
            yield Mistake("objective supervised", found, f"an objective for it, such as {_suggested(setting.task)}")

    def loss(self, step: TrainingStep, outputs: Any) -> Term:
        if getattr(outputs, "loss", None) is None:
            raise PluginError("the model gave no loss: the batch has no labels, or its head takes none")
        if "start_positions" in step.current:
            return Term(self._spans(step, outputs), "example")
        if step.current["input_ids"].dim() == 3 and not choices_there(step.current).all():
            return Term(self._choices(step, outputs), "example")
        return Term(outputs.loss, "token" if "token" in step.counts else "example")

    @staticmethod
    def _choices(step: TrainingStep, outputs: Any) -> Tensor:
        """The loss of a multiple-choice head over the choices that a row has: the stock one counts padding, too."""
        log_probabilities, _ = step.log_probabilities(outputs)  # [B, C]
        return torch.nn.functional.nll_loss(log_probabilities, step.current["labels"])

    @staticmethod
    def _spans(step: TrainingStep, outputs: Any) -> Tensor:
        """The loss of a span head over attended positions: the stock one gives probability to padding, too."""
        log_probabilities, _ = step.log_probabilities(outputs)  # [B, 2, T]
        places = torch.stack([step.current["start_positions"], step.current["end_positions"]], 1)
        return -log_probabilities.gather(-1, places.unsqueeze(-1)).mean()


def _suggested(task: Task) -> str:
    return component_name(type(task.default_objective()))
