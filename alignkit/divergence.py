"""How far two predictions lie apart: what several plugins measure with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum_v p(v) (log p(v) - log q(v)), in nats; differentiable in both arguments.

    Where there are dimensions between the first and the last (several independent labels, a span's two ends), their
    divergences add up, as those of independent variables do.

    Args:
        log_p: [N, ..., V] log-probabilities, normalised over V.
        log_q: [N, ..., V].

    Returns:
        [N].
    """
    return (log_p.exp() * (log_p - log_q)).flatten(1).sum(1)


def symmetric_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) = sum_v (p(v) - q(v)) (log p(v) - log q(v)), in nats; differentiable in both arguments.

    The sum of both directions, not their mean. Written as one sum of terms that are never negative: each KL alone is of
    first order in p - q term by term and of second order in sum, so that between predictions 1e-4 apart its rounding
    error is as large as its value.

    Args:
        log_p: [N, ..., V] log-probabilities, normalised over V.
        log_q: [N, ..., V].

    Returns:
        [N].
    """
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).flatten(1).sum(1)


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
