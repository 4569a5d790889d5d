"""SMART: predictions that are smooth in the input and change slowly in training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, InstanceOf, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from alignkit.components import Adversary, Term, Weight
from alignkit.divergence import symmetric_kl
from alignkit.plan import FORWARD, STEP
from alignkit.weight_average import WeightAverage
from alignkit_adversaries.divergence import divergence_gradient, predictions
from alignkit_adversaries.inner import inner_passes, unscaled_inner_gradients

if TYPE_CHECKING:
    from alignkit.errors import Mistake
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


def boxed(delta: Tensor, bound: float) -> Tensor:
    """`delta` with every entry brought back into [-bound, bound]: the projection onto a ball of the largest entry."""
    return delta.clamp(-bound, bound)


def by_largest(direction: Tensor) -> Tensor:
    """A direction [B, T, D] divided, per example, by its largest entry; 0 stays 0."""
    largest = direction.abs().amax((1, 2), keepdim=True)
    return direction / torch.where(largest > 0, largest, 1.0)


class SMART(Adversary):
    """Keeps predictions as they are in a box around each example, and near those of an average of past weights.

    Jiang et al. 2020, arXiv:1911.03437, algorithm 1: weight * (S + bregman * B). S, the smoothness, is
    max symKL(p(e + delta), p(e)) over |delta|_p <= epsilon. B, the Bregman proximal point term with momentum, is
    symKL(p_theta, p_average), where average <- momentum * average + (1 - momentum) * weights after each optimizer step,
    from the weights before the first one. symKL(p, q) = KL(p || q) + KL(q || p), the mean over scored positions, in
    nats per token (per example where the task predicts once per example); in S both predictions have a gradient, in B
    the model's. The paper's lambda is `weight`, its mu is weight * bregman. A component has one penalty: S and B are
    logged and validated as their sum, and apart with `bregman: 0` alone.

    The search starts at normal noise and takes `steps` times delta <- Proj(delta + alpha g / |g|_p), g the gradient
    of symKL for delta, with norms and projection per example, on real tokens.

    Units are mean embedding norms. With `norm: inf` entries are bounded by epsilon / sqrt(D), so that a token is moved
    by epsilon at most whatever the model's width; alpha and noise have the same factor. With `norm: 2` epsilon is the
    L2 radius of an example. The defaults keep the paper's proportions (epsilon and noise 1e-5, step 1e-3), at which
    most entries end on the box's surface after one step. Its 1e-5 is an epsilon of 1.8e-4 on MiniLM (D = 384, mean norm
    1.07): there, fine-tuned for NER, S is 6e-6 nats, against 0.1 at the default.

    Differs from the released code (mt-dnn), which follows a one-way KL divergence, knows no radius (its epsilon
    guards a division), normalises per token, and moves each token's largest entry by 1e-3 in its first version and by
    1 in later ones, where it normalises the sum of noise and step instead of the gradient. Where a gradient is not
    finite, it drops the whole batch's S, here the example's. It does not switch B on. The paper's momentum is 0.99 for
    the first tenth of the steps and 0.999 then; here it is one number. The average predicts under the model's own
    dropout masks, so that B is 0 where the weights are the same: in evaluation mode it would pull what the masks leave
    towards the whole, which is another regulariser.

    Cost: one forward and backward pass, `steps` inner ones of about .73 each, and with `bregman` a forward pass: 3.0
    times a plain step, 2.6 without `bregman` (MiniLM, CPU). Validation measures the penalty, too. Memory: 4 bytes per
    trained parameter for the average, and while it predicts a copy in the model's precision where that is lower; one
    more pass's activations. State: the average.

    Relations: `vat` measures one-way divergences, bounds the example and needs no box; `r3f` replaces the search by
    noise; `kl-reference` holds on to the model that training began with instead of to a moving one.

    Example:
        >>> SMART(steps=2, bregman=0).bregman
        0.0
    """

    weight: NonNegativeFloat | InstanceOf[Weight] = 1.0
    """What the penalty is multiplied with: a number, or a weight such as `{use: budget, limit: 0.05}`."""
    epsilon: PositiveFloat = 0.03
    """Radius, in units of the model's mean embedding norm: of a token where every entry is at its bound (`inf`), of an
    example's L2 norm (`2`)."""
    alpha: PositiveFloat = 3.0
    """Length of one step of the search, in the unit of `epsilon`; far above it, most entries reach their bound."""
    steps: PositiveInt = 1
    """Steps of the search."""
    noise: PositiveFloat = 0.03
    """Where the search starts: sqrt(D) times the standard deviation of an entry, in units of the mean embedding norm;
    brought back into the radius."""
    norm: Literal["inf", 2] = "inf"
    """What `epsilon` bounds: `inf`, every entry; `2`, an example's L2 norm."""
    bregman: NonNegativeFloat = 1.0
    """What the distance to the averaged model is multiplied with, beside `weight`; 0: no average is kept."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Share of the average that stays at each optimizer step; 0: the distance to the weights before the last step."""

    def __post_init__(self) -> None:
        self._average = WeightAverage()

    @property
    def backwards(self) -> float:  # type: ignore[override]  # a constant of the class in most components
        """The perturbed pass, the inner ones and the average's, in forward and backward passes."""
        return 1.0 + inner_passes(self.steps) + (FORWARD / STEP if self.bregman else 0.0)

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Inner gradients are not scaled, so that fp16 would flush them to zero."""
        return unscaled_inner_gradients(self, setting)

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """Smoothness, and the distance to the averaged model, as means over scored positions."""
        log_p, unit = step.log_probabilities(outputs)
        found = symmetric_kl(log_p, predictions(step, self._worst(step, log_p.detach()))).mean()
        if self.bregman and step.model.training and not self._average:  # the first step: the average is the model
            self._average.begin(step)
        elif self.bregman and self._average:
            with torch.no_grad():
                log_average, _ = step.log_probabilities(step.forward(weights=self._average.weights))
            found = found + self.bregman * symmetric_kl(log_p, log_average).mean()
        return Term(found, per=unit)

    def _worst(self, step: TrainingStep, log_p: Tensor) -> Tensor:
        """[B, T, D]: where the search ends."""
        mask = step.real_tokens(batch=step.current)
        entry = step.unit_length / step.zeros().shape[-1] ** 0.5
        delta = self._projected(step, self.noise * entry * step.noise("normal", mask), mask, entry)
        for _ in range(self.steps):
            direction = step.unit(divergence_gradient(step, delta, log_p, symmetric_kl), mask)
            direction = entry * by_largest(direction) if self.norm == "inf" else direction
            delta = self._projected(step, delta + self.alpha * direction, mask, entry)
        return delta

    def _projected(self, step: TrainingStep, delta: Tensor, mask: Tensor, entry: float) -> Tensor:
        if self.norm == "inf":
            return boxed(delta, self.epsilon * entry)
        return step.project(delta, self.epsilon, mask)

    def after_step(self, step: TrainingStep) -> None:
        """Take up the weights as the optimizer left them."""
        self._average.follow(step, self.momentum)

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state)
