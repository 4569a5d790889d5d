"""The `head:` section of a recipe: what of a model's head may be chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import Mistake, UsageError, nearest
from alignkit.models.location import ADAPTER_BASE, is_adapter
from alignkit.models.scratch import config_fields

if TYPE_CHECKING:
    from alignkit.components import Task

DROPOUT = (
    "classifier_dropout",
    "classifier_dropout_prob",
    "summary_first_dropout",
    "summary_last_dropout",
    "cls_dropout",
)
"""Fields of configs that set the dropout in front of a head, whichever head it is."""
OWN_DROPOUT = {
    "AutoModelForSequenceClassification": ("seq_classif_dropout",),
    "AutoModelForMultipleChoice": ("seq_classif_dropout",),
    "AutoModelForQuestionAnswering": ("qa_dropout",),
}
"""Those of one kind of head."""
WIDTH = ("classifier_proj_size",)
"""Fields that set the width of a head's hidden layer."""


def head_arguments(folder: Path, task: Task, head: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of the head, as fields of the model's config.

    Args:
        folder: the model's.
        task: names the kind of head.
        head: `dropout`, `hidden`, or any field of the model's config.

    Raises:
        UsageError: the model has no such field, or the task sets it itself; all of them.
    """
    if not head:
        return {}
    from transformers import AutoConfig

    path = folder / ADAPTER_BASE if is_adapter(folder) else folder
    config = AutoConfig.from_pretrained(path)
    known = config_fields(config)
    aliases = {"dropout": (*OWN_DROPOUT.get(task.auto_class, ()), *DROPOUT), "hidden": WIDTH}
    found, mistakes = {}, []
    for name, value in head.items():
        fields = [field for field in aliases.get(name, (name,)) if field in known]
        if name in aliases and not task.has_head:
            what = f"task {task.name} puts no head of its own on the model"
            mistakes.append(Mistake(f"head.{name}", what, "a field of the model's config"))
        elif name in task.head() or name in ("num_labels", "id2label", "label2id"):
            mistakes.append(Mistake(f"head.{name}", "the labels of the data set it", "", "take it out"))
        elif not fields:
            mistakes.append(_unknown(name, config.model_type, known))
        elif name == "dropout" and not (isinstance(value, int | float) and 0 <= value < 1):
            mistakes.append(Mistake(f"head.{name}", repr(value), "a number from 0 to 1, below 1"))
        elif _is_out_of_range(value, own := getattr(config, fields[0], None)):
            mistakes.append(Mistake(f"head.{name}", repr(value), "a number from 0 on", f"the model's own is {own}"))
        else:
            found[fields[0]] = value
    if mistakes:
        raise UsageError(*mistakes)
    try:
        AutoConfig.from_pretrained(path, **found)
    except Exception as error:  # whatever a config's own checks raise
        what = f"{config.model_type} does not take it ({' '.join(str(error).split())})"
        raise UsageError(Mistake("head", what, "values that its config takes")) from error
    return found


def refuse_without_effect(model: Any, head: Mapping[str, Any]) -> None:
    """The config had a field for the dropout: the module must be there, too.

    Raises:
        UsageError: the head that the task put on the model has no dropout.
    """
    from torch import nn

    if "dropout" not in head:
        return
    body = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    drops = [m.p for m in model.modules() if isinstance(m, nn.Dropout) and id(m) not in body]
    if head["dropout"] not in drops:
        found = f"{type(model).__name__} does not apply it to its head"
        raise UsageError(Mistake("head.dropout", found, "a model with dropout in front of its head", "take it out"))


def _is_out_of_range(value: Any, own: Any) -> bool:
    """Negative, infinite or no number, where the model has a count, a width, a probability: a number from 0 on."""
    numbers = isinstance(value, int | float) and isinstance(own, int | float)
    return numbers and own >= 0 and not 0 <= value < math.inf


def _unknown(name: str, kind: str, known: set[str]) -> Mistake:
    parts = ("classifier", "summary", "dropout", "pdrop", "pooler", "pooling")
    there = sorted(field for field in known if any(part in field for part in parts))
    what = {"dropout": "no field for the dropout of its head", "hidden": "no field for the width of its head"}
    guess = "" if name in what else nearest(name, known | what.keys())
    mend = guess if guess.startswith("did you mean") else f"there is {', '.join(there) or 'nothing of the kind'}"
    return Mistake(f"head.{name}", f"{kind} has {what.get(name, f'no field {name!r}')}", "a field of its config", mend)
