"""A constraint as "at most": a Lagrange multiplier that follows the violation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat

from alignkit.components import Weight


def ascend(log_multiplier: float, cost: float, limit: float, rate: float, maximum: float) -> float:
    """One step of gradient ascent on lambda (cost - limit) with respect to log lambda, clamped at log `maximum`.

    Args:
        log_multiplier: log lambda.
        cost: the constraint's mean over the step, in the constraint's unit.
        limit: what the cost may be at most, in the same unit.
        rate: the step's length.
        maximum: what lambda may be at most.

    Returns:
        The new log lambda.
    """
    return min(log_multiplier + rate * math.exp(log_multiplier) * (cost - limit), math.log(maximum))


class Budget(Weight):
    """A weight that rises while its constraint's penalty is above a limit, and falls while it is below.

    The Lagrange multiplier of Safe RLHF (Dai et al. 2023, arXiv:2310.12773): log lambda += rate * lambda *
    (cost - limit) after every optimizer step, clamped at `maximum`, where cost is the mean of the unweighted penalty
    over the step, clean pass, all processes. The host divides the total loss by 1 + lambda, as the paper does, so
    that a large multiplier changes the loss's direction and not the size of the steps.

    Costs far above the limit saturate at `maximum`; the factor lambda makes recovery from a small multiplier slow:
    raise `rate` where the unit of the cost is small.

    Cost: none to speak of. State: one number.

    Relations: `pid-budget` reacts faster and overshoots less, for four more hyper-parameters; a plain number trades
    the penalty off instead of limiting it.

    Example:
        >>> weight = Budget(limit=0.05, initial=1.0, rate=0.1)
        >>> weight.observe(0.25)
        >>> round(weight.value(), 4)
        1.0202
    """

    example: ClassVar[Mapping[str, Any]] = {"limit": 0.05}

    limit: NonNegativeFloat
    """What the penalty's mean may be at most, in the penalty's own unit (nats per token …)."""
    initial: PositiveFloat = 1.0
    """lambda at the start."""
    rate: PositiveFloat = 0.1
    """Length of a step of log lambda."""
    maximum: PositiveFloat = 100.0
    """What lambda may be at most."""

    normalises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._log_multiplier = math.log(min(self.initial, self.maximum))

    def value(self) -> float:
        """lambda."""
        return math.exp(self._log_multiplier)

    def observe(self, cost: float) -> None:
        """Ascend once on what the step cost."""
        self._log_multiplier = ascend(self._log_multiplier, cost, self.limit, self.rate, self.maximum)

    def state_dict(self) -> dict[str, Any]:
        return {"log_multiplier": self._log_multiplier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._log_multiplier = float(state["log_multiplier"])
