"""R-Drop: the same prediction whatever dropout drops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from alignkit.components import Constraint, Term
from alignkit.divergence import symmetric_kl

if TYPE_CHECKING:
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


def bidirectional_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2, the paper's eq. 2; differentiable in both.

    Args:
        log_p: [N, ..., V] log-probabilities under one set of dropout masks, normalised over V.
        log_q: [N, ..., V] under another.

    Returns:
        [N], in nats.
    """
    return symmetric_kl(log_p, log_q) / 2


class RDrop(Constraint):
    """Asks for the same predictions under two draws of dropout.

    Liang et al. 2021, arXiv:2106.14448: (KL(p || q) + KL(q || p)) / 2, p and q the predictions of one input in two
    passes with dropout masks of their own, the mean over scored positions, in nats per token (per example where the
    task predicts once per example). Both passes have a gradient.

    What is not the paper's: its loss is -log p(y) - log q(y) + alpha (KL + KL) / 2, with the cross-entropy of both
    passes. Here the objective, whichever it is, is taken on the first pass alone, as a constraint adds to an objective
    and does not change it. As the masks are drawn independently, both passes' cross-entropies have one expectation and
    so have their gradients: half of the paper's loss, and this one with weight = alpha / 2, have the same expected
    gradient; ours has the variance of one draw of masks in the objective where the paper's has that of two. Papers and
    code do not count alike: the paper's alpha is 0.1 to 1 for GLUE (a `weight` of .05 to .5) and 5 for translation
    (2.5); the released README takes the mean of the two cross-entropies, so that its alpha is our `weight`; the
    released GLUE code adds the KL of all rows of a batch to mean cross-entropies, ours is a mean of rows.

    Nothing is dropped in evaluation: there the penalty is 0 and costs nothing. A model without dropout has no
    penalty at all, but the second pass is paid for (the plan says so, where the model's config does): Llama and its
    kin come without; `peft: {method: lora, dropout: 0.1}` or `head: {attention_dropout: 0.1}` gives them some. The
    masks of the second pass come from the component's own generator; those of the first are what they would be without
    it.

    Cost: one forward and backward pass, 2.1 times a plain step (MiniLM, CPU); one more pass's activations. Nothing in
    evaluation.

    Relations: `bregman` compares with an average of past weights under the same masks, for a forward pass; the
    adversaries `r3f` and `vat` ask for the same under noise on the embeddings, which works without dropout.

    Example:
        >>> RDrop(weight=0.5).backwards
        1.0
    """

    backwards: ClassVar[float] = 1.0

    def notes(self, setting: Setting) -> Iterable[str]:
        """A model without dropout."""
        if setting.dropout is False:
            yield (
                f"{self.name} will be 0: the model has no dropout, so that its two passes are the same; set `head: "
                "{attention_dropout: 0.1}` (a field of its config) or `peft: {method: lora, dropout: 0.1}`, or take it "
                "out"
            )

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean divergence between the pass that is evaluated and one with other masks."""
        if not step.model.training:
            return Term(torch.zeros((), device=step.current["input_ids"].device), per="example")
        log_p, unit = step.log_probabilities(outputs)
        log_q, _ = step.log_probabilities(step.forward(fresh_dropout=True))
        return Term(bidirectional_kl(log_p, log_q).mean(), per=unit)
