"""Kahneman-Tversky Optimization: each answer is good or bad by itself, against what the model has drifted already."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from alignkit.components import Objective, Term
from alignkit.errors import Mistake
from alignkit_preference import shared_prompt
from alignkit_preference.pairs import pair_task

if TYPE_CHECKING:
    from alignkit.components import Batch
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


def kto_losses(
    chosen: Tensor, rejected: Tensor, z: Tensor | float, beta: float, desirable: float, undesirable: float
) -> Tensor:
    """The mean of a pair's two losses: desirable (1 - sigmoid(beta (r - z))), undesirable (1 - sigmoid(beta (z - r))).

    Args:
        chosen: [B], r of the chosen answers: sums of log pi - log pi_ref over their tokens.
        rejected: [B], of the rejected ones.
        z: a scalar, how far the model has drifted from the reference; no gradient is taken of it.
        beta: per nat.
        desirable: weight of the chosen answers.
        undesirable: weight of the rejected ones.

    Returns:
        [B].
    """
    up, down = torch.sigmoid(beta * (z - chosen)), torch.sigmoid(beta * (rejected - z))
    return (desirable * up + undesirable * down) / 2


def drift(chosen: Tensor, rejected: Tensor) -> Tensor:
    """z before it is clamped: the mean log-ratio of answers to prompts that are not theirs.

    Args:
        chosen: [B], sums of log pi - log pi_ref of answers of other pairs.
        rejected: [B].

    Returns:
        A scalar, in nats, an estimate of KL(pi || pi_ref).
    """
    return (chosen.mean() + rejected.mean()) / 2


def mismatched(batch: Batch, longest: int) -> list[dict[str, list[int]]]:
    """Each row's prompt with both answers of the row before it, the first row's with the last row's, as features.

    Args:
        batch: of the task `preference`, its answers in one row or in two.
        longest: of a prompt with one answer, in tokens: the beginning of the prompt goes first, then the answers' end.
    """
    width, rows = batch["input_ids"].shape[-1], len(batch["answer"])
    ids, real = batch["input_ids"].reshape(rows, -1), batch["attention_mask"].reshape(rows, -1).bool()
    first = torch.arange(ids.shape[1], device=ids.device) < width  # separate answers have the prompt twice
    prompts = [
        i[keep].tolist() for i, keep in zip(ids, (batch["answer"] == shared_prompt.PROMPT) & real & first, strict=True)
    ]
    found = []
    for row, prompt in enumerate(prompts):
        before, answer = ids[row - 1], batch["answer"][row - 1]
        answers = [before[answer == part].tolist() for part in (shared_prompt.CHOSEN, shared_prompt.REJECTED)]
        answers = [own[: longest - 1] for own in answers]
        room = longest - max(map(len, answers))
        found.append(shared_prompt.row(prompt[-room:], *answers))
    return found


class KTO(Objective):
    """Makes good answers likelier and bad ones less so, each by itself; what is gained already counts less.

    Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7-8, with r = log pi - log pi_ref, a sum over tokens: chosen answers
    are the desirable examples, rejected ones the undesirable. z is the mean r of mismatched pairs (every prompt with
    the answers of the row before it), over all processes, at least 0, without gradient. A loss per pair is the mean of
    its two, as if they were two examples. All of it follows TRL 1.16, to which the tests hold it.

    As z comes from the micro-batch, the loss depends on which rows share it, and wants several: one pair alone has no
    mismatched one. Where no process has any, as in a last batch of one pair, z is 0.

    Cost: a forward pass of the model and one of the reference over the mismatched pairs, per loss; the latter cannot be
    cached, as partners change.

    Relations: `dpo` with `loss_type: apo-zero` is this at z = 0, twice as large, at no cost for z and for batches of
    any size. `dpo` weighs the difference between the two answers of one prompt, where there is one.

    Example:
        >>> KTO(undesirable=0.5).couples_rows
        True
    """

    beta: PositiveFloat = 0.1
    """How strongly the reference holds, per nat: large values make losses saturate near it."""
    desirable: NonNegativeFloat = 1.0
    """Weight of chosen answers (lambda_D)."""
    undesirable: NonNegativeFloat = 1.0
    """Weight of rejected answers (lambda_U)."""

    tasks: ClassVar[tuple[str, ...]] = ("preference",)
    reference: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = True
    forwards: ClassVar[float] = 2.0

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """One pair per micro-batch has no mismatched pair."""
        if setting.batch_size == 1:
            yield Mistake(
                "objective kto",
                "per_device_train_batch_size is 1, and what it compares with are answers to other prompts of the batch",
                "2 or more",
                "raise it, or take `{use: dpo, loss_type: apo-zero}`",
            )

    def loss(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean over pairs."""
        task = pair_task(step)
        answers, frozen = task.answers(step, outputs), task.reference_answers(step)
        chosen, rejected = answers.chosen - frozen.chosen, answers.rejected - frozen.rejected
        z = self._drift(step, len(chosen)).to(chosen)
        return Term(kto_losses(chosen, rejected, z, self.beta, self.desirable, self.undesirable).mean(), "example")

    def _drift(self, step: TrainingStep, pairs: int) -> Tensor:
        """z, a scalar: the mean over all processes' mismatched pairs, 0 where there are none.

        All processes ask for it, those without mismatched pairs, too: the others would wait for them for ever.
        """
        device = step.current["input_ids"].device
        found = torch.zeros(2, device=device)
        if pairs > 1:
            found = torch.stack([self._own_drift(step).float() * pairs, found.new_tensor(float(pairs))])
        total, number = step.context.mean_over_processes(found).unbind()
        return torch.where(number > 0, total / number.clamp_min(1e-6), 0.0).clamp_min(0)

    def _own_drift(self, step: TrainingStep) -> Tensor:
        """That of this process's pairs, before it is clamped."""
        task, device = pair_task(step), step.current["input_ids"].device
        features = mismatched(step.current, task.maximum_length)
        batch = {name: t.to(device) for name, t in task.collate(features, step.context.tokenizer).items()}
        with torch.no_grad():
            answers = task.answers(step, step.forward(batch=batch), batch)
            frozen = task.reference_answers(step, batch)
            return drift(answers.chosen - frozen.chosen, answers.rejected - frozen.rejected)
