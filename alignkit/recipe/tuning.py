"""The `tune:` section: which fields of the recipe are searched, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    StrictFloat,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from alignkit.recipe.errors import Problem, Problems, problems_of, shown

Number = StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)]

_EXPECTED = "a range {low: …, high: …} or a list of choices"
_FIXED = {
    "output": "every trial has a folder of its own",
    "tune": "it is the search itself",
    "plugins": "they are loaded once",
    "base": "it is where the recipe's paths start from",
    "versions": "they are what is installed",
    "task": "scores of different tasks cannot be compared; its fields can be searched: `task.FIELD`",
    "data": "name what is to change: `data.train`",
    "data.validation": "all trials are scored on the same rows",
    "data.test": "trials never see it",
    "evaluation": "it changes what is reported, not what is trained",
}
"""Fields that a search cannot change, and why: `task` and `data` as a whole, the others in any part."""


class Range(BaseModel):
    """Numbers from low to high, both included. Two integers make a range of integers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    low: Number
    """The least value."""
    high: Number
    """The greatest value."""
    log: bool = False
    """Drawn evenly by order of magnitude, as learning rates are."""
    step: Number | None = None
    """Only low, low + step, low + 2 step …"""

    @model_validator(mode="after")
    def _consistent(self) -> Range:
        if self.low >= self.high:
            raise ValueError("expected low < high")
        if self.log and self.low <= 0:
            raise ValueError("expected low > 0 where log is true")
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError("expected no step where log is true" if self.log else "expected step > 0")
        if self.integers and isinstance(self.step, float):
            raise ValueError("expected an integer as the step of integers")
        return self

    @property
    def integers(self) -> bool:
        """Only integers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Choices = list[Any]
"""Two values or more, of any type that the field takes."""


class Tune(BaseModel):
    """How `alignkit tune` searches. `alignkit train` ignores it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    search: dict[str, Range | Choices]
    """Dotted path of a field -> a range {low, high, log, step}, or a list of choices."""
    trials: PositiveInt = 20
    """How many."""
    metric: str | None = None
    """What is best, on the validation split; by default the task's own metric."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """What ends trials that do worse than others did by then."""
    startup: PositiveInt = 5
    """Trials whose values are drawn at random and, of completed ones, how many there are before one is pruned."""
    timeout: PositiveFloat | None = None
    """Seconds after which no further trial is begun."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Of the search; by default the recipe's. Every trial trains with the recipe's."""

    @field_validator("search", mode="before")
    @classmethod
    def _search(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not value:
            raise Problems([Problem((), shown(value), "a mapping: FIELD: " + _EXPECTED)])
        found: dict[str, Any] = {}
        problems: list[Problem] = []
        for path, given in ((str(path), given) for path, given in value.items()):
            try:
                _refuse_fixed(path)
                found[path] = _domain(path, given)
            except Problems as error:
                problems += [problem.under((path,)) for problem in error.problems]
        if problems:
            raise Problems(problems)
        return found


def _refuse_fixed(path: str) -> None:
    whole = ("task", "data")
    fixed = next((f for f in _FIXED if path == f or (f not in whole and path.startswith(f"{f}."))), None)
    if fixed is not None:
        raise Problems([Problem((), f"{fixed} cannot be searched", mend=_FIXED[fixed])])


def _domain(path: str, given: Any) -> Range | Choices:
    if isinstance(given, Range):
        return given
    if isinstance(given, list | tuple):
        return _choices(list(given))
    if not isinstance(given, Mapping):
        raise Problems([Problem((), shown(given), _EXPECTED, _listed(given))])
    nested = all(isinstance(value, Mapping | list) for value in given.values())
    if given and nested and not set(given) & set(Range.model_fields):
        raise Problems([Problem((), shown(given), _EXPECTED, f"write the whole path: `{path}.{next(iter(given))}`")])
    try:
        return Range.model_validate(given)
    except ValidationError as error:
        raise Problems(problems_of(error, given, lambda _: Range.model_fields, _meaning)) from error


def _choices(given: Choices) -> Choices:
    written = [label(choice) for choice in given]
    if len(given) < 2:
        raise Problems([Problem((), shown(given), "two choices or more", "a single value belongs into the recipe")])
    if twice := [shown(choice) for n, choice in enumerate(given) if written[n] in written[:n]]:
        raise Problems([Problem((), f"{', '.join(twice)} twice", "different choices")])
    return given


def label(choice: Any) -> str:
    """A choice as text: what it is called in files, and what tells it from others (1 from true and from 1.0)."""
    return choice if isinstance(choice, str) and not _reads_as_another(choice) else json.dumps(choice, default=str)


def _reads_as_another(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _listed(given: Any) -> str:
    return f"write [{given}, …]" if isinstance(given, str | int | float) else ""


def _meaning(place: tuple[str | int, ...]) -> str:
    info = Range.model_fields.get(str(place[0])) if len(place) == 1 else None
    return (info.description or "") if info else ""
