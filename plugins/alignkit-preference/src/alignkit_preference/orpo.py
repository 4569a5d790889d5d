"""Odds-Ratio Preference Optimization: supervised learning and preference in one, without a reference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignkit.components import Objective, Term
from alignkit_preference.pairs import cloning, pair_task

if TYPE_CHECKING:
    from alignkit.step import TrainingStep


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, exact at both ends; finite, and with a finite gradient, at 0, too.

    Args:
        x: of any shape.
    """
    x = x.clamp_max(-torch.finfo(x.dtype).eps)
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def orpo_losses(chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor) -> Tensor:
    """-log sigmoid(log (odds of chosen / odds of rejected)), where odds = p / (1 - p) and p is a mean per token.

    Args:
        chosen: [B], sums of the chosen answers' log-probabilities; p is the exponential of their mean per token.
        rejected: [B], of the rejected ones.
        chosen_tokens: [B], tokens of the chosen answers.
        rejected_tokens: [B].

    Returns:
        [B].
    """
    up, down = chosen / chosen_tokens.clamp_min(1), rejected / rejected_tokens.clamp_min(1)
    return -logsigmoid((up - down) - (log1mexp(up) - log1mexp(down)))


class ORPO(Objective):
    """Learns chosen answers as text to imitate, and their odds against the rejected ones: one stage, no reference.

    Hong et al. 2024, arXiv:2403.07691, eq. 6-7: the chosen answers' cross-entropy plus beta (the paper's lambda) times
    the loss of the log odds ratio. For a base model that has not seen the kind of answer yet, it takes the place of
    supervised learning followed by `dpo`.

    The cross-entropy is that of the answer alone, as the paper has it; its released code and TRL 1.16 count the prompt
    as well, which teaches a model to write prompts. It is a mean per token over all chosen answers of the window. All
    else is TRL's, to which the tests hold it.

    Cost: nothing beside the two answers' log-probabilities.

    Relations: `cpo` has log-probabilities in the place of odds per token; `dpo` and `kto` keep to a reference.

    Example:
        >>> ORPO(beta=0.25).reference
        False
    """

    beta: NonNegativeFloat = 0.1
    """Weight of the odds-ratio loss beside the cross-entropy: lambda in the paper."""

    tasks: ClassVar[tuple[str, ...]] = ("preference",)

    def loss(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean over pairs."""
        a = pair_task(step).answers(step, outputs)
        odds = orpo_losses(a.chosen, a.rejected, a.chosen_tokens, a.rejected_tokens)
        return Term((cloning(step, a) + self.beta * odds).mean(), "example")
