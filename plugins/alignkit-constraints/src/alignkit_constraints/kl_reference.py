"""Nearness to a frozen reference model, measured exactly over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from alignkit.components import Batch, Constraint, Task, Term, Weight
from alignkit.divergence import kl
from alignkit.errors import Mistake
from alignkit.tasks.padding import attended
from alignkit.tasks.stock import IGNORED

if TYPE_CHECKING:
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


ONE_DISTRIBUTION = tuple(
    f"AutoModelFor{head}" for head in ("CausalLM", "MaskedLM", "MultipleChoice", "Seq2SeqLM", "TokenClassification")
)
"""Heads that predict one thing at each scored position; others may predict several, whose divergences add up."""


def predicts_one(setting: Setting) -> bool:
    """One distribution is predicted at each scored position; False where it may be several."""
    task = setting.task
    one_label = bool(setting.examples) and getattr(task, "several", True) is False  # once the task has seen the data
    return task.shifts_labels or task.auto_class in ONE_DISTRIBUTION or one_label


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


def all_tokens(batch: Batch) -> Tensor:
    """Labels [B, T] that count every real token but the first of each text; -100 at that one and at padding.

    Args:
        batch: with `input_ids` [B, T], and in packed rows `position_ids`, which begin anew with each text.
    """
    ids, real = batch["input_ids"], attended(batch)
    follows = torch.zeros_like(real)
    follows[:, 1:] = real[:, 1:] & real[:, :-1]
    if (places := batch.get("position_ids")) is not None:
        follows[:, 1:] &= places[:, 1:] == places[:, :-1] + 1
    return torch.where(follows, ids, IGNORED)


class KLReference(Constraint):
    """Keeps the model's predictions near those of a frozen reference: the model as training found it.

    The exact divergence over the whole vocabulary (or label set) at every scored position, teacher-forced, in nats
    per token (per example where the task predicts once per example); not a sampled estimate. With `on: all`, of
    language models, at every token of the text instead: the prompt's, too, and those that no mask hides.

    `forward` is the distillation loss of Li & Hoiem 2016 (arXiv:1606.09282) at temperature 1, `reverse` what
    reinforcement learning from human feedback penalises (Ziegler et al. 2019, arXiv:1909.08593).

    The reference is the model with its adapter switched off, a frozen copy, or the model that `reference:` names;
    evaluation mode, no gradient. In an adversary's passes the model sees the perturbation and the reference does not.

    Raises:
        UsageError: `on: all` on a task whose model does not predict each token.

    Cost: one forward pass of the reference per step, however many passes the step has (once per row where its hidden
    states are cached); two [N, V] tensors, N the number of all tokens with `on: all`.

    Relations: `counterfactual` compares the model with itself on another input. With `weight: {use: budget, limit:
    0.05}` the divergence is held at a limit instead of being traded off.

    Example:
        >>> KLReference(weight=0.1, direction="reverse").direction
        'reverse'
    """

    direction: Literal["forward", "reverse", "js"] = "forward"
    """`forward`: KL(p_ref || p_theta), the model must cover all that the reference considers likely; `reverse`:
    KL(p_theta || p_ref), the model may not do what the reference considers unlikely; `js`: both, bounded by ln 2."""

    on: Literal["scored", "all"] = "scored"
    """`scored`: where the task scores predictions (completions, labels); `all`, of language models: every real token
    but the first of a text."""

    reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._relabelled: tuple[Batch, Batch] | None = None

    @property
    def _own_name(self) -> str:
        return getattr(self, "name", "kl-reference")

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """`on: all` needs a prediction at every token."""
        if self.on == "all" and not _predicts_tokens(setting.task):
            found = f"`on: all`, where task {getattr(setting.task, 'name', '')} does not predict each token of a text"
            yield Mistake(f"constraint {self._own_name}", found, "a task of language models", "set `on: scored`")

    def notes(self, setting: Setting) -> Iterable[str]:
        """What dropout does to a limit."""
        bound = self.weight.bound if isinstance(self.weight, Weight) else None
        if bound is not None and setting.dropout:
            yield (
                f"{self._own_name}: dropout alone makes this penalty more than 0, before anything is learnt; a limit "
                f"of {bound:g} can be held only if that is less (the first `penalty/{self._own_name}` in the log)"
            )

    def anchored(self, setting: Setting) -> bool:
        """Unless `reference:` names another model, training begins at the reference."""
        return setting.reference is None

    def ceiling(self, setting: Setting) -> float | None:
        """ln 2 for `js`, where there is one distribution per token or example."""
        return math.log(2) if self.direction == "js" and predicts_one(setting) else None

    def counts(self, batch: Batch) -> dict[str, int]:
        """With `on: all`, the tokens that are predicted."""
        return {} if self.on == "scored" else {self._own_name: int((all_tokens(batch) != IGNORED).sum())}

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean divergence over scored positions, or over all."""
        batch = step.current if self.on == "scored" else self._with_all_tokens(step.current)
        log_theta, unit = step.log_probabilities(outputs, batch)
        gaps = reference_divergence(log_theta, step.reference_log_probabilities(batch), self.direction)
        return Term(gaps.mean(), per=unit if self.on == "scored" else self._own_name)

    def _with_all_tokens(self, batch: Batch) -> Batch:
        """One for each batch, whatever the number of passes over it: the reference is asked once per batch."""
        if self._relabelled is None or self._relabelled[0] is not batch:
            self._relabelled = (batch, {**batch, "labels": all_tokens(batch)})
        return self._relabelled[1]


def _predicts_tokens(task: Task) -> bool:
    """A language model whose logits are as they are scored: over the vocabulary, one distribution per token."""
    kind = task.shifts_labels or task.auto_class == "AutoModelForMaskedLM"
    return kind and type(task).log_probabilities is Task.log_probabilities
