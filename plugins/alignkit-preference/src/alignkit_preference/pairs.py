"""What objectives on pairs ask of the task, and what several of them add to their loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor

if TYPE_CHECKING:
    from alignkit.step import TrainingStep
    from alignkit_preference.preference import Answers, Preference


def pair_task(step: TrainingStep) -> Preference:
    """The step's task, which is one of pairs: the plan refuses all others."""
    return cast("Preference", step.context.task)


def cloning_losses(chosen: Tensor, pairs: int, tokens: int) -> Tensor:
    """The cross-entropy of the chosen answers as a mean per token, shared out over pairs.

    A term is a mean per pair. These losses are of such a size that their mean over all pairs of an accumulation window
    is the window's mean per token, as the supervised objective's is, however pairs are spread over micro-batches.

    Args:
        chosen: [B], sums of the chosen answers' log-probabilities.
        pairs: how many the window has, all processes together.
        tokens: how many tokens the window's chosen answers have.

    Returns:
        [B], in nats per token.
    """
    return -chosen * (pairs / max(tokens, 1))


def cloning(step: TrainingStep, answers: Answers) -> Tensor:
    """[B]: `cloning_losses` of the step's accumulation window."""
    return cloning_losses(answers.chosen, step.window["example"], step.window["chosen"])
