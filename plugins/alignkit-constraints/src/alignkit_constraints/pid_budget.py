"""A constraint as "at most": a PID controller in the multiplier's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from alignkit.components import Weight

Smoothing = Annotated[float, Field(ge=0.0, lt=1.0)]


class PIDBudget(Weight):
    """A weight that answers to how much, how long and how fast its constraint's penalty exceeds a limit.

    PID Lagrangian (Stooke et al. 2020, arXiv:2007.03964, algorithm 2), after every optimizer step, with violation
    d = cost - limit and EMA(x) <- smoothing EMA(x) + (1 - smoothing) x:

        I = max(0, I + integral * d)
        P = EMA(d)
        D = max(0, EMA(cost) - EMA(cost) as it was `delay` steps ago)
        lambda = clamp(proportional * P + I + derivative * D, 0, maximum)

    The paper's pseudocode projects the whole sum and leaves smoothing and delay open; its released code defines them
    as here, and its averages start at 0, as ours do. The host divides the total loss by 1 + lambda.

    Cost: none to speak of. State: a few numbers.

    Relations: `budget` is the integral part alone, in log space; prefer it until it oscillates or overshoots.

    Example:
        >>> weight = PIDBudget(limit=0.05, integral=1.0, proportional=0.0, derivative=0.0)
        >>> weight.observe(0.25)
        >>> round(weight.value(), 4)
        0.2
    """

    example: ClassVar[Mapping[str, Any]] = {"limit": 0.05}

    limit: NonNegativeFloat
    """What the penalty's mean may be at most, in the penalty's own unit (nats per token …)."""
    initial: NonNegativeFloat = 0.0
    """The integral part at the start."""
    proportional: NonNegativeFloat = 0.1
    """Kp: answer to the violation as it is."""
    integral: NonNegativeFloat = 0.01
    """Ki: answer to the violations so far."""
    derivative: NonNegativeFloat = 0.01
    """Kd: answer to a cost that rises."""
    smoothing: Smoothing = 0.95
    """Decay of both moving averages; 0 takes the last value alone."""
    delay: PositiveInt = 10
    """How many steps back the rise of the cost is measured from."""
    maximum: PositiveFloat = 100.0
    """What lambda may be at most."""

    normalises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._integral = self.initial
        self._violation = 0.0
        self._costs = [0.0]  # the moving average of the cost, as it was up to `delay` steps ago; oldest first
        self._value = min(self.initial, self.maximum)

    def value(self) -> float:
        """lambda."""
        return self._value

    def observe(self, cost: float) -> None:
        """Take up what the step cost."""
        violation = cost - self.limit
        self._integral = max(0.0, self._integral + self.integral * violation)
        self._violation = self.smoothing * self._violation + (1 - self.smoothing) * violation
        average = self.smoothing * self._costs[-1] + (1 - self.smoothing) * cost
        rise = max(0.0, average - self._costs[0])
        total = self.proportional * self._violation + self._integral + self.derivative * rise
        self._value = min(max(total, 0.0), self.maximum)
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
