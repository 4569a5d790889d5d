"""Adversarial weight perturbation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat

from alignkit.components import Adversary
from alignkit.errors import Mistake

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


def weight_perturbation(weight: Tensor, gradient: Tensor, alpha: float, epsilon: float) -> Tensor:
    """alpha |w| g / |g| with each entry clamped to +- epsilon |w_ij|; norms are of the whole tensor.

    Args:
        weight: a tensor of any shape.
        gradient: of the same shape; rescaled before its norm is taken, so that 1e-25 has a direction, too.
        alpha: length of the perturbation before it is clamped, relative to that of the weight.
        epsilon: bound on each entry, relative to that of the weight.

    Returns:
        A tensor of that shape; 0 where the gradient is 0 throughout.
    """
    weight, gradient = weight.detach().float(), gradient.float()
    largest = torch.linalg.vector_norm(gradient, float("inf"))
    change = gradient / largest.clamp_min(torch.finfo(torch.float32).tiny)
    norm = torch.linalg.vector_norm(change).clamp_min(0.5)  # at least 1, or 0
    change *= alpha * torch.linalg.vector_norm(weight) / norm
    bound = weight.abs().mul_(epsilon)
    return change.clamp_(-bound, bound)


class AWP(Adversary):
    """Trains at weights that were moved a little where the loss is highest, so that it flattens around them.

    Wu et al. 2020, arXiv:2004.05884, with one step of weight perturbation: for each trained weight matrix, v = alpha
    |w| g / |g|, where g is the loss's gradient at w; the gradient that the optimizer sees is the one at w + v, and w is
    put back before the optimizer's step. Biases and norms (tensors of one dimension) stay as they are, as in the
    released code.

    Conventions differ between code bases. The paper trains on the loss at w + v alone, and so does this; some code for
    text adds the clean loss. The code in common use for text clamps v to +- epsilon |w| per entry, which the paper does
    not: done here, too. That code takes alpha 1 with an epsilon of 0.0001 to 0.2, so that nearly every entry ends at
    its bound; the released code takes alpha 0.005 for TRADES (0.01 without), beginning after 10 of 200 epochs (at once
    without). With 0.005 and no bound to speak of, MiniLM with a fresh head learnt nothing; alpha and epsilon here raise
    the loss of a trained tagger by a third. From the first step even they are too much for a fresh head (MiniLM on
    SST-2 predicted one class in two seeds of three), hence the late `start`; a model that works already may take 0. The
    paper takes g on adversarial inputs; here a run has one adversary, so g is the gradient on the inputs as they are.

    `train_loss` is the clean loss. An update is skipped, and the rows are counted, where g is not finite.

    Cost: from `start` on, one forward and backward pass more than a plain step and some ten passes through the memory
    of the matrices: 2 times a plain step where batches are large, 2.6 on MiniLM with 16 rows of 32 tokens. Memory: the
    gradients, the changes and a copy of the matrices that are trained; next to nothing under LoRA. Weights kept in bf16
    hardly represent changes of 0.5 percent: train with `bf16: true`, which keeps them in fp32.

    Relations: sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412) with a length relative to each
    tensor's instead of one for all. `fgm` and `pgd` perturb inputs. The direction comes from the whole micro-batch, so
    it couples rows.

    Example:
        >>> AWP(start=0.5).couples_rows
        True
    """

    alpha: PositiveFloat = 0.001
    """Length of a tensor's perturbation before it is clamped, as a share of the tensor's L2 norm."""
    epsilon: PositiveFloat = 0.01
    """Bound on each entry's perturbation, as a share of the entry."""
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of the training, in optimizer steps, that is plain before it begins."""

    couples_rows: ClassVar[bool] = True
    perturbs: ClassVar[bool] = False

    @property
    def backwards(self) -> float:  # type: ignore[override]  # a constant of the class in most adversaries
        """The pass that gives the direction, in the steps from `start` on."""
        return 1.0 - self.start

    @property
    def forwards(self) -> float:  # type: ignore[override]
        """What the passes through the matrices' memory take, in forward passes, in the steps from `start` on."""
        return 1.0 - self.start

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Its gradient is taken beside the training's own, which fp16's scaling and reentrant checkpointing forbid.

        A training that ends before `start` is refused, too.
        """
        where = f"adversary {self.name}"
        if setting.steps is not None and (latest := (setting.steps - 1) / setting.steps) < self.start:
            found = f"it begins after {self.start:g} of the training, when none of its {setting.steps} steps is left"
            expected = f"`start` at most {math.floor(1000 * latest) / 1000:g}"
            yield Mistake(where, found, expected, "lower `start`, or raise `training.max_steps`")
        if setting.precision == "fp16":
            found = "the gradient that it perturbs weights along is not scaled, and vanishes in fp16"
            yield Mistake(where, found, "bf16 or fp32", "set `bf16: true`")
        if setting.reentrant_checkpointing:
            found = "the gradient that it perturbs weights along does not pass reentrant gradient checkpointing"
            mend = "take `use_reentrant: true` out of the checkpointing settings"
            yield Mistake(where, found, "use_reentrant: false", mend)

    def attack(self, step: TrainingStep) -> Iterator[Tensor]:
        """The loss at the perturbed weights; before `start` the plain one."""
        if step.progress < self.start:
            yield step.loss()
            return
        with step.shifted(self._changes(step)):
            yield step.loss()

    def _changes(self, step: TrainingStep) -> dict[str, Tensor]:
        """The perturbation by parameter name; nothing moves where any gradient is not finite."""
        weights = dict(step.unwrapped.named_parameters())
        gradients = {name: g for name, g in step.parameter_gradient().items() if g.ndim >= 2}
        largest = [torch.linalg.vector_norm(g, float("inf")) for g in gradients.values()]
        if largest and not torch.stack(largest).isfinite().all():
            step.nonfinite_gradients = step.nonfinite_gradients + len(step.rows or step.mask)
            return {}
        return {n: weight_perturbation(weights[n], g, self.alpha, self.epsilon) for n, g in gradients.items()}
