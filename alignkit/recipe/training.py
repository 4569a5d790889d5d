"""The sections `training:`, any field of transformers.TrainingArguments, and `early_stopping:`, before any loading."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, ValidationError

from alignkit.errors import nearest
from alignkit.recipe.errors import Problem, problems_of, shown

RECIPE_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3,
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "report_to": "none",
}
"""What a recipe trains with where it says nothing; all other arguments are transformers' own. Without a validation
split `eval_strategy` is `no`; where a recipe sets `eval_strategy`, saving follows it."""

OURS = {
    "output_dir": "write `output:` at the top of the recipe",
    "seed": "write `seed:` at the top of the recipe",
    "data_seed": "take it out: the recipe's `seed:` is used for the data, too",
    "remove_unused_columns": "take it out: columns that only components read do not reach the model",
    "load_best_model_at_end": "write `early_stopping:` at the top of the recipe",
    "resume_from_checkpoint": "run `alignkit train RECIPE --resume`",
    "do_train": "take it out: the command says what is done",
    "do_eval": "take it out: the command says what is done",
    "do_predict": "take it out: the command says what is done",
}
"""Arguments that alignkit sets itself, and what to do instead."""


AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "num_train_epochs": 0,
}
"""What TrainingArguments takes without a word and training then fails at."""


class EarlyStopping(BaseModel):
    """Stop when the validation split no longer gets better, and keep the best checkpoint."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    patience: PositiveInt
    """Evaluations without an improvement."""
    metric: str | None = None
    """What is looked at; by default the task's own metric."""


@cache
def hints() -> dict[str, Any]:
    """Name -> type of every field of TrainingArguments. Imports transformers."""
    from transformers import TrainingArguments

    types = get_type_hints(TrainingArguments)
    return {field.name: types[field.name] for field in dataclasses.fields(TrainingArguments) if field.init}


def merged(training: Mapping[str, Any], validation: bool) -> dict[str, Any]:
    """The recipe's arguments over the defaults."""
    arguments = {**RECIPE_DEFAULTS, **training}
    if not validation and "eval_strategy" not in training:
        arguments["eval_strategy"] = "no"
    elif training.get("eval_strategy") == "steps":
        arguments["save_strategy"] = training.get("save_strategy", "steps")
        if "eval_steps" in training and arguments["save_strategy"] == "steps":
            arguments["save_steps"] = training.get("save_steps", training["eval_steps"])
    return arguments


def checked(
    training: Mapping[str, Any], validation: bool, early_stopping: bool = False
) -> tuple[dict[str, Any], list[Problem]]:
    """The arguments, as the types of TrainingArguments make them, and everything that is wrong with them."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in training.items():
        if name in OURS:
            problems.append(Problem((name,), "alignkit sets it itself", mend=OURS[name]))
        elif name not in hints():
            problems.append(Problem((name,), f"unknown field {name!r}", mend=_nearest(name)))
        else:
            values[name], wrong = _value(value, hints()[name])
            if not wrong and name in AT_LEAST and values[name] < AT_LEAST[name]:
                wrong = [Problem((), shown(value), f"{AT_LEAST[name]} or more")]
            problems += [problem.under((name,)) for problem in wrong]
    if not problems and early_stopping:
        problems += _unstoppable(merged(values, validation))
    if not problems and training:
        problems += _built(merged(values, validation) | ({"load_best_model_at_end": True} if early_stopping else {}))
    return values, problems


def _unstoppable(arguments: Mapping[str, Any]) -> Iterator[Problem]:
    """What keeps early stopping from going back to the checkpoint of the best evaluation."""
    evaluated, saved = (str(arguments[name]) for name in ("eval_strategy", "save_strategy"))
    if evaluated == "no":
        yield Problem(("eval_strategy",), shown(evaluated), "epoch or steps", "early stopping looks at evaluations")
    elif saved not in (evaluated, "best"):
        mend = "early stopping goes back to the checkpoint of the best evaluation"
        yield Problem(("save_strategy",), shown(saved), f"{evaluated}, as eval_strategy", mend)


def meant(name: str) -> str:
    """The argument of that name, or one that recipes often set and that is called so for short: `epochs`, `lr`."""
    if name in hints():
        return name
    short = (known for known in RECIPE_DEFAULTS if known.endswith(f"_{name}") or _initials(known) == name)
    return next(short, "")


def _initials(name: str) -> str:
    return "".join(part[0] for part in name.split("_"))


def _nearest(name: str) -> str:
    guess = nearest(name, hints())
    return guess if guess.startswith("did") else "name a field of transformers.TrainingArguments, or take it out"


def _value(value: Any, hint: Any) -> tuple[Any, list[Problem]]:
    members = get_args(hint) or (hint,)
    if isinstance(value, bool) and bool not in members and not ({str, dict} & set(members)):
        return value, [Problem((), shown(value), "a number")]  # pydantic would take it for 0 or 1
    for choices in (m for m in members if isinstance(m, type) and issubclass(m, Enum)):
        known = [str(choice.value) for choice in choices]
        if isinstance(value, str) and value not in known:
            begins_alike = [choice for choice in known if choice.startswith(value)]
            guess = f"did you mean {begins_alike[0]!r}?" if begins_alike else nearest(value, known)
            listed = "" if guess.startswith("did") else f"one of {', '.join(known)}"
            return value, [Problem((), shown(value), listed, guess if not listed else "")]
    try:
        typed = TypeAdapter(hint).validate_python(value)
        return (value if typed == value else typed), []  # 3 stays 3 where a float would do
    except ValidationError as error:
        return value, problems_of(error, value, lambda _: (), lambda _: "")


def _built(arguments: dict[str, Any]) -> list[Problem]:
    """What TrainingArguments itself refuses: values that exclude each other, precisions that the machine lacks."""
    from transformers import TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        try:
            TrainingArguments(output_dir=folder, **arguments)
        except (ValueError, TypeError, ImportError, OSError, RuntimeError, AssertionError) as error:
            return [Problem((), " ".join(str(error).split()))]
    return []
