"""How likely a language model finds sentences: log-likelihoods, and of masked models pseudo-log-likelihoods."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.errors import Mistake, UsageError
from alignkit.evaluation.score import length_batches, to_device, vocabulary
from alignkit.models.adapters import cropped, virtual_tokens
from alignkit.tasks.likelihood import losses
from alignkit.tasks.padding import pad
from alignkit.tasks.stock import IGNORED

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.evaluation.evaluators import Subject

CAUSAL, MASKED = "AutoModelForCausalLM", "AutoModelForMaskedLM"
LONGEST = 512
"""Tokens of a sentence at most, fewer where the tokenizer says so; of a longer one the beginning is scored."""


def no_language_model(where: str, task: Task) -> Iterator[Mistake]:
    """What is wrong with a task whose model is no language model."""
    if task.auto_class not in (CAUSAL, MASKED):
        found = f"task {task.name} has no causal or masked language model"
        yield Mistake(where, found, "a language model", "one of the tasks chat, causal-lm, masked-lm …")


@dataclass(frozen=True)
class Sentence:
    """A sentence in tokens."""

    ids: list[int]
    """[T]"""
    places: list[int]
    """Which of them are scored."""


def sentence(text: str, tokenizer: Any, causal: bool) -> Sentence:
    """A sentence as a language model reads it, all of its own tokens scored.

    A causal model sees an opening token before it, so that the first word is predicted, too: the tokenizer's own, or
    where it puts none before a text the token that it ends with. Of a base model that is what stands between texts in
    pre-training; of a chat model it may be what ends a turn (`<|im_end|>`). Every sentence has the same one.

    Raises:
        UsageError: the tokenizer has neither, or, of a masked model, no mask.
    """
    longest = min(tokenizer.model_max_length, LONGEST)
    if not causal:
        if tokenizer.mask_token_id is None:
            raise UsageError(Mistake("the model's tokenizer", "it has no mask token", "that of a masked model"))
        ids = tokenizer(text, truncation=True, max_length=longest)["input_ids"]
        special = set(tokenizer.all_special_ids)
        return Sentence(ids, [place for place, token in enumerate(ids) if token not in special])
    opens = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer("")["input_ids"]
    first = tokenizer.bos_token_id if opens or tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if first is None:
        raise UsageError(Mistake("the model's tokenizer", "neither an opening nor an ending token", "one of them"))
    own = tokenizer(text, add_special_tokens=False, truncation=True, max_length=longest - 1)["input_ids"]
    ids = [first, *own]
    return Sentence(ids, list(range(1, len(ids))))


def shared(one: Sentence, other: Sentence) -> tuple[Sentence, Sentence]:
    """Two sentences of which only the tokens are scored that both have, in order (Nangia et al. 2020)."""
    blocks = difflib.SequenceMatcher(None, one.ids, other.ids, autojunk=False).get_matching_blocks()
    first = {block.a + i for block in blocks for i in range(block.size)}
    second = {block.b + i for block in blocks for i in range(block.size)}
    return (
        Sentence(one.ids, [place for place in one.places if place in first]),
        Sentence(other.ids, [place for place in other.places if place in second]),
    )


def log_likelihoods(subject: Subject, sentences: Sequence[Sentence], causal: bool) -> np.ndarray:
    """[N]: of each sentence the sum over its scored tokens of log p(token | rest), in nats.

    Of a causal model the rest is what comes before the token. Of a masked model it is everything but the token, which
    is hidden alone (the pseudo-log-likelihood of Salazar et al. 2020, arXiv:1910.14659).

    Cost: one forward pass per sentence of a causal model, one per scored token of a masked model.
    """
    rows = list(_whole(sentences) if causal else _hidden(sentences, subject.tokenizer.mask_token_id))
    found = np.zeros(len(sentences))
    batches = length_batches([len(ids) for _, ids, _ in rows], subject.batch_size, vocabulary(subject.model))
    for places in batches:
        features = [{"input_ids": rows[place][1], "labels": rows[place][2]} for place in places]
        batch = to_device(pad(features, subject.tokenizer, side="right"), subject.model)
        outputs = cropped(subject.model(**batch), batch["input_ids"].shape[-1], virtual_tokens(subject.model))
        for place, scored in zip(places, losses(outputs, batch, shifts_labels=causal), strict=True):
            found[rows[place][0]] -= scored["nll"]
    return found


Row = tuple[int, list[int], list[int]]
"""Which sentence, the ids that the model sees, the labels."""


def _whole(sentences: Sequence[Sentence]) -> Iterator[Row]:
    for number, one in enumerate(sentences):
        scored = set(one.places)
        yield number, one.ids, [token if place in scored else IGNORED for place, token in enumerate(one.ids)]


def _hidden(sentences: Sequence[Sentence], mask: int) -> Iterator[Row]:
    for number, one in enumerate(sentences):
        for place in one.places:
            ids, labels = list(one.ids), [IGNORED] * len(one.ids)
            ids[place], labels[place] = mask, one.ids[place]
            yield number, ids, labels
