"""Nearness to a frozen reference model, measured exactly over the whole vocabulary."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from alignkit.components import Constraint, Term
from alignkit.divergence import kl

if TYPE_CHECKING:
    from alignkit.step import TrainingStep


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """JS(p, q) = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: symmetric, at most ln 2 per distribution.

    Args:
        log_p: [N, ..., V] log-probabilities, normalised over V.
        log_q: [N, ..., V].

    Returns:
        [N], in nats.
    """
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (kl(log_p, log_m) + kl(log_q, log_m)) / 2


def reference_divergence(log_theta: Tensor, log_reference: Tensor, direction: str) -> Tensor:
    """How far a model's predictions are from its reference's.

    Args:
        log_theta: [N, ..., V] log-probabilities of the model in training.
        log_reference: [N, ..., V] log-probabilities of the reference.
        direction: `forward` is KL(p_ref || p_theta), `reverse` is KL(p_theta || p_ref), `js` Jensen-Shannon.

    Returns:
        [N], in nats.
    """
    if direction == "forward":
        return kl(log_reference, log_theta)
    if direction == "reverse":
        return kl(log_theta, log_reference)
    return jensen_shannon(log_theta, log_reference)


class KLReference(Constraint):
    """Keeps the model's predictions near those of a frozen reference: the model as training found it.

    The exact divergence over the whole vocabulary (or label set) at every scored position, teacher-forced, in nats
    per token (per example where the task predicts once per example); not a sampled estimate. `forward` is the
    distillation loss of Li & Hoiem 2016 (arXiv:1606.09282) at temperature 1, `reverse` what reinforcement learning
    from human feedback penalises (Ziegler et al. 2019, arXiv:1909.08593).

    The reference is the model with its adapter switched off, a frozen copy, or the model that `reference:` names;
    evaluation mode, no gradient. In an adversary's passes the model sees the perturbation and the reference does not.

    Cost: one forward pass of the reference per step, however many passes the step has; two [N, V] tensors.

    Relations: `counterfactual` compares the model with itself on another input. With `weight: {use: budget, limit:
    0.05}` the divergence is held at a limit instead of being traded off.

    Example:
        >>> KLReference(weight=0.1, direction="reverse").direction
        'reverse'
    """

    direction: Literal["forward", "reverse", "js"] = "forward"
    """`forward`: KL(p_ref || p_theta), the model must cover all that the reference considers likely; `reverse`:
    KL(p_theta || p_ref), the model may not do what the reference considers unlikely; `js`: both, bounded by ln 2."""

    reference: ClassVar[bool] = True

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean divergence over scored positions."""
        log_theta, unit = step.log_probabilities(outputs)
        log_reference, _ = step.log_probabilities(step.reference_outputs())
        return Term(reference_divergence(log_theta, log_reference, self.direction).mean(), per=unit)
