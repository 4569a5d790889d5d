"""Projected gradient descent on embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from alignkit.components import Adversary
from alignkit_adversaries.inner import INNER_STEP, unscaled_inner_gradients
from alignkit_adversaries.start import uniform_start

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.errors import Mistake
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


class PGD(Adversary):
    """Trains on each example and on the worst nearby one that several small, projected gradient steps find.

    Madry et al. 2018, arXiv:1706.06083, section 2.1, with L2 steps per example as Zhu et al. 2020, arXiv:1909.11764,
    write it for text: delta <- Proj_epsilon(delta + alpha g / |g|) from delta = 0, where g [B, T, D] is dL/de of the
    input-embedding layer's output e, |g| its L2 norm per example over real tokens, and Proj scales an example back into
    the ball of radius epsilon, after every step.

    With `clean` (the convention of the code in common use for text, whose number of steps is the default; for its
    epsilon of 1 and alpha of .3 see `fgm`: they are far too large per example) the model trains on the clean loss
    and on the last one, and the clean pass gives the first of the `steps` gradients. Without, it trains on the last
    loss alone, as Madry et al. do. With `random_start` the ascent begins at U(-1, 1) epsilon / sqrt(L D), inside
    the ball (Zhu et al.; Madry et al. draw from their cube); the clean gradient was taken elsewhere then, so all
    `steps` gradients are taken from that point on.

    Differs from the snippet in common use, which shifts the embedding *weight* and goes backward through all
    parameters at every step: there every occurrence of a token shares one shift, epsilon depends on the batch size,
    and under LoRA nothing happens at all. Gradients of inner steps are taken with respect to delta alone.

    `train_loss` is the clean loss (with `random_start` and without `clean`: the loss at the start).

    Cost: with `clean`, 2 forward and backward passes and steps - 1 inner ones of about .73 each: 3.1 to 3.5 times a
    plain step at 3 steps. Without: 1 pass and `steps` inner ones. Memory: two [B, T, D].

    Relations: `fgm` is one step of it and cheaper; `freelb` trains on the loss at every step for the same price;
    `free-at` spreads the steps over optimizer steps.

    Example:
        >>> PGD(steps=3).passes, PGD(clean=False).passes
        (2, 1)
    """

    epsilon: PositiveFloat = 0.1
    """L2 radius that the perturbation of one example stays in, in units of the model's mean embedding norm."""
    alpha: PositiveFloat = 0.05
    """Length of one step, in units of the model's mean embedding norm; at most epsilon."""
    steps: PositiveInt = 3
    """Gradient steps from the start to the point that is trained on."""
    clean: bool = True
    """Train on the clean loss as well; its gradient is the first step's."""
    random_start: bool = False
    """Start at a random point of the ball instead of the example itself."""

    @model_validator(mode="after")
    def _steps_stay_inside(self) -> Self:
        if self.alpha > self.epsilon:
            raise ValueError(
                f"a step of alpha {self.alpha:g} is longer than the radius epsilon {self.epsilon:g}, and projection "
                f"would keep the perturbation on the surface of the ball: alpha may be {self.epsilon:g} at most"
            )
        return self

    @property
    def passes(self) -> int:  # type: ignore[override]  # a constant of the class in most adversaries
        """Losses that are trained on."""
        return 2 if self.clean else 1

    @property
    def inner(self) -> int:
        """Gradients that are taken with respect to delta alone."""
        return self.steps - 1 if self.clean and not self.random_start else self.steps

    @property
    def forwards(self) -> float:  # type: ignore[override]
        """What the inner steps cost, in forward passes."""
        return self.inner * INNER_STEP

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Inner gradients are not scaled, so that fp16 would flush them to zero."""
        if self.inner:
            yield from unscaled_inner_gradients(self, setting)

    def attack(self, step: TrainingStep) -> Iterator[Tensor]:
        """The clean loss, unless it is left out, then the loss at the end of the ascent."""
        delta = step.zeros()
        if self.clean:
            yield step.loss(delta)
        if self.random_start:
            length = self.epsilon * step.unit_length
            delta = uniform_start(step.noise("uniform"), step.mask, length).requires_grad_()
        elif self.clean:
            assert delta.grad is not None, "the host did not run backward on the first loss"
            delta = self._ascended(step, delta, delta.grad)
        for _ in range(self.inner):
            delta = self._ascended(step, delta, step.gradient(delta))
        yield step.loss(delta.detach())

    def _ascended(self, step: TrainingStep, delta: Tensor, gradient: Tensor) -> Tensor:
        """One step further, back in the ball; takes a gradient again."""
        return step.project(delta + self.alpha * step.unit(gradient), self.epsilon).requires_grad_()
