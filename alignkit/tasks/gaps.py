"""How likely a language model finds answers in the gap of a prompt: at its end, or in its midst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignkit.evaluation.score import to_device
from alignkit.models.adapters import cropped, virtual_tokens
from alignkit.tasks.padding import pad
from alignkit.tasks.stock import IGNORED

Ids = Sequence[int]


class Gap(NamedTuple):
    """A prompt in tokens: what stands before the answer and what after it."""

    before: Ids
    after: Ids = ()


def gaps(batch: dict[str, Tensor]) -> list[Gap]:
    """The prompts of a padded batch [B, T] in which the labels of the answers alone count."""
    found = []
    for ids, counted, there in zip(
        batch["input_ids"], batch["labels"] != IGNORED, batch["attention_mask"].bool(), strict=True
    ):
        row, answer = ids[there].tolist(), counted[there].nonzero().flatten().tolist()
        found.append(Gap(row[: answer[0]], row[answer[-1] + 1 :]))
    return found


def log_likelihoods(
    model: Any, tokenizer: Any, prompts: Sequence[Gap], answers: Sequence[Ids], mask: int | None = None
) -> Tensor:
    """The log-probability of every answer in every prompt, the sum over the answer's tokens.

    A causal model predicts each token after those before it. A masked one sees a mask for each of the answer's tokens,
    all at once, and predicts each of them by itself: for answers of several tokens that is a pseudo-likelihood.

    Args:
        model: in evaluation mode.
        prompts: B of them; for a causal model with something before the gap and nothing after it.
        answers: K of them, none empty.
        mask: the id of a masked language model's mask; None: the model is causal.

    Returns:
        [B, K] in nats. Answers of which the model sees the same share a forward pass: all those of one token do.
    """
    found = torch.empty(len(prompts), len(answers))
    sharing: dict[tuple[int, ...], list[int]] = {}
    for k, ids in enumerate(answers):
        seen = tuple(ids[:-1]) if mask is None else (mask,) * len(ids)
        sharing.setdefault(seen, []).append(k)
    for seen, members in sharing.items():
        rows = [{"input_ids": [*prompt.before, *seen, *prompt.after]} for prompt in prompts]
        batch = to_device(pad(rows, tokenizer, side="right"), model)
        outputs = cropped(model(**batch), batch["input_ids"].shape[1], virtual_tokens(model))
        found[:, members] = at_gaps(outputs.logits, prompts, [answers[k] for k in members], mask is not None).cpu()
    return found


def at_gaps(logits: Tensor, prompts: Sequence[Gap], answers: Sequence[Ids], masked: bool) -> Tensor:
    """The log-probabilities [B, K] of K answers of one length, read off logits [B, T, V] that cover them all.

    Args:
        masked: a token is predicted where it stands; otherwise one position earlier.
    """
    ids = torch.tensor([list(answer) for answer in answers], device=logits.device)
    first = torch.tensor([len(prompt.before) for prompt in prompts], device=logits.device)
    positions = first[:, None] - int(not masked) + torch.arange(ids.shape[1], device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    predicted = logits[rows, positions].float().log_softmax(-1)  # [B, L, V]
    return predicted.gather(2, ids.T.expand(len(logits), -1, -1)).sum(1)
