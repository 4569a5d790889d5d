"""R3F: predictions that noise on the embeddings does not change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import InstanceOf, NonNegativeFloat, PositiveFloat

from alignkit.components import Adversary, Term, Weight
from alignkit.divergence import symmetric_kl
from alignkit_adversaries.divergence import predictions

if TYPE_CHECKING:
    from alignkit.step import TrainingStep


class R3F(Adversary):
    """Keeps predictions as they are under random noise on the embeddings: a regulariser without a search.

    Aghajanyan et al. 2020, arXiv:2008.03156: weight * (KL(p || q) + KL(q || p)), with p the predictions at e and q
    those at e + z, z uniform on [-s, s] or normal with standard deviation s in every entry. Gradients flow through
    both predictions. The penalty is the mean over scored positions, in nats per token (per example where the task
    predicts once per example). R4F's spectral normalisation of the head is not here.

    s = epsilon / sqrt(D) mean embedding norms, so that one epsilon suits models of different widths and scales: a
    token's noise is epsilon long at most, usually epsilon / sqrt(3) (uniform), or about epsilon (normal). The released
    code's s is 1e-5, an epsilon of 1.8e-4 on MiniLM (D = 384, mean norm 1.07): there, fine-tuned for NER, the
    divergence is 2.5e-9 nats, whose gradient no training notices. At the default it is 5e-3. The released code's
    weight is 1 by default, as here, and 0.7 in its example for RTE.

    Differs from the released code (fairseq): real tokens alone get noise, there padding and special tokens, too; the
    noised pass gives the embedding table a gradient, there not where a sentence is classified.

    Cost: one forward and backward pass, 1.9 times a plain step (MiniLM, CPU); no search. Validation measures the
    penalty, too. Memory: one [B, T, D], one more pass's activations.

    Relations: `smart` and `vat` look for the worst direction instead of a random one, which at the same length changes
    predictions two to three orders of magnitude more, and cost a pass more.

    Example:
        >>> R3F(epsilon=0.5, noise="normal").backwards
        1.0
    """

    weight: NonNegativeFloat | InstanceOf[Weight] = 1.0
    """What the penalty is multiplied with: a number, or a weight such as `{use: budget, limit: 0.05}`."""
    epsilon: PositiveFloat = 0.3
    """sqrt(D) times the bound (uniform) or the standard deviation (normal) of an entry of the noise, in units of the
    model's mean embedding norm: the length of a token's noise, at most or on average."""
    noise: Literal["uniform", "normal"] = "uniform"
    """`uniform` on [-s, s], or `normal` with standard deviation s."""

    backwards: ClassVar[float] = 1.0

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean divergence between the pass's predictions and those under noise."""
        log_p, unit = step.log_probabilities(outputs)
        noise = step.noise(self.noise, step.real_tokens(batch=step.current))
        scale = self.epsilon * step.unit_length / noise.shape[-1] ** 0.5
        return Term(symmetric_kl(log_p, predictions(step, scale * noise)).mean(), per=unit)
