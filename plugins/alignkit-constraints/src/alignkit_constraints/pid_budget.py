"""A constraint as "at most": a PID controller in the multiplier's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from alignkit.components import Weight
from alignkit_constraints.budget import Smoothing


class PIDBudget(Weight):
    """A weight that answers to how much, how long and how fast its constraint's penalty exceeds a limit.

    PID Lagrangian (Stooke et al. 2020, arXiv:2007.03964, algorithm 2), after every optimizer step, with the cost
    counted in limits, c = cost / limit, the violation d = c - 1, and EMA(x) <- smoothing EMA(x) + (1 - smoothing) x:

        I = max(0, I + integral * d)
        P = EMA(d)
        D = max(0, EMA(c) - EMA(c) as it was `delay` steps ago)
        lambda = clamp(proportional * P + I + derivative * D, 0, maximum * limit) / limit

    EMA(d) starts at 0, EMA(c) at the first cost: from 0, a cost that stays as it is would look like a rise for as long
    as the average takes to reach it.

    The paper's pseudocode projects the whole sum and leaves smoothing and delay open; its released code defines them
    as here, but for both averages starting at 0 and gains per unit of the cost. Counting in limits is ours, and with it
    the gains (in nats of the objective) serve every constraint; the released code smooths with .95. The host divides
    the total loss by 1 + lambda, as the released code does.

    Cost: none to speak of. State: a few numbers.

    Relations: `budget` is I and P with fewer fields. D is the difference: a penalty that rises fast meets a weight
    before it is at the limit. `benchmarks/budgets.py` compares them.

    Example:
        >>> weight = PIDBudget(limit=0.05, integral=0.1, proportional=0.0, derivative=0.0)
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
    proportional: NonNegativeFloat = 0.5
    """Kp: answer to the violation as it is, in the objective's unit (nats) per limit that the cost is above."""
    integral: NonNegativeFloat = 0.02
    """Ki: answer to the violations so far, in the same unit per step."""
    derivative: NonNegativeFloat = 1.0
    """Kd: answer to a cost that rises, in the same unit per limit that it rose in `delay` steps."""
    smoothing: Smoothing = 0.9
    """Decay of both moving averages; 0 takes the last value alone."""
    delay: PositiveInt = 10
    """How many steps back the rise of the cost is measured from."""
    maximum: PositiveFloat = 10_000.0
    """What lambda may be at most."""

    normalises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._value = min(self.initial, self.maximum)
        self._integral = self._value * self.limit
        self._violation = 0.0
        self._costs: list[float] = []
        """The moving average of the cost, as it was up to `delay` steps ago; oldest first."""

    @property
    def bound(self) -> float:  # type: ignore[override]  # a constant of the class in weights without one
        """The limit."""
        return self.limit

    @property
    def exhausted(self) -> bool:  # type: ignore[override]
        """lambda is at its maximum."""
        return self._value >= self.maximum

    @property
    def settled(self) -> int:  # type: ignore[override]
        """Steps after which 5 % of a moving average, or less, are of what it began with."""
        return round(3 / (1 - self.smoothing)) + self.delay

    def value(self) -> float:
        """lambda."""
        return self._value

    def observe(self, cost: float) -> None:
        """Take up what the step cost."""
        cost = cost / self.limit
        largest = self.maximum * self.limit
        self._integral = min(max(0.0, self._integral + self.integral * (cost - 1.0)), largest)
        self._violation = self.smoothing * self._violation + (1 - self.smoothing) * (cost - 1.0)
        average = self.smoothing * self._costs[-1] + (1 - self.smoothing) * cost if self._costs else cost
        rise = max(0.0, average - self._costs[0]) if self._costs else 0.0
        answer = self.proportional * self._violation + self._integral + self.derivative * rise
        self._value = min(max(answer, 0.0) / self.limit, self.maximum)
        self._costs = [*self._costs, average][-self.delay :]

    def state_dict(self) -> dict[str, Any]:
        return {
            "integral": self._integral,
            "violation": self._violation,
            "costs": list(self._costs),
            "value": self._value,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._integral, self._violation = float(state["integral"]), float(state["violation"])
        self._costs, self._value = [float(cost) for cost in state["costs"]], float(state["value"])
