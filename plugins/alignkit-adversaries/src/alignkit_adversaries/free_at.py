"""Free adversarial training: the ascent takes the gradients that training makes anyway."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat, PositiveInt

from alignkit.components import Adversary

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.step import TrainingStep


class FreeAT(Adversary):
    """Trains on each batch several times in a row, and ascends once between two optimizer steps, at no extra pass.

    Shafahi et al. 2019, arXiv:1904.12843, algorithm 1: for m = `steps` optimizer steps in a row on one batch, the
    model is trained on L(e + delta), and the same backward pass ascends delta <- Proj_epsilon(delta + epsilon g / |g|).
    The step is as long as the radius, as in the paper; norms and the projection are L2, per example, on real tokens
    (the paper's are L-infinity, of pixels).

    Differs from the paper where a new batch comes: there delta is kept from batch to batch, here it starts at 0 again.
    Texts differ in length and tokens, unlike images, so that what was found for one says nothing of another. The
    first of the `steps` on a batch is therefore clean.

    An epoch takes `steps` times as many optimizer steps: divide `num_train_epochs` by `steps`, as the paper does, to
    train for as long as without. `train_loss` is the loss at the perturbation as it stands.

    Cost: one forward and backward pass per optimizer step, the same as a plain step. Memory: one [B, T, D] per
    accumulated micro-batch. State: the perturbations of the first process; on other processes a resumed training
    starts at 0 for the rest of the replay that was interrupted.

    Relations: `freelb` makes all steps of the ascent before the weights move, and sees fresh rows at every optimizer
    step; `fgm` costs two passes and trains on the clean loss, too.

    Example:
        >>> FreeAT(steps=4).replays
        4
    """

    epsilon: PositiveFloat = 0.1
    """L2 radius that the perturbation of one example stays in, and length of one step, in units of the model's mean
    embedding norm."""
    steps: PositiveInt = 3
    """Optimizer steps in a row that train on one batch: the paper's m."""

    @property
    def replays(self) -> int:  # type: ignore[override]  # a constant of the class in other components
        """Optimizer steps in a row that train on one batch."""
        return self.steps

    def __post_init__(self) -> None:
        self._kept: dict[int, tuple[list[int], Tensor]] = {}
        """By micro-batch of the window: the replay and the rows of a perturbation, and the perturbation."""

    def attack(self, step: TrainingStep) -> Iterator[Tensor]:
        """The loss at the perturbation that earlier steps on these rows have found."""
        delta = step.zeros()
        whose, kept = self._kept.get(step.micro, ([], delta))
        if whose == self._replay(step) and kept.shape == delta.shape:
            delta = step.project(kept.to(delta.device), self.epsilon).requires_grad_()
        yield step.loss(delta)
        assert delta.grad is not None, "the host did not run backward on the loss"
        ascended = step.project(delta + self.epsilon * step.unit(delta.grad), self.epsilon)
        self._kept[step.micro] = (self._replay(step), ascended)

    def _replay(self, step: TrainingStep) -> list[int]:
        """Which replay this is, and of which rows; where nobody said, of which process."""
        return [step.index // self.steps, *(step.rows or [-1, step.context.rank])]

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for micro, (rows, delta) in self._kept.items():
            state |= {f"rows.{micro}": rows, f"delta.{micro}": delta}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        micros = [int(name.removeprefix("delta.")) for name in state if re.fullmatch(r"delta\.\d+", name)]
        self._kept = {micro: (state[f"rows.{micro}"], state[f"delta.{micro}"]) for micro in micros}
