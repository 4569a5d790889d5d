"""Virtual adversarial training: predictions that stay as they are along their worst direction, without labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import InstanceOf, NonNegativeFloat, PositiveFloat, PositiveInt

from alignkit.components import Adversary, Term, Weight
from alignkit.divergence import kl
from alignkit_adversaries.divergence import divergence_gradient, predictions
from alignkit_adversaries.inner import inner_passes, unscaled_inner_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.errors import Mistake
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


def virtual_direction(step: TrainingStep, target: Tensor, xi: float, iterations: int) -> Tensor:
    """The direction along which predictions change most: power iteration on the curvature of the KL divergence.

    Starts at a random direction d per example and repeats d <- unit(grad_d KL(target || p(x + xi d))), a gradient
    that is xi H d for small xi, with H the Hessian of the divergence at 0.

    Args:
        step: the step whose pass is being evaluated.
        target: [N, ..., V] log-probabilities of that pass, held fixed.
        xi: length of the finite difference, in mean embedding norms.
        iterations: K.

    Returns:
        [B, T, D], per example one mean embedding norm long; 0 where the predictions do not change.
    """
    mask = step.real_tokens(batch=step.current)
    direction = step.unit(step.noise("normal", mask), mask)
    for _ in range(iterations):
        direction = step.unit(divergence_gradient(step, xi * direction, target, kl), mask)
    return direction


class VAT(Adversary):
    """Keeps predictions as they are along the direction in which they change most; asks for no labels.

    Miyato et al. 2018, arXiv:1704.03976, sections 3.2 and 3.3, on embeddings as Miyato et al. 2017, arXiv:1605.07725,
    eq. 7-8, have it: weight * KL(p(x) || p(x + r)) with r = epsilon d, and d the direction that K power iterations
    find from a random start. p(x) is held fixed, as in both papers: the model learns to predict at x + r what it
    predicts at x, and not the reverse. The penalty is the mean over scored positions, in nats per token (per example
    where the task predicts once per example). Which positions are scored is all that it takes from labels.

    Lengths are L2 norms per example over real tokens, in mean embedding norms of the model. The text paper's epsilon
    of 5 on embeddings of unit variance is 0.31 of their norm in 256 dimensions: the default. The image paper's xi of
    1e-6 needs float64. On MiniLM fine-tuned for NER, d's cosine with the exact direction is in float32 (median, worst
    of 16 rows) -.18, -1.0 at xi = 1e-6; .999, .41 at 1e-4; 1.000, .998 at 0.1; .958, .74 at 1. Under bf16 autocast it
    is -.02, -.89 at 1e-3; .96, .49 at 0.1; .99, .63 at 0.3. The default is 0.1, as in the text paper's released code.

    Cost: one forward and backward pass, and K inner ones of about .73 each, which make no gradients of parameters: 2.4
    to 2.6 times a plain step at K = 1 (MiniLM, CPU). Validation measures the penalty, too, at the same cost. Memory:
    two [B, T, D], one more pass's activations.

    Relations: `fgm` needs labels and trains on them at the perturbed point; `smart` bounds every entry and lets the
    clean prediction move as well; `r3f` replaces the search by noise, for less than half the price. Rows without labels
    are not used: every row of the data has labels here.

    Example:
        >>> VAT(epsilon=0.3, weight=0.5).passes
        1
    """

    weight: NonNegativeFloat | InstanceOf[Weight] = 1.0
    """What the penalty is multiplied with: a number, or a weight such as `{use: budget, limit: 0.05}`."""
    epsilon: PositiveFloat = 0.3
    """L2 radius of the perturbation of one example, in units of the model's mean embedding norm."""
    xi: PositiveFloat = 0.1
    """Length of the finite difference, in units of the model's mean embedding norm."""
    iterations: PositiveInt = 1
    """K, power iterations; each brings the direction nearer to the one of greatest curvature."""

    @property
    def backwards(self) -> float:  # type: ignore[override]  # a constant of the class in most components
        """The perturbed pass and the inner ones, in forward and backward passes."""
        return 1.0 + inner_passes(self.iterations)

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Inner gradients are not scaled, so that fp16 would flush them to zero."""
        return unscaled_inner_gradients(self, setting)

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean divergence between the pass's predictions and those at its worst neighbour."""
        log_p, unit = step.log_probabilities(outputs)
        target = log_p.detach()
        direction = virtual_direction(step, target, self.xi, self.iterations)
        return Term(kl(target, predictions(step, self.epsilon * direction)).mean(), per=unit)
