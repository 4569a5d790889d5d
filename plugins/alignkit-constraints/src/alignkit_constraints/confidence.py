"""Less confident predictions: their entropy, and how much of the largest possible one it lacks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, InstanceOf, NonNegativeFloat
from torch import Tensor

from alignkit.components import Constraint, Term, Weight

if TYPE_CHECKING:
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep

ONE_OF_LABELS = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
"""Heads with an output for each label of the task."""


def missing_entropy(log_p: Tensor, threshold: float = 1.0) -> Tensor:
    """max(0, threshold log n - H(p)), with H(p) = -sum_v p(v) log p(v) and n the number of v that are possible.

    At threshold 1 it is log n - H(p) = KL(p || uniform). Where there are dimensions between the first and the last
    (several independent labels, a span's two ends), they add up, as the entropies of independent variables do.

    Args:
        log_p: [N, ..., V] log-probabilities, normalised over V. What is masked out (a choice that pads a row, a
            position without a token) lies at the smallest number of its type, or at -inf, and is not possible.
        threshold: a share of the largest entropy log n; predictions whose entropy is above it are left alone.

    Returns:
        [N], in nats.
    """
    possible = log_p > torch.finfo(log_p.dtype).min / 2
    entropy = -(log_p.exp() * log_p.masked_fill(~possible, 0.0)).sum(-1, keepdim=True)
    largest = possible.sum(-1, keepdim=True).to(log_p.dtype).log()
    return (threshold * largest - entropy).clamp_min(0.0).flatten(1).sum(1)


class Confidence(Constraint):
    """Keeps predictions from growing overconfident: penalises low entropy.

    The confidence penalty of Pereyra et al. 2017 (arXiv:1701.06548): `weight` is the paper's beta in
    loss - beta H(p), H the entropy of what the model predicts at a scored position, over the whole vocabulary (or
    label set). The penalty is not -H(p) but log n - H(p), n the number of outcomes that are possible there: the same
    gradient, yet a number that is 0 for a uniform prediction and never negative, so that `budget` can hold it at a
    limit. Choices that pad a row, and positions of a span head without a token, are no outcomes.

    With `threshold` below 1 only predictions whose entropy is below that share of log n are penalised: the paper's
    hinge, max(0, Gamma - H(p)), with Gamma in units that do not depend on how many outcomes there are. The paper
    tunes beta for each task.

    The mean is over tokens where the task predicts per token, over examples elsewhere; several labels of one example
    add up. In an adversary's passes the perturbed predictions are penalised.

    Cost: no pass of its own; one tensor [N, V].

    Relations: label smoothing (`training: {label_smoothing_factor: 0.1}`) is the other direction, KL(uniform || p),
    and applies to tokens and single labels alone. `kl-reference` keeps a model as confident as it was.

    Example:
        >>> log_p = torch.tensor([[0.5, 0.5], [0.99, 0.01]]).log()
        >>> [round(nats, 3) for nats in missing_entropy(log_p).tolist()]
        [0.0, 0.637]
        >>> Confidence(threshold=0.5).weight
        0.1
    """

    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the largest possible entropy below which a prediction is penalised; 1: every prediction."""
    weight: NonNegativeFloat | InstanceOf[Weight] = 0.1
    """The paper's beta: what the missing entropy, in nats per token or example, is multiplied with; a number or a
    weight such as `{use: budget, limit: 0.5}`."""

    def ceiling(self, setting: Setting) -> float | None:
        """threshold log n, where what is predicted is one of n labels, or several of them, of which each has two."""
        task, labels = setting.task, len(getattr(setting.task, "labels", ()))
        if task.auto_class not in ONE_OF_LABELS or not setting.examples or not labels:  # the data names the labels
            return None
        return self.threshold * (labels * math.log(2) if getattr(task, "several", False) else math.log(labels))

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean over scored positions of the entropy that a prediction lacks."""
        log_p, unit = step.log_probabilities(outputs)
        return Term(missing_entropy(log_p, self.threshold).mean(), per=unit)
