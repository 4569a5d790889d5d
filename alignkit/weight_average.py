"""A running average of the trained weights, which averagers save and penalties compare the model with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from alignkit.step import TrainingStep

_PREFIX = "average."


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, once per optimizer step; false until it has begun.

    Only parameters that are trained are averaged (adapters under LoRA); what is frozen is its own average. Averages
    are kept in float32 whatever the model's precision, since 1 - decay is lost in bfloat16.

    Cost: 4 bytes per trained parameter, one pass over them per step.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        """By parameter name, in float32."""

    def __bool__(self) -> bool:
        return bool(self.weights)

    def begin(self, step: TrainingStep) -> None:
        """Start as the weights are."""
        self.weights = {name: p.detach().float().clone() for name, p in step.trained.items()}

    @torch.no_grad()
    def follow(self, step: TrainingStep, decay: float) -> None:
        """Take up the weights as the optimizer left them, wherever they are; nothing where it has not begun.

        Args:
            step: the step that ends.
            decay: the share of the average that stays.
        """
        if not self:
            return
        trained = step.trained
        self.weights = {name: average.to(trained[name].device) for name, average in self.weights.items()}
        values = [trained[name].float() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), values, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages under names of their own, to stand among other state of a component."""
        return {_PREFIX + name: value for name, value in self.weights.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up again; what else is in `state` is left alone."""
        self.weights = {k.removeprefix(_PREFIX): v.clone() for k, v in state.items() if k.startswith(_PREFIX)}
