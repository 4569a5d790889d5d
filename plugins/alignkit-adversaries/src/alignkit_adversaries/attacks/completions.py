"""The completion that an attack on a language model is after: where it is in a row, and whether the model gives it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from alignkit.errors import Mistake
from alignkit.tasks.chat import Chat
from alignkit.tasks.stock import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.components import Task
    from alignkit.data import Example
    from alignkit.data.features import Features
    from alignkit.evaluation.victim import AttackedBatch, Victim


def target_labels(labels: list[int], ends: Collection[int]) -> list[int]:
    """The labels of a row's last completion alone, without the tokens that end its turn; -100 everywhere else.

    Args:
        labels: of a conversation, -100 outside the answers.
        ends: ids that end a turn; of those at the end of the completion none is part of the target.
    """
    end = next((i + 1 for i in reversed(range(len(labels))) if labels[i] != IGNORED), 0)
    start = end
    while start and labels[start - 1] != IGNORED:
        start -= 1
    while end > start and labels[end - 1] in ends:
        end -= 1
    return [label if start <= i < end else IGNORED for i, label in enumerate(labels)]


def matched(logits: Tensor, labels: Tensor) -> Tensor:
    """[B]: the likeliest token is the label wherever there is one (and there is one).

    Under teacher forcing, which says what greedy decoding does: as long as it has given the target so far, it has the
    target so far before it.

    Args:
        logits: [B, T, V] of a causal model.
        labels: [B, T]; the label at t is predicted at t - 1.
    """
    wanted = labels[:, 1:]
    counted = wanted != IGNORED
    return ((logits[:, :-1].argmax(-1) == wanted) | ~counted).all(-1) & counted.any(-1)


def aimed(victim: Victim, example: Example) -> Features:
    """An example's features with the labels of its target alone; empty where it has no target."""
    features: Any = victim.task.encode(example, victim.tokenizer)
    if features is None:
        return {}
    labels = target_labels(features["labels"], turn_ends(victim))
    return {**features, "labels": labels} if set(labels) != {IGNORED} else {}


def turn_ends(victim: Victim) -> set[int]:
    """Ids that end a turn: every special token, but for the one of unknown text."""
    tokenizer = victim.tokenizer
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(victim.special_ids)) - {tokenizer.unk_token_id}


@dataclass(frozen=True)
class Beginning:
    """What a causal model keeps of the beginning that rows have in common, so that it is read once."""

    cache: Any
    length: int
    """Tokens of it."""

    def repeated(self, rows: int) -> Any:
        """The cache for so many rows; a pass appends to it, so that each has one of its own."""
        found = copy.deepcopy(self.cache)
        found.batch_repeat_interleave(rows)
        return found


def read_beginning(victim: Victim, ids: list[int]) -> Beginning | None:
    """A beginning as the model has read it; None where nothing that rows could go on from can be kept of it.

    That is so where virtual tokens stand before the text, and in models with a recurrent state.
    """
    if not ids or victim.virtual_tokens:
        return None
    with torch.no_grad():
        outputs = victim.model(input_ids=torch.tensor([ids], device=victim.embeddings.device), use_cache=True)
    cache = getattr(outputs, "past_key_values", None)
    layers = getattr(cache, "layers", [])
    repeats = layers and all(hasattr(layer, "batch_repeat_interleave") for layer in layers)
    return Beginning(cache, len(ids)) if repeats else None


def target_losses(
    victim: Victim, batch: AttackedBatch, delta: Tensor | None = None, beginning: Beginning | None = None
) -> tuple[Tensor, Tensor]:
    """[B]: the mean loss of each row's target, in nats per token, and [B]: whether the model gives it.

    Logits are asked for where the targets are, if the model can leave out the others.

    Args:
        delta: [B, T, D] added to the embeddings.
        beginning: of all rows, which is read no more; the rows are of one length, and their targets lie after it.
    """
    inputs = {name: value for name, value in batch.step.batch.items() if name != "labels"}
    labels = batch.step.batch["labels"]
    kept = labels.shape[1] - int((labels != IGNORED).any(0).nonzero()[0]) + 1
    if _keeps_logits(victim):
        inputs["logits_to_keep"] = kept
    if beginning is not None:
        inputs["input_ids"] = inputs["input_ids"][:, beginning.length :]
        inputs["past_key_values"] = beginning.repeated(len(labels))
        delta = None if delta is None else delta[:, beginning.length :]
    outputs = batch.step.forward(delta, inputs)
    logits, labels = outputs.logits[:, -kept:], labels[:, -kept:]
    losses = victim.task.row_losses(SimpleNamespace(logits=logits), {"labels": labels})
    return losses, matched(logits.detach(), labels)


def _keeps_logits(victim: Victim) -> bool:
    """The model takes `logits_to_keep`, and nothing stands before the text that would shift what it gives."""
    model: Any = victim.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return not victim.virtual_tokens and "logits_to_keep" in inspect.signature(base.forward).parameters


def prompt_mask(batch: AttackedBatch) -> Tensor:
    """[B, T, 1]: 1 at the real tokens before the target, 0 at special ones, padding and the target itself."""
    before = (batch.step.batch["labels"] != IGNORED).cumsum(1) == 0
    return batch.step.mask * before[..., None]


def needs_completions(name: str, task: Task) -> Iterator[Mistake]:
    """What a task lacks for attacks that are after a completion."""
    if not isinstance(task, Chat) or task.windowed or not task.stock_loss:
        found = f"rows of task {task.name} are not one prompt and its completion, which is the target"
        yield Mistake(f"attack {name}", found, "the task chat")
