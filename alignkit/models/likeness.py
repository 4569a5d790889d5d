"""Whether what a second model says can be held against what the first one says: token by token, label by label."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import Mistake, UsageError
from alignkit.models.inspection import facts, has_trained_head, labels_of, read_config, read_shapes, wanted_labels
from alignkit.models.loading import load_tokenizer, refuse_unfit
from alignkit.models.location import is_adapter

if TYPE_CHECKING:
    from alignkit.components import Task

SHOWN = 6
"""Labels that a message names."""


def other_vocabulary(where: str, who: str, own: Mapping[str, int], others: Mapping[str, int]) -> Mistake | None:
    """Vocabularies that differ in a token or its id.

    Args:
        where: what names the second model.
        who: what the message calls it.
        own: the first model's tokens with their ids.
        others: the second's.
    """
    differ = sorted(token for token in own.keys() | others.keys() if own.get(token) != others.get(token))
    if not differ:
        return None
    token = differ[0]
    found = f"{who} has another vocabulary: {len(differ)} tokens differ, {token!r} is {others.get(token, 'not in it')}"
    expected = f"the model's, where it is {own.get(token, 'not in it')}"
    return Mistake(where, found, expected, "take a model of its family")


def unlike(
    where: str, folder: Path, task: Task, model: Path, tokenizer: Any, distributions: bool = False
) -> Iterator[Mistake]:
    """What keeps a second model's predictions from being compared with those of the model that is trained.

    Reads configs, the headers of weights and vocabularies; loads no weights.

    Args:
        where: what names the second model.
        folder: it.
        task: as it is for the model that is trained, whose labels it knows.
        model: the folder of that one.
        tokenizer: its own.
        distributions: over the whole vocabulary are compared, not the probabilities of single tokens alone.
    """
    second = copy.copy(task)
    try:
        known = facts(folder, second)
    except UsageError as error:  # the task's own word on it, whose mend is another task
        yield from (Mistake(where, m.found, m.expected) for m in error.mistakes)
        return
    if second.auto_class != task.auto_class:
        yield Mistake(where, f"a {known.model_type}, which is asked by {second.auto_class}", task.auto_class)
        return
    if is_adapter(folder):
        yield Mistake(where, "it has a trained prompt, which stands before the text", "a whole model")
    try:
        refuse_unfit(folder, second, None, (), {})
        vocabulary = load_tokenizer(folder, second).get_vocab()
    except UsageError as error:
        yield from (Mistake(where, m.found, m.expected, m.mend) for m in error.mistakes)
        return
    if mistake := other_vocabulary(where, "it", tokenizer.get_vocab(), vocabulary):
        yield mistake
    elif distributions and not task.has_head and (wide := _width(folder)) != (own := _width(model)):
        yield Mistake(where, f"it gives each token {wide} probabilities", f"{own}, as the model does")
    if known.fresh_head and not known.architecture.endswith(task.auto_class.removeprefix("AutoModel")):
        found = f"{known.architecture or 'it'} has no head that was trained for {task.name}"
        yield Mistake(where, found, "a model trained for the task", "train it first, and name that run")
    elif task.has_head and _differ(known.labels, labels := _labels(model, task), known.fresh_head):
        found = f"its head is for the labels {_listed(known.labels)}"
        yield Mistake(where, found, f"the model's: {_listed(labels)}", "train it on the same data")


def _labels(model: Path, task: Task) -> tuple[str, ...]:
    """The labels that the trained model will have, in the order of its head's rows."""
    config = read_config(model)
    own = labels_of(config) if has_trained_head(config, read_shapes(model), task) else ()
    return own or wanted_labels(task)


def _differ(others: Sequence[str], own: Sequence[str], refused: bool) -> bool:
    """Labels are others; of names that say nothing (`LABEL_0`) only how many they are counts.

    Args:
        refused: the task would not take the others for its own.
    """
    unnamed = any(all(label == f"LABEL_{i}" for i, label in enumerate(labels)) for labels in (others, own))
    return refused or (len(others) != len(own) if unnamed and others and own else not unnamed and others != own)


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return ", ".join(labels[:SHOWN]) + more


def _width(folder: Path) -> int | None:
    """How many tokens a language model's head has a row for; None where its config does not say."""
    size = read_config(folder).get("vocab_size")
    return size if isinstance(size, int) else None
