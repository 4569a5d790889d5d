"""The Fast Gradient Sign Method on embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat

from alignkit.components import Adversary

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.step import TrainingStep


def signed(gradient: Tensor, length: float) -> Tensor:
    """length / sqrt(D) * sign(gradient): each token is moved by `length` where no entry of its gradient is 0.

    Args:
        gradient: [B, T, D]; an entry of 0 stays 0.
        length: L2 norm of a token's perturbation, in the embeddings' own unit.

    Returns:
        [B, T, D].
    """
    return gradient.sign() * (length / gradient.shape[-1] ** 0.5)


class FGSM(Adversary):
    """Trains on each example and on one all of whose tokens are moved equally far along the sign of their gradient.

    Goodfellow et al. 2015, arXiv:1412.6572, sections 4 and 6: the model trains on L(e) + L(e + delta) with delta = c
    sign(g), where e [B, T, D] is what the input-embedding layer gives and g [B, T, D] is dL/de of the first pass, on
    real tokens only.

    Differs from the paper in its unit and its weights. The paper's c bounds a pixel; here c = epsilon / sqrt(D) mean
    embedding norms, so that a *token's* L2 norm is epsilon whatever the width of the model. The paper trains on the
    mean of the two losses (its alpha of 0.5), this on their sum, as `fgm` does: a factor that Adam does not see. An
    entry whose gradient is exactly 0 is not moved; an example whose gradient is not finite is not moved either, and
    counted.

    Cost: two forward and backward passes per step (about 1.9 times a plain step); no memory beyond one [B, T, D].

    Relations: `fgm` bounds an example instead of each of its tokens, and spends most of it on the tokens that matter;
    the sign moves every token, also those to which the loss is nearly indifferent. An example of L tokens is moved by
    epsilon * sqrt(L) in all: take a smaller epsilon than for `fgm`.

    Example:
        >>> FGSM(epsilon=0.02).passes
        2
    """

    epsilon: PositiveFloat = 0.02
    """L2 norm of the perturbation of one token, in units of the model's mean embedding norm."""

    passes: ClassVar[int] = 2

    def attack(self, step: TrainingStep) -> Iterator[Tensor]:
        """The clean loss, then the loss at the sign of its gradient."""
        delta = step.zeros()
        yield step.loss(delta)
        assert delta.grad is not None, "the host did not run backward on the first loss"
        yield step.loss(signed(step.unit(delta.grad), self.epsilon * step.unit_length))
