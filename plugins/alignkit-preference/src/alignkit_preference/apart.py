"""Attention in a row of a prompt with two answers, computed as that of two causal sequences.

A mask over the whole row scores every token against every other and throws most of it away; causal sequences skip what
is not looked at. So all other layers see the row, the prompt once, and attention alone sees two sequences: the prompt
with the chosen answer and with the rejected one. The longer the answers, the more that saves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from alignkit.lm_head import unwrapped

STOCK = "sdpa"
"""The attention implementation that this stands in for; others read the mask."""
NAME = "alignkit_two_answers"


def places(sequences: Tensor) -> dict[str, Tensor]:
    """Where tokens stand in the row and where in the sequences.

    Args:
        sequences: [B, 2, T], whether a row's token is part of each of its sequences.

    Returns:
        `apart` [B, 2, L]: each sequence's tokens as places in the row, in their order, then some of the others, which
        come too late to be looked at; `together` [B, T]: a token's place in the two sequences one after the other.

    Example:
        >>> found = places(torch.tensor([[[1, 1, 0, 0], [1, 0, 1, 1]]]).bool())
        >>> found["apart"].tolist(), found["together"].tolist()
        ([[[0, 1, 2], [0, 2, 3]]], [[0, 1, 4, 5]])
    """
    length = int(sequences.sum(-1).max())
    apart = (~sequences).byte().argsort(dim=-1, stable=True)[..., :length]
    place = (sequences.long().cumsum(-1) - 1).clamp(min=0)
    second = sequences[:, 1] & ~sequences[:, 0]
    return {"apart": apart, "together": torch.where(second, place[:, 1] + length, place[:, 0])}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    apart: Tensor | None = None,
    together: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls as an attention function: [B, T, H, E] of query [B, H, T, E], key and value.

    Where the model does not hand `apart` and `together` on, or has a position bias, the mask says who sees whom.
    """
    stock = ALL_ATTENTION_FUNCTIONS[STOCK]
    if apart is None or together is None or options.get("position_bias") is not None:
        return stock(module, query, key, value, attention_mask, **options)
    rows, _, tokens, _ = query.shape
    row = torch.arange(rows, device=query.device)
    index = (apart + tokens * row[:, None, None]).flatten(0, 1)
    parts = (_picked(x.transpose(1, 2).flatten(0, 1), index).transpose(1, 2) for x in (query, key, value))
    found, _ = stock(module, *parts, None, **{**options, "is_causal": True})
    return _picked(found.flatten(0, 1), together + apart[0].numel() * row[:, None]), None


def _picked(vectors: Tensor, index: Tensor) -> Tensor:
    """[..., H, E] of [N, H, E]; taken as an embedding, whose backward pass is the fastest and deterministic."""
    return nn.functional.embedding(index, vectors.flatten(1)).unflatten(-1, vectors.shape[1:])


@contextlib.contextmanager
def attention(model: nn.Module, sequences: Tensor) -> Iterator[dict[str, Tensor]]:
    """Inside, the model attends in sequences apart; gives what its `forward` takes for that beside the mask.

    Nothing, and the mask alone counts, under another attention implementation than `STOCK`, and where layers are to be
    computed again on the way back, when the model is no longer inside.

    Args:
        model: a transformers model, wrapped or not.
        sequences: as `places` takes them.
    """
    config = unwrapped(model).config
    if config._attn_implementation != STOCK or _computed_again(model):
        yield {}
        return
    AttentionInterface.register(NAME, attend)
    config._attn_implementation = NAME
    try:
        yield places(sequences)
    finally:
        config._attn_implementation = STOCK


def _computed_again(model: nn.Module) -> bool:
    """Layers keep nothing for the way back: transformers' checkpointing, or torch's wrapper around them.

    In training passes without gradients, too: dropout draws by the shapes, and all passes of a step share its masks.
    """
    if not (model.training or torch.is_grad_enabled()):
        return False
    return any(vars(m).get("gradient_checkpointing") or "checkpoint_fn" in vars(m) for m in model.modules())
