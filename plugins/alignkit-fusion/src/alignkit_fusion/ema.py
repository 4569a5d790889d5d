"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from torch import Tensor

from alignkit.components import Averager
from alignkit.weight_average import WeightAverage

if TYPE_CHECKING:
    from alignkit.step import TrainingStep


def decay_at(updates: int, decay: float, warm_up: bool) -> float:
    """The decay of one update: min(decay, (1 + t) / (10 + t)) with the warm-up.

    Args:
        updates: t, updates before this one.
        decay: what the decay grows to.
        warm_up: start small, so that a short training is not held back by where it began.
    """
    return min(decay, (1 + updates) / (10 + updates)) if warm_up else decay


class EMA(Averager):
    """Evaluates and saves the exponential moving average of the weights instead of the last ones.

    Polyak & Juditsky 1992; as a teacher in Tarvainen & Valpola 2017, arXiv:1703.01780, eq. 1: after each optimizer
    step average <- d * average + (1 - d) * weights. It starts as the weights after the first step. With `warm_up`
    d = min(decay, (1 + t) / (10 + t)) with t updates done: about a tenth of the steps so far count, until `decay`
    takes over; without it the first weights keep a share of decay^t, which is 37% after 1000 steps at .999.

    Only parameters that are trained are averaged (adapters under LoRA); what is frozen is its own average. Averages
    are kept in float32 whatever the model's precision, since 1 - d is lost in bfloat16.

    Cost: 4 bytes per trained parameter, one pass over them per optimizer step; nothing per forward or backward pass.
    State: the averages.

    Relations: `linear` averages finished models instead of the steps of one.

    Example:
        >>> EMA(decay=0.99).decay
        0.99
    """

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    """Share of the average that stays at each step; the average looks back over about 1 / (1 - decay) steps."""
    warm_up: bool = True
    """Start with a small decay and let it grow: min(decay, (1 + t) / (10 + t))."""

    def __post_init__(self) -> None:
        self._average = WeightAverage()
        self._updates = 0

    def after_step(self, step: TrainingStep) -> None:
        """Take up the weights as the optimizer left them."""
        if not self._average:
            self._average.begin(step)
            return
        self._average.follow(step, decay_at(self._updates, self.decay, self.warm_up))
        self._updates += 1

    def average(self) -> Iterator[tuple[str, Tensor]]:
        """The averages by parameter name, in float32; none before the first step."""
        yield from self._average.weights.items()

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, **self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._updates = int(state["updates"])
        self._average.load_state_dict(state)
