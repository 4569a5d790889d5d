"""How likely a language model finds the texts it is to produce: sums per row, and the metrics of their totals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from alignkit.components import Batch
from alignkit.tasks.stock import IGNORED


def losses(outputs: Any, batch: Batch, shifts_labels: bool) -> list[dict[str, Any]]:
    """Per row `nll`, the sum over its learnt tokens in nats, and how many `tokens` they are.

    Args:
        outputs: with `logits` [B, T, V].
        batch: with `labels` [B, T], -100 where nothing is learnt.
        shifts_labels: the label at t is predicted at t - 1.
    """
    logits, labels = outputs.logits, batch["labels"]
    if shifts_labels:
        logits, labels = logits[:, :-1], labels[:, 1:]
    scored = labels != IGNORED
    found = torch.zeros(labels.shape, dtype=torch.float64, device=logits.device)
    picked = torch.nn.functional.cross_entropy(logits[scored].float(), labels[scored], reduction="none")
    found[scored] = picked.double()
    return [
        {"nll": nll, "tokens": tokens}
        for nll, tokens in zip(found.sum(1).tolist(), scored.sum(1).tolist(), strict=True)
    ]


def loss_statistics(prediction: Mapping[str, Any]) -> dict[str, float]:
    """What `losses` said of a row, as additive statistics."""
    return {"nll": float(prediction.get("nll", 0.0)), "tokens": float(prediction.get("tokens", 0))}


def loss_metrics(totals: Mapping[str, Any]) -> dict[str, Any]:
    """`loss`, nats per learnt token, and `perplexity`, its exponential."""
    loss = np.asarray(totals["nll"], float) / np.asarray(totals["tokens"], float)
    return {"perplexity": np.exp(np.minimum(loss, 700.0)), "loss": loss}


def loss_gap(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How far the mean losses of two versions of one example lie apart, in nats per token."""
    return float(abs(one["nll"] / max(one["tokens"], 1) - other["nll"] / max(other["tokens"], 1)))
