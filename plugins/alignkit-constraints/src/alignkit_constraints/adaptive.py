"""A weight that steers its penalty towards a target, from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import PositiveFloat, model_validator

from alignkit.components import Weight

LARGEST_ERROR = 0.2
"""The paper's: a step changes the weight by a fifth of the gain at most."""


def steered(weight: float, cost: float, target: float, gain: float) -> float:
    """The weight after a step: weight (1 + gain e), e = clip((cost - target) / target, -.2, .2).

    Args:
        weight: the weight so far.
        cost: the constraint's mean over the step, in the constraint's unit.
        target: what the cost is to be, in the same unit.
        gain: the controller's proportional gain, K_beta in the paper.
    """
    error = min(max(cost / target - 1.0, -LARGEST_ERROR), LARGEST_ERROR)
    return weight * (1.0 + gain * error)


class Adaptive(Weight):
    """A weight that grows while its constraint's penalty is above a target, and shrinks while it is below.

    The adaptive KL coefficient of Ziegler et al. 2019 (arXiv:1909.08593, section 2.2), after every optimizer step:

        e = clip((cost - target) / target, -.2, .2),    weight *= 1 + gain * e

    cost is the mean of the unweighted penalty over the step, clean pass, all processes. We follow the paper, whose
    gain is .1; its released code, and libraries after it, write the gain as (episodes per step) / horizon, 512 /
    10,000. The paper does not say where the weight starts; 1 is every constraint's default here. As in the paper the
    loss is objective + weight * penalty, not divided by anything. `minimum` and `maximum` are ours.

    A step changes the weight by 2 % at most: a hundred steps for a factor of 7. It was made for long runs, and where
    costs differ much from step to step the clipped error has its balance at their median, below which their mean
    seldom lies.

    Cost: none to speak of. State: one number.

    Relations: `budget` and `pid-budget` hold a limit in a few hundred steps, and hold the mean; this one is for results
    that are to be compared with reinforcement learning from human feedback.

    Example:
        >>> weight = Adaptive(target=0.05)
        >>> weight.observe(0.25)
        >>> weight.value()
        1.02
    """

    example: ClassVar[Mapping[str, Any]] = {"target": 0.05}

    target: PositiveFloat
    """What the penalty's mean is to be, in the penalty's own unit (nats per token …)."""
    initial: PositiveFloat = 1.0
    """The weight at the start."""
    gain: PositiveFloat = 0.1
    """Change of the weight per step and relative error, which counts for .2 at most."""
    minimum: PositiveFloat = 1e-4
    """What the weight may be at least: from much less it would take too long to come back."""
    maximum: PositiveFloat = 10_000.0
    """What the weight may be at most."""

    bound_field: ClassVar[str] = "target"

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"a minimum of {self.minimum:g} above the maximum, {self.maximum:g}")
        return self

    def __post_init__(self) -> None:
        self._value = min(max(self.initial, self.minimum), self.maximum)

    @property
    def exhausted(self) -> bool:  # type: ignore[override]
        """The weight is at its maximum."""
        return self._value >= self.maximum

    @property
    def bound(self) -> float:  # type: ignore[override]  # a constant of the class in weights without one
        """The target."""
        return self.target

    def value(self) -> float:
        """The weight as it stands."""
        return self._value

    def observe(self, cost: float) -> None:
        """Steer once by what the step cost."""
        value = steered(self._value, cost, self.target, self.gain)
        self._value = min(max(value, self.minimum), self.maximum)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self._value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._value = float(state["value"])
