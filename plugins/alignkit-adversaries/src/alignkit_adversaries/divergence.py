"""Predictions under a perturbation, and the gradient of a divergence with respect to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from alignkit.step import TrainingStep


def predictions(step: TrainingStep, delta: Tensor) -> Tensor:
    """[N, ..., V]: log-probabilities of the pass that is being evaluated, moved by `delta` [B, T, D]."""
    return step.log_probabilities(step.forward(delta))[0]


def divergence_gradient(
    step: TrainingStep, delta: Tensor, target: Tensor, divergence: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """[B, T, D]: the gradient of divergence(target, predictions at delta), summed over predictions, for delta.

    Summed and not averaged, so that a row's gradient does not depend on how many predictions the other rows have.
    Works in evaluation under `no_grad`, too.

    Args:
        delta: [B, T, D], where the gradient is taken.
        target: [N, ..., V] log-probabilities, held fixed.
        divergence: `kl` or `symmetric_kl`.
    """
    with torch.enable_grad():
        delta = delta.detach().requires_grad_()
        return step.gradient(delta, divergence(target.detach(), predictions(step, delta)).sum())
