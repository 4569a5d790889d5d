"""A constraint as "at most": a Lagrange multiplier that follows the violation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from alignkit.components import Weight

Smoothing = Annotated[float, Field(ge=0.0, lt=1.0)]


def ascend(multiplier: float, cost: float, limit: float, rate: float) -> float:
    """One step of projected gradient ascent on mu (cost / limit - 1) with respect to the multiplier mu.

    Args:
        multiplier: mu, in the objective's unit.
        cost: the constraint's mean over the step, in the constraint's unit.
        limit: what the cost may be at most, in the same unit.
        rate: the step's length.

    Returns:
        The new mu, not negative.
    """
    return max(0.0, multiplier + rate * (cost / limit - 1.0))


class Budget(Weight):
    """A weight that rises while its constraint's penalty is above a limit, and falls while it is below.

    The Lagrange multiplier of Safe RLHF (Dai et al. 2023, arXiv:2310.12773), which trains on (objective + lambda *
    penalty) / (1 + lambda) and raises lambda while the cost is above the limit; the host divides. How it is raised is
    ours. With d = cost / limit - 1 after every optimizer step, cost the mean of the unweighted penalty over the step,
    clean pass, all processes:

        mu = max(0, mu + rate * d)
        D = smoothing D + (1 - smoothing) d                      (begins at 0)
        lambda = clamp(mu + damping * D, 0, maximum * limit) / limit

    Safe RLHF has log lambda += rate * lambda * (cost - limit), with rate .1 and lambda from 1. There the rate is per
    unit of the cost, so that it would have to be chosen anew for each constraint, and a lambda that has become small
    while the cost was below the limit is slow to come back. Here mu and d have no unit of the cost: mu is what the
    objective may lose for one limit's worth of penalty. The term with `damping` is the augmented Lagrangian's
    (Hestenes 1969; Platt & Barr 1988, "Constrained differential optimization"): without it ascent swings around the
    limit. `benchmarks/budgets.py` measures how closely a limit is held with the default fields, which were chosen on
    small classifiers.

    A limit is met as the learning rate allows: where that has fallen to nothing, neither model nor penalty move.

    Cost: none to speak of. State: two numbers.

    Relations: `pid-budget` answers to a rising cost before it reaches the limit, for two more fields; `adaptive` is the
    slower controller that reinforcement learning from human feedback knows; a plain number trades the penalty off
    instead of limiting it.

    Example:
        >>> weight = Budget(limit=0.05, rate=0.1, damping=0.0)
        >>> weight.observe(0.25)  # four limits too much
        >>> round(weight.value(), 4)
        8.0
    """

    example: ClassVar[Mapping[str, Any]] = {"limit": 0.05}

    limit: PositiveFloat
    """What the penalty's mean may be at most, in the penalty's own unit (nats per token …); more than 0, which no
    training that changes anything could meet."""
    initial: NonNegativeFloat = 0.0
    """lambda at the start."""
    rate: PositiveFloat = 0.02
    """What mu gains in a step that costs twice the limit, in the objective's unit (nats)."""
    damping: NonNegativeFloat = 0.5
    """Answer to the violation as it is, in the same unit."""
    smoothing: Smoothing = 0.9
    """Decay of the moving average that damping looks at; 0 takes the last step alone."""
    maximum: PositiveFloat = 10_000.0
    """What lambda may be at most."""

    normalises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._multiplier = min(self.initial, self.maximum) * self.limit
        self._violation = 0.0

    @property
    def bound(self) -> float:  # type: ignore[override]  # a constant of the class in weights without one
        """The limit."""
        return self.limit

    @property
    def exhausted(self) -> bool:  # type: ignore[override]
        """lambda is at its maximum."""
        return self.value() >= self.maximum

    @property
    def settled(self) -> int:  # type: ignore[override]
        """Steps after which 5 % of a moving average, or less, are of what it began with."""
        return round(3 / (1 - self.smoothing))

    def value(self) -> float:
        """lambda."""
        answer = self._multiplier + self.damping * self._violation
        return min(max(answer, 0.0) / self.limit, self.maximum)

    def observe(self, cost: float) -> None:
        """Ascend once on what the step cost."""
        ascended = ascend(self._multiplier, cost, self.limit, self.rate)
        self._multiplier = min(ascended, self.maximum * self.limit)
        violation = cost / self.limit - 1.0
        self._violation = self.smoothing * self._violation + (1 - self.smoothing) * violation

    def state_dict(self) -> dict[str, Any]:
        return {"multiplier": self._multiplier, "violation": self._violation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._multiplier, self._violation = float(state["multiplier"]), float(state["violation"])
