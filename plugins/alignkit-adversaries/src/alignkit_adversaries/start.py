"""Where an ascent begins: a random point inside the ball."""

from __future__ import annotations

from torch import Tensor


def uniform_start(noise: Tensor, mask: Tensor, length: float) -> Tensor:
    """A random perturbation of each example, of an L2 norm of about length / sqrt(3) and never above `length`.

    Zhu et al. 2020, arXiv:1909.11764, algorithm 1: delta0 = U(-1, 1) * length / sqrt(L D).

    Args:
        noise: [B, T, D] uniform on [-1, 1) where `mask` is 1, and 0 elsewhere.
        mask: [B, T, 1]: 1 at the L tokens of an example that are perturbed.
        length: of an example's perturbation, in the embeddings' own unit.

    Returns:
        [B, T, D].
    """
    entries = mask.sum((1, 2), keepdim=True).clamp_min(1.0) * noise.shape[-1]
    return noise * (length / entries.sqrt())
