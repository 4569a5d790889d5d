"""How far two predictions lie apart: what several plugins measure with."""

from __future__ import annotations

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
