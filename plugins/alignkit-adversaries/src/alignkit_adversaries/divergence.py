"""Divergences between two predictions, and the gradient of one with respect to a perturbation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from alignkit.step import TrainingStep


def symmetric_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) = sum_v (p(v) - q(v)) (log p(v) - log q(v)), in nats; differentiable in both arguments.

    The sum of both directions, as SMART and R3F define it, not their mean. Written as one sum of terms that are never
    negative: each KL alone is of first order in p - q term by term and of second order in sum, so that between
    predictions 1e-4 apart its rounding error is as large as its value.

    Args:
        log_p: [N, ..., V] log-probabilities, normalised over V.
        log_q: [N, ..., V].

    Returns:
        [N].
    """
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).flatten(1).sum(1)


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
