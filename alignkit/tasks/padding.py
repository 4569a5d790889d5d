"""Padding encoded examples to one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alignkit.components import Batch
from alignkit.tasks.stock import IGNORED


def pad(features: Sequence[Mapping[str, Any]], tokenizer: Any, side: str | None = None) -> Batch:
    """Lists of ids to tensors [B, T] with an attention mask.

    The mask comes from the lengths and never from the ids, so that a padding token which is also the end of a text
    stays visible where it is text.

    Args:
        features: encoded examples; `labels` are padded with -100, ids with the padding token (where there is none,
            the end-of-text token), all else with 0.
        tokenizer: says which token pads, and on which side.
        side: `left` or `right`; None: the tokenizer's.
    """
    length = max(len(row["input_ids"]) for row in features)
    left = (side or getattr(tokenizer, "padding_side", "right")) == "left"
    fill = {"input_ids": padding_id(tokenizer), "labels": IGNORED}
    masked = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in features]
    return {
        name: torch.stack([_padded(row[name], length, fill.get(name, 0), left) for row in masked]) for name in masked[0]
    }


def attended(batch: Batch) -> Tensor:
    """Where there are tokens and not padding: a boolean tensor of the ids' shape.

    Of a mask [B, 1, T, T], as packed rows have one: the tokens that some token attends to.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.dim() == 4:
        mask = (mask if mask.dtype == torch.bool else mask == 0).any(-2)
    return mask.reshape(ids.shape).bool()


def padding_id(tokenizer: Any) -> int:
    """The id that pads: the tokenizer's own, or where it has none that of the end of a text."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return int(tokenizer.eos_token_id or 0)


def _padded(values: Sequence[int], length: int, fill: int, left: bool) -> Tensor:
    padding = [fill] * (length - len(values))
    return torch.tensor([*padding, *values] if left else [*values, *padding])
