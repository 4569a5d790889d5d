"""A prompt with two answers as one row of a batch, the prompt computed once.

A row is prompt + chosen + rejected. The rejected answer's positions go on from the prompt's end, and a token sees the
prompt and its own answer only, by a mask [B, 1, T, T] or by attention in sequences apart (`apart`), so that each answer
is what it would be in a sequence of its own; its first token is predicted from the prompt's last position. Restarting
`position_ids` alone would not do: transformers takes that for packed texts, which do not see the prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.components import Batch
from alignkit.tasks.padding import pad
from alignkit.tasks.stock import IGNORED
from alignkit_preference import apart

PROMPT, CHOSEN, REJECTED = 0, 1, 2
"""What a token is part of, in `answer`."""


def row(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> dict[str, list[int]]:
    """A prompt with two answers as features, unpadded.

    Returns:
        `input_ids`, `labels` (-100 in the prompt), `position_ids`, `answer` (`PROMPT`, `CHOSEN` or `REJECTED`) and
        `predicted_from` (the place whose output predicts the token; 0 in the prompt), all of length T.

    Example:
        >>> row([7, 8], [1], [2, 3])["position_ids"]
        [0, 1, 2, 2, 3]
        >>> row([7, 8], [1], [2, 3])["predicted_from"]
        [0, 0, 1, 1, 3]
    """
    p, c, r = len(prompt), len(chosen), len(rejected)
    return {
        "input_ids": [*prompt, *chosen, *rejected],
        "labels": [*[IGNORED] * p, *chosen, *rejected],
        "position_ids": [*range(p + c), *range(p, p + r)],
        "answer": [*[PROMPT] * p, *[CHOSEN] * c, *[REJECTED] * r],
        "predicted_from": [*[0] * p, *range(p - 1, p + c - 1), *([p - 1] if r else []), *range(p + c, p + c + r - 1)],
    }


def collated(features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
    """Rows padded on the right to one batch [B, T]."""
    return pad(features, tokenizer, side="right")


def separated(features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
    """The same rows with each answer in a sequence of its own: `input_ids` and `attention_mask` [B, 2, T].

    `labels`, `answer` and `predicted_from` are [B, 2 T], over both sequences one after the other.
    """
    sequences = []
    for given in features:
        ids, answer = given["input_ids"], given["answer"]
        prompt = [token for token, part in zip(ids, answer, strict=True) if part == PROMPT]
        for part in (CHOSEN, REJECTED):
            own = [token for token, other in zip(ids, answer, strict=True) if other == part]
            whole = row(prompt, own, [])
            sequences.append({**whole, "answer": [part if a else PROMPT for a in whole["answer"]]})
    batch = pad(sequences, tokenizer, side="right")
    width = batch["input_ids"].shape[-1]
    batch["predicted_from"][1::2] += width
    flat = {name: batch[name].view(-1, 2 * width) for name in ("labels", "answer", "predicted_from")}
    return flat | {name: batch[name].view(-1, 2, width) for name in ("input_ids", "attention_mask", "position_ids")}


def shared_mask(answer: Tensor, real: Tensor) -> Tensor:
    """What is added to attention scores, [B, 1, T, T] in float32: 0 where a token may look, the smallest elsewhere.

    Boolean masks are silently wrong under `eager` attention, so it is one of numbers. Padding looks at itself.

    Args:
        answer: [B, T] of `PROMPT`, `CHOSEN` and `REJECTED`.
        real: [B, T], 0 at padding.
    """
    query, key = answer[:, :, None], answer[:, None, :]
    sees = ((key == PROMPT) | (key == query)) & real[:, None, :].bool()
    sees = sees & torch.ones_like(sees[0]).tril() | torch.eye(sees.shape[-1], dtype=torch.bool, device=sees.device)
    return torch.zeros(sees.shape, device=sees.device).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]


def sequences(answer: Tensor, real: Tensor) -> Tensor:
    """[B, 2, T]: whether a token is part of the prompt with the chosen answer, and of that with the rejected one.

    Args:
        answer: [B, T] of `PROMPT`, `CHOSEN` and `REJECTED`.
        real: [B, T], 0 at padding.
    """
    return torch.stack([answer != REJECTED, answer != CHOSEN], 1) & real[:, None].bool()


def model_inputs(batch: Batch) -> Batch:
    """What the model takes of a batch: of separate answers one sequence each, [2 B, T]."""
    ids, real, positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
    if ids.dim() == 3:
        return {"input_ids": ids.flatten(0, 1), "attention_mask": real.flatten(0, 1)}
    return {"input_ids": ids, "attention_mask": shared_mask(batch["answer"], real), "position_ids": positions}


@contextlib.contextmanager
def prepared(model: nn.Module, batch: Batch) -> Iterator[Batch]:
    """What the model takes of a batch; inside, it attends in sequences apart where it can."""
    inputs = model_inputs(batch)
    if batch["input_ids"].dim() == 3:
        yield inputs
        return
    with apart.attention(model, sequences(batch["answer"], batch["attention_mask"])) as beside:
        yield inputs | beside


def scored_hidden(hidden: Tensor, batch: Batch) -> Tensor:
    """[N, D]: the hidden states that predict the answers' tokens, row by row, the chosen one's first.

    Args:
        hidden: [B, T, D], or [2 B, T, D] of separate answers.
    """
    scored = batch["labels"] != IGNORED
    hidden = hidden.reshape(*scored.shape, hidden.shape[-1])
    rows = torch.arange(len(scored), device=scored.device)[:, None].expand_as(scored)[scored]
    return hidden[rows, batch["predicted_from"][scored]]


def answer_sums(values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sums over each answer's tokens and how many they are: both [B, 2], chosen and rejected.

    Args:
        values: [N], one per scored token, row by row.
    """
    scored = batch["labels"] != IGNORED
    rows = torch.arange(len(scored), device=scored.device)[:, None].expand_as(scored)[scored]
    place = rows * 2 + (batch["answer"][scored] - CHOSEN)
    sums = values.new_zeros(2 * len(scored)).index_add(0, place, values)
    return sums.view(-1, 2), torch.bincount(place, minlength=2 * len(scored)).view(-1, 2)


@torch.no_grad()
def deviation(model: nn.Module, ids: Sequence[int]) -> float:
    """How far the hidden states of two answers in one row lie from those of separate sequences, relative to their size.

    Near 0 where the model and its attention implementation read masks and positions as they are meant; of the order
    of 1 where they do not. The larger one of by the mask and with attention apart. Costs four passes of seven tokens.

    Args:
        model: a causal language model, in evaluation mode.
        ids: seven token ids.
    """
    device = next(model.parameters()).device
    features = row(ids[:3], ids[3:5], ids[5:7])
    batch = {name: torch.tensor([values], device=device) for name, values in features.items()}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    body: Any = getattr(model, str(model.base_model_prefix))

    def hidden(**inputs: Tensor) -> Tensor:
        found: Tensor = body(**inputs, use_cache=False).last_hidden_state[0]
        return found

    separate = [hidden(input_ids=torch.tensor([[*ids[:3], *own]], device=device)) for own in (ids[3:5], ids[5:7])]
    expected = torch.cat([separate[0], separate[1][3:]])
    together = [hidden(**model_inputs(batch))]
    with prepared(model, batch) as inputs:
        together.append(hidden(**inputs))
    return float(torch.stack([(found - expected).norm() for found in together]).max() / expected.norm())
