"""Nearness to a frozen reference model, measured exactly over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from alignkit.components import Batch, Constraint, Task, Term, Weight
from alignkit.divergence import reference_divergence
from alignkit.errors import Mistake
from alignkit.tasks.padding import attended
from alignkit.tasks.stock import IGNORED
from alignkit_constraints.marks import nothing_marked, of_marked

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

    With `marked`, the mean is over the predictions of marked rows alone; the others may change as they like. A batch
    without one has no penalty, and the reference is not asked about it.

    Raises:
        UsageError: `on: all` on a task whose model does not predict each token; a column to go by that says yes
            nowhere.

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
    marked: str = ""
    """The column that says which rows it applies to (anything but empty, 0, false, no); empty: to all."""

    reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._relabelled: tuple[Batch, Batch] | None = None

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]  # a constant of the class in most components
        """The column that marks rows, where one is named."""
        return (self.marked,) if self.marked else ()

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """`on: all` needs a prediction at every token, `marked` a row that is."""
        yield from nothing_marked(self.marked, setting.examples, f"constraint {self.name}")
        if self.on == "all" and not _predicts_tokens(setting.task):
            found = f"`on: all`, where task {setting.task.name} does not predict each token of a text"
            yield Mistake(f"constraint {self.name}", found, "a task of language models", "set `on: scored`")

    def notes(self, setting: Setting) -> Iterable[str]:
        """What dropout does to a limit."""
        if isinstance(self.weight, Weight) and self.weight.bound is not None and setting.dropout:
            bound = f"{self.weight.bound_field} of {self.weight.bound:g}"
            yield (
                f"{self.name}: dropout alone makes this penalty more than 0, before anything is learnt; a {bound} can "
                f"be held only if that is less (the first `penalty/{self.name}` in the log)"
            )

    def anchored(self, setting: Setting) -> bool:
        """Unless `reference:` names another model, training begins at the reference."""
        return setting.reference is None

    def ceiling(self, setting: Setting) -> float | None:
        """ln 2 for `js`, where there is one distribution per token or example."""
        return math.log(2) if self.direction == "js" and predicts_one(setting) else None

    def counts(self, batch: Batch) -> dict[str, int]:
        """With `on: all`, the tokens that are predicted; with `marked`, the predictions of marked rows."""
        if self.on == "scored" and not self.marked:
            return {}
        labels = all_tokens(batch) if self.on == "all" else None
        number = int((labels != IGNORED).sum()) if labels is not None else _predictions(batch["counts"])
        if self.marked:
            values = (batch.get("columns") or {}).get(self.marked)
            relabelled = batch if labels is None else {**batch, "labels": labels}
            number = 0 if values is None else int(of_marked(relabelled, values, number).sum())
        return {self.name: number}

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean divergence over scored positions, or over all; of the rows that are marked."""
        neutral = Term(torch.zeros(()), per=self.name)  # over no predictions: not read
        if self.marked and not (self._any_marked(step) and _own_rows(step)):
            return neutral
        batch = step.current if self.on == "scored" else self._with_all_tokens(step.current)
        log_theta, unit = step.log_probabilities(outputs, batch)
        log_reference = step.reference_log_probabilities(batch)
        if self.marked:
            kept = of_marked(batch, step.column(self.marked), len(log_theta)).to(log_theta.device)
            log_theta, log_reference = log_theta[kept], log_reference[kept]
        gaps = reference_divergence(log_theta, log_reference, self.direction)
        return Term(gaps.mean(), per=self.name if self.marked or self.on == "all" else unit)

    def _any_marked(self, step: TrainingStep) -> bool:
        """There is something to compare; a validation split need not have the column."""
        if step.model.training:
            step.column(self.marked)
        return step.counts[self.name] > 0

    def _with_all_tokens(self, batch: Batch) -> Batch:
        """One for each batch, whatever the number of passes over it: the reference is asked once per batch."""
        if self._relabelled is None or self._relabelled[0] is not batch:
            self._relabelled = (batch, {**batch, "labels": all_tokens(batch)})
        return self._relabelled[1]


def _own_rows(step: TrainingStep) -> bool:
    """The pass is over the rows whose column is known, at most with other tokens in them."""
    return all(step.current.get(name) is step.batch.get(name) for name in ("labels", "start_positions"))


def _predictions(counts: Mapping[str, int]) -> int:
    """How many the task scores in a batch."""
    return counts.get("token", counts["example"])


def _predicts_tokens(task: Task) -> bool:
    """A language model whose logits are as they are scored: over the vocabulary, one distribution per token."""
    kind = task.shifts_labels or task.auto_class == "AutoModelForMaskedLM"
    return kind and type(task).log_probabilities is Task.log_probabilities
