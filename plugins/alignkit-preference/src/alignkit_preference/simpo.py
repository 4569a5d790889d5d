"""Simple Preference Optimization: log-probabilities per token in the place of a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignkit.components import Objective, Term
from alignkit_preference.pairs import cloning, pair_task

if TYPE_CHECKING:
    from alignkit.step import TrainingStep


def simpo_losses(
    chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, beta: float, gamma: float
) -> Tensor:
    """-log sigmoid(beta (mean log-probability of chosen - of rejected) - gamma).

    Args:
        chosen: [B], sums of the chosen answers' log-probabilities.
        rejected: [B], of the rejected ones.
        chosen_tokens: [B], tokens of the chosen answers.
        rejected_tokens: [B].
        beta: per nat and token.
        gamma: the margin aimed at.

    Returns:
        [B].
    """
    margins = chosen / chosen_tokens.clamp_min(1) - rejected / rejected_tokens.clamp_min(1)
    return -logsigmoid(beta * margins - gamma)


class SimPO(Objective):
    """Prefers chosen answers to rejected ones by their log-probability per token, with a margin and no reference.

    Meng et al. 2024, arXiv:2405.14734, eq. 6. The mean per token is what a model generates by, and keeps long answers
    from winning by their length.

    Defaults follow the authors' code: beta 2, and gamma a quarter of it. TRL's, for whose `beta` this is a field of
    `CPOConfig`, is .1, at which log-probabilities per token hardly weigh anything.

    Cost: nothing beside the two answers' log-probabilities.

    Relations: nothing holds the model near where it started: mind the learning rate (the paper's are 3e-7 to 1e-6 for
    all weights), or add `kl-reference` under a budget. `dpo` with `loss_type: sigmoid-norm` is this with a reference.

    Example:
        >>> SimPO(gamma=1.0).beta
        2.0
    """

    beta: PositiveFloat = 2.0
    """What differences of mean log-probabilities are multiplied with, per nat."""
    gamma: NonNegativeFloat = 0.5
    """By how much beta times the difference is to be above 0."""
    cloning: NonNegativeFloat = 0.0
    """Weight of the chosen answers' cross-entropy, in nats per token, that is added."""

    tasks: ClassVar[tuple[str, ...]] = ("preference",)

    def loss(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean over pairs."""
        a = pair_task(step).answers(step, outputs)
        losses = simpo_losses(a.chosen, a.rejected, a.chosen_tokens, a.rejected_tokens, self.beta, self.gamma)
        if self.cloning:
            losses = losses + self.cloning * cloning(step, a)
        return Term(losses.mean(), "example")
