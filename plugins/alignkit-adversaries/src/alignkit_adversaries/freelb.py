"""FreeLB: every step of the ascent is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from alignkit.components import Adversary
from alignkit_adversaries.start import uniform_start

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.step import TrainingStep


class FreeLB(Adversary):
    """Trains on the mean loss at all points of an ascent that starts at random, so no gradient of it is wasted.

    Zhu et al. 2020, arXiv:1909.11764, algorithm 1: delta0 = U(-1, 1) initial / sqrt(L D) on an example's L real
    tokens; then, K = `steps` times, the model is trained on L(e + delta) / K, and from the same backward pass
    delta <- Proj(delta + learning_rate g / |g|), with norms per example and the projection onto |delta| <= max_norm.
    `steps` is the paper's K: K passes in all. Some code bases count the ascents instead: 1 + K passes of L / (1 + K).

    All lengths are in mean embedding norms of the model. The defaults are the published ones for SST-2 (RoBERTa-large
    with K = 2, ALBERT-xxlarge with K = 3: learning rate 0.1, magnitude 1, norm 0.6), which are absolute there: divide
    by that model's mean embedding norm to get the same perturbation here. Where `initial` / sqrt(3), the usual length
    of delta0, is larger than max_norm, the start is projected, too.

    Differs from the released code: only real tokens are perturbed, at every step, where that perturbs special tokens
    and masks padding only at the start (`perturb_special` perturbs special tokens here); L counts what is perturbed.
    Dropout masks are shared by all passes, as in the paper's section 3.3.

    `train_loss` is the loss of the first pass, at delta0; with `initial` 0 that is the clean loss.

    Cost: `steps` forward and backward passes per step (2.4 to 2.9 times a plain step at 3); two [B, T, D].

    Relations: `pgd` trains on the end of the ascent and on the clean loss alone; `fgm` costs less. FreeLB never sees
    the clean example unless `initial` is 0.

    Example:
        >>> FreeLB(steps=2, initial=0).passes
        2
    """

    learning_rate: PositiveFloat = 0.1
    """Length of one step of the ascent, in units of the model's mean embedding norm (the released code's `adv-lr`)."""
    initial: NonNegativeFloat = 1.0
    """Bound on the random start's L2 norm, which usually is 1 / sqrt(3) of it, in mean embedding norms
    (`adv-init-mag`); 0: the first pass is clean."""
    max_norm: PositiveFloat | None = 0.6
    """L2 radius that the perturbation of one example stays in, in mean embedding norms (`adv-max-norm`); null: none."""
    steps: PositiveInt = 3
    """Passes, each trained on with its share of the loss: the paper's K."""
    perturb_special: bool = False
    """Perturb special tokens ([CLS], [SEP] …), too, as the released code does."""

    @property
    def passes(self) -> int:  # type: ignore[override]  # a constant of the class in most adversaries
        """Losses that are trained on."""
        return self.steps

    def attack(self, step: TrainingStep) -> Iterator[Tensor]:
        """The loss at each point of the ascent, divided by their number."""
        mask = step.real_tokens(special=self.perturb_special)
        start = step.zeros()
        if self.initial:
            start = uniform_start(step.noise("uniform", mask), mask, self.initial * step.unit_length)
        delta = self._projected(step, start, mask)
        for left in reversed(range(self.steps)):
            yield step.loss(delta) / self.steps
            if left:
                assert delta.grad is not None, "the host did not run backward on the last loss"
                ascended = delta + self.learning_rate * step.unit(delta.grad, mask)
                delta = self._projected(step, ascended, mask)

    def _projected(self, step: TrainingStep, delta: Tensor, mask: Tensor) -> Tensor:
        """Back in the ball, where there is one; takes a gradient again."""
        inside = delta.detach() if self.max_norm is None else step.project(delta, self.max_norm, mask)
        return inside.requires_grad_()
