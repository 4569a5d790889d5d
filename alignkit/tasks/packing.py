"""Several short texts in one row of a batch, none of which sees another.

Restarting `position_ids` is not enough: transformers takes that for packing only where the model keeps no cache, and
encoders never do. So a packed batch brings a mask [B, 1, T, T] of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from alignkit.components import Batch
from alignkit.tasks.padding import pad

CAUSAL = {
    *("cohere", "gemma", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "opt", "phi", "phi3", "qwen2"),
    *("qwen3", "smollm3", "stablelm", "starcoder2"),
}
MASKED = {
    *("albert", "bert", "camembert", "distilbert", "electra", "ernie", "eurobert", "nomic_bert", "roberta"),
    "xlm-roberta",
}
"""Kinds of model that a packed row was found to give the logits of its texts alone (`tests/tasks/test_packing.py`).
Others count positions themselves, or look at the mask in another way: their rows are not packed."""

_AFTER_PADDING = {"camembert", "roberta", "xlm-roberta"}
"""Their positions begin behind the padding token's id."""
_WINDOW = 4096
"""The attention window of models that have one and do not say."""


def first_position(config: Mapping[str, Any], maximum: int) -> int | None:
    """The position of a text's first token in the kind of model that a config describes; None: it cannot be packed for.

    Args:
        config: as `config.json` has it.
        maximum: longest row in tokens.
    """
    kind = config.get("model_type")
    window = config.get("sliding_window", _WINDOW)
    if kind not in CAUSAL | MASKED or (window is not None and window < maximum):
        return None
    padding = config.get("pad_token_id")
    return (1 if padding is None else int(padding)) + 1 if kind in _AFTER_PADDING else 0


def packed(rows: Sequence[Mapping[str, Any]], maximum: int, first: int) -> list[dict[str, Any]]:
    """Encoded texts put together into rows of at most `maximum` tokens: the longest first, each where it just fits.

    Args:
        rows: `input_ids` and `labels`, `words` where tokens belong to words, and what the host puts beside them.
        maximum: tokens in a row; a longer text is a row by itself.
        first: the position of a text's first token.

    Returns:
        Rows in the order of their first texts, with `position_ids` that start anew at every text.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-len(rows[i]["input_ids"]), i)):
        size = len(rows[i]["input_ids"])
        tightest = min((left, place) for place, left in enumerate([*room, 10**9]) if left >= size)[1]
        if tightest == len(bins):
            bins.append([])
            room.append(max(maximum, size))
        bins[tightest].append(i)
        room[tightest] -= size
    return [_joined([rows[i] for i in sorted(members)], first) for members in sorted(map(sorted, bins))]


def _joined(parts: Sequence[Mapping[str, Any]], first: int) -> dict[str, Any]:
    row = dict(parts[0])
    for name in ("input_ids", "labels"):
        row[name] = [token for part in parts for token in part[name]]
    row["position_ids"] = [first + i for part in parts for i in range(len(part["input_ids"]))]
    if "words" in row:
        starts = accumulate((max(part["words"], default=-1) + 1 for part in parts), initial=0)
        row["words"] = [w if w < 0 else w + at for part, at in zip(parts, starts, strict=False) for w in part["words"]]
    if "length" in row:
        row["length"] = len(row["input_ids"])
    return row


def collated(features: Sequence[Mapping[str, Any]], tokenizer: Any, causal: bool) -> Batch:
    """Rows padded on the right to one batch; packed ones with a mask that keeps their texts apart."""
    batch = pad(features, tokenizer, side="right")
    if "position_ids" in batch:
        batch["attention_mask"] = separating_mask(batch["position_ids"], batch["attention_mask"], causal)
    return batch


def separating_mask(position_ids: Tensor, real: Tensor, causal: bool) -> Tensor:
    """What is added to attention scores, [B, 1, T, T]: 0 within a text, the smallest number elsewhere.

    Args:
        position_ids: [B, T]; a text begins wherever they do not go on by one.
        real: [B, T], 0 at padding, which nobody attends to and which attends to whatever is there.
        causal: a token attends to itself and to those before it only.
    """
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    text, real = starts.cumsum(1), real.bool()
    sees = (text[:, :, None] == text[:, None, :]) | ~real[:, :, None]
    if causal:
        sees = sees & torch.ones_like(sees[0]).tril()
    sees = sees & real[:, None, :]
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]
