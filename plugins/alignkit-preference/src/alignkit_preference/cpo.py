"""Contrastive Preference Optimization: DPO without a reference, held by the chosen answers' cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignkit.components import Objective, Term
from alignkit_preference.pairs import cloning, pair_task

if TYPE_CHECKING:
    from alignkit.step import TrainingStep


def cpo_losses(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta (log pi(chosen) - log pi(rejected))), its labels smoothed.

    Args:
        chosen: [B], sums of the chosen answers' log-probabilities.
        rejected: [B], of the rejected ones.
        beta: per nat.
        label_smoothing: the probability that a pair is the wrong way round.

    Returns:
        [B].
    """
    scaled = beta * (chosen - rejected)
    return -(1 - label_smoothing) * logsigmoid(scaled) - label_smoothing * logsigmoid(-scaled)


class CPO(Objective):
    """Prefers chosen answers to rejected ones without a reference, and learns the chosen ones as text to imitate.

    Xu et al. 2024, arXiv:2401.08417: the preference loss plus the chosen answers' cross-entropy. The paper sums
    the latter over an answer; here, as in TRL 1.16, it is a mean per token over all chosen answers of the window, so
    that long answers do not drown the preference.

    Cost: nothing beside the two answers' log-probabilities.

    Relations: `dpo` with `reference_free` and `cloning` is this with any of DPO's losses; `orpo` weighs answers by
    their odds per token; `simpo` by log-probabilities per token, with a margin.

    Example:
        >>> CPO(cloning=0.5).reference
        False
    """

    beta: PositiveFloat = 0.1
    """What differences of log-probabilities are multiplied with, per nat."""
    cloning: NonNegativeFloat = 1.0
    """Weight of the chosen answers' cross-entropy, in nats per token."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """The share of pairs that may be the wrong way round."""

    tasks: ClassVar[tuple[str, ...]] = ("preference",)

    def loss(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean over pairs."""
        answers = pair_task(step).answers(step, outputs)
        losses = cpo_losses(answers.chosen, answers.rejected, self.beta, self.label_smoothing)
        return Term((losses + self.cloning * cloning(step, answers)).mean(), "example")
