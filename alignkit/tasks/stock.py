"""What can be said of any transformers head from its logits and labels alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignkit.components import Task
from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    from alignkit.components import Batch

IGNORED = -100
"""The label of a position that is not scored."""


def label_counts(batch: Batch, shifts_labels: bool = False) -> dict[str, int]:
    """`example`: rows; `token`: labels that count, where there is one per token.

    Integer labels [B, T] are per token; [B] (a class) and floating [B, C] (several classes) are per example.
    """
    labels = batch.get("labels")
    if labels is None:
        return {"example": len(next(v for v in batch.values() if isinstance(v, Tensor)))}
    if labels.dim() < 2 or labels.is_floating_point():
        return {"example": len(labels)}
    counted = labels[..., 1:] if shifts_labels else labels
    return {"example": len(labels), "token": int((counted != IGNORED).sum())}


def scored_per_row(batch: Batch, total: int) -> list[int]:
    """How many of `total` predictions, which come row by row, belong to each row: 1 where there is no label per token.

    Nothing predicts a label at the first place, unless the total says otherwise.
    """
    labels = batch.get("labels")
    if labels is None or labels.dim() < 2 or labels.is_floating_point():
        return [1] * total
    scored = labels != IGNORED
    sizes = scored.sum(1)
    sizes = sizes if int(sizes.sum()) == total else sizes - scored[:, 0].long()
    assert int(sizes.sum()) == total, f"{total} values for {int(sizes.sum())} labels"
    found: list[int] = sizes.tolist()
    return found


def scored_log_probabilities(logits: Tensor, batch: Batch, shifts_labels: bool = False) -> tuple[Tensor, str]:
    """Log-probabilities where the labels count, and the unit that the first dimension counts.

    Args:
        logits: [B, C] of a classification head, [B, T, V] of a token or language-model head, or [B, 2, T] of a span
            head, whose two distributions are over the positions that are attended to; of a multiple-choice head
            [B, C], those that pad a row have probability 0.
        batch: holds `labels`: [B], floating [B, C] (several labels each), or [B, T]; a span head's has none.
        shifts_labels: the label at t is predicted at t - 1.

    Returns:
        [N, V] in float32, normalised over V, per `example` or `token`; for several labels [B, C, 2].
    """
    if "start_positions" in batch:
        hidden = batch["attention_mask"][:, None] == 0
        return logits.float().masked_fill(hidden, torch.finfo(torch.float32).min).log_softmax(-1), "example"
    labels = batch["labels"]
    if batch["input_ids"].dim() == 3:
        logits = logits.float().masked_fill(~choices_there(batch), torch.finfo(torch.float32).min)
    if labels.is_floating_point():
        signed = logits.float().unsqueeze(-1) * logits.new_tensor([1.0, -1.0], dtype=torch.float32)
        return torch.nn.functional.logsigmoid(signed), "example"
    if logits.dim() == 2:
        return logits.float().log_softmax(-1), "example"
    if shifts_labels:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != IGNORED].float().log_softmax(-1), "token"


def head_logits(outputs: Any) -> Tensor:
    """What a head says before it is normalised; a span head's two distributions as one prediction [B, 2, T]."""
    spans = hasattr(outputs, "start_logits")
    logits: Tensor = torch.stack([outputs.start_logits, outputs.end_logits], 1) if spans else outputs.logits
    return logits


def label_log_probabilities(outputs: Any, batch: Batch, shifts_labels: bool = False) -> Tensor:
    """[N] in float32: the log-probability of each label that counts, in nats.

    Args:
        outputs: with `logits` [B, T, V].
        batch: with `labels` [B, T], -100 where nothing is scored.
        shifts_labels: the label at t is predicted at t - 1.
    """
    logits, labels = outputs.logits, batch["labels"]
    if shifts_labels:
        logits, labels = logits[:, :-1], labels[:, 1:]
    scored = labels != IGNORED
    return logits[scored].float().log_softmax(-1).gather(-1, labels[scored][:, None])[:, 0]


def scored_hidden(hidden: Tensor, batch: Batch) -> Tensor:
    """[N, D]: the hidden states [B, T, D] of a causal language model that predict the labels that count."""
    found: Tensor = hidden[:, :-1][batch["labels"][:, 1:] != IGNORED]
    return found


def row_losses(outputs: Any, batch: Batch, shifts_labels: bool = False) -> Tensor:
    """[B] in float32: the mean negative log-likelihood of each row's labels, in nats; 0 where a row has none.

    Args:
        outputs: a model's, for any head that `scored_log_probabilities` knows.
        batch: with its `labels`, or `start_positions` and `end_positions`.
        shifts_labels: the label at t is predicted at t - 1.
    """
    if "start_positions" in batch:
        log_p, _ = scored_log_probabilities(head_logits(outputs), batch)
        places = torch.stack([batch["start_positions"], batch["end_positions"]], 1)
        return -log_p.gather(-1, places[..., None]).mean((1, 2))
    logits, labels = outputs.logits, batch["labels"]
    if labels.is_floating_point() or logits.dim() == 2:
        log_p, _ = scored_log_probabilities(logits, batch)
        if labels.is_floating_point():
            return -(log_p[..., 0] * labels + log_p[..., 1] * (1 - labels)).mean(-1)
        return -log_p.gather(-1, labels[:, None])[:, 0]
    log_p = label_log_probabilities(outputs, batch, shifts_labels)
    scored = (labels[:, 1:] if shifts_labels else labels) != IGNORED
    rows = torch.arange(len(labels), device=labels.device)[:, None].expand_as(scored)[scored]
    sums = torch.zeros(len(labels), device=labels.device).index_add(0, rows, -log_p)
    return sums / scored.sum(-1).clamp_min(1)


def choices_there(batch: Batch) -> Tensor:
    """[B, C]: the choices of a multiple-choice batch [B, C, T] that a row has, without those that pad it."""
    mask = batch.get("attention_mask")
    return batch["input_ids"].new_ones(batch["input_ids"].shape[:2]).bool() if mask is None else mask.any(-1)


class StockTask(Task):
    """A model and a data set as somebody who knows the Trainer brings them: nothing to parse, nothing to decode.

    What `AlignTrainer` uses where no task is given, so that every component works on a plain transformers head.
    """

    shifts_labels: bool = False  # type: ignore[misc]  # here it depends on the model, elsewhere on the class
    """The label at position t is predicted at t - 1 (causal language models)."""

    def _no_data(self, *_: Any, **__: Any) -> Any:
        raise UsageError(Mistake("task", "no task was given", "a task", "pass task=... to read, score or predict"))

    parse = encode = collate = decode = statistics = metrics = _no_data
