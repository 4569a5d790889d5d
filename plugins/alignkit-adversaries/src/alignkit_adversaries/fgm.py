"""The Fast Gradient Method on embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat

from alignkit.components import Adversary

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.step import TrainingStep


class FGM(Adversary):
    """Trains on each example and on the worst nearby one: a single gradient step away on the embeddings.

    Miyato et al. 2017, arXiv:1605.07725, eq. 5-6: the model trains on L(e) + L(e + delta) with
    delta = epsilon g / |g|, where e [B, T, D] is what the input-embedding layer gives, g [B, T, D] is dL/de of the
    first pass and |g| its L2 norm **per example** over real tokens (no padding, no special tokens).

    Differs from the snippet in common use, which shifts the embedding *weight* by the batch's gradient: there every
    occurrence of a token shares one shift, epsilon depends on the batch size, tied LM heads are attacked too, and
    under LoRA nothing happens at all. The paper normalises the embeddings instead of scaling epsilon; here the unit of
    length is the model's mean embedding norm, so that one epsilon suits models of different scales.

    The default is a tenth of what is usually written. In that snippet a radius of 1 is shared by all examples of a
    batch, and the paper's 5 is spread over hundreds of normalised words. Per example, 1.0 (on SST-2 also 0.3) kept
    MiniLM with a fresh head from learning at all; 0.1 raises the loss of a trained tagger by a half.

    Cost: two forward and backward passes per step (about 1.9 times a plain step); no memory beyond one [B, T, D].

    Relations: start with this one. `pgd` searches further, for .73 of a pass per step; `freelb` trains on every step of
    its search, at as many passes; `free-at` spreads the search over optimizer steps and costs no pass more; `fgsm`
    bounds each token instead of the example; `vat` needs no labels; `awp` moves the weights.

    Example:
        >>> FGM(epsilon=0.1).passes
        2
    """

    epsilon: PositiveFloat = 0.1
    """L2 radius of the perturbation of one example, in units of the model's mean embedding norm."""

    passes: ClassVar[int] = 2

    def attack(self, step: TrainingStep) -> Iterator[Tensor]:
        """The clean loss, then the loss at `epsilon` along its gradient."""
        delta = step.zeros()
        yield step.loss(delta)  # the host runs backward before it asks for the next
        assert delta.grad is not None, "the host did not run backward on the first loss"
        yield step.loss(self.epsilon * step.unit(delta.grad))
