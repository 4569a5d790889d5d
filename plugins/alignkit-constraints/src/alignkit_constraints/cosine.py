"""A weight that changes over the whole training, along half a cosine."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeFloat

from alignkit.components import Weight
from alignkit_constraints.warmup import ramp


class Cosine(Weight):
    """A weight that goes from `start` to `end` over the whole training, along half a cosine.

    Of the optimizer steps T of the training t are done: weight = end + (start - end) (1 + cos(pi t / T)) / 2, the
    annealing that Loshchilov & Hutter 2017 (arXiv:1608.03983, equation 5) have for learning rates, without restarts.
    By default it holds on at first and has let go at the end; `start: 0, end: 1` is the reverse.

    Cost: none. State: the number of steps done; how many there are is the training's, so that one that is resumed
    with more steps than it began with goes on along the longer curve.

    Relations: `warmup` takes a number of steps of your own, then stays; its `shape: cosine` is the same curve.

    Example:
        >>> weight = Cosine(start=1.0, end=0.0)
        >>> weight.begin(2)
        >>> weight.observe(0.0)
        >>> round(weight.value(), 4)
        0.5
    """

    start: NonNegativeFloat = 1.0
    """The weight before the first step."""
    end: NonNegativeFloat = 0.0
    """The weight after the last step."""

    def __post_init__(self) -> None:
        self._done, self._steps = 0, 0

    def begin(self, steps: int) -> None:
        """Take up how long the training is."""
        self._steps = steps

    def value(self) -> float:
        """The weight as it stands; `start` before a training has begun."""
        return ramp(self._done, self._steps, self.start, self.end, "cosine") if self._steps else self.start

    def observe(self, cost: float) -> None:
        """Count an optimizer step; what it cost does not matter."""
        self._done += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done = int(state["steps"])
