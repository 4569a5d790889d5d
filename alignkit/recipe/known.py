"""A recipe with mistakes: what there is to say of them, which fields may have been meant, what is known even so."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from alignkit.data.source import Data, Source
from alignkit.errors import closest
from alignkit.models.adapters import Method, Peft
from alignkit.recipe import training
from alignkit.recipe.errors import Place, Problem, problems_of
from alignkit.recipe.evaluation import Evaluation
from alignkit.recipe.parts import Making
from alignkit.recipe.training import EarlyStopping
from alignkit.recipe.tuning import Tune
from alignkit.sections import partly

if TYPE_CHECKING:
    from alignkit.recipe.model import Recipe

SECTIONS: dict[str, type[BaseModel]] = {
    "data": Data,
    "evaluation": Evaluation,
    "peft": Peft,
    "early_stopping": EarlyStopping,
    "tune": Tune,
}
"""Fields that have fields of their own."""
PARTED = ("data", "evaluation", "peft")
"""Sections of which the rest is known where one of their fields is wrong."""
_FIRST = {"data": "train", "early_stopping": "patience"}
"""Sections and what is meant where one is given as a single value."""


def problems_in(recipe: type[Recipe], error: ValidationError, given: Mapping[str, Any]) -> list[Problem]:
    """Every problem that pydantic found in a recipe's fields."""
    found = problems_of(error, given, partial(_fields_at, recipe), partial(_description_of, recipe))
    return [_placed(problem) for problem in found]


def known_of(
    recipe: type[Recipe],
    given: Mapping[str, Any],
    making: Making,
    wrong: Collection[Place],
    items: Mapping[Place, Mapping[int, Any]],
) -> Recipe:
    """What is known of a recipe with mistakes.

    Args:
        wrong: where they are.
        items: of lists with mistakes in them the other items, by number.
    """
    doubtful = _meant([place[0] for place in wrong if place], recipe)
    if any(training.meant(str(place[0])) for place in wrong if place):
        doubtful.add("training")
    whole: dict[str, Any] = {name: list(items[name,].values()) for name in ("controls",) if (name,) in items}
    for name in doubtful & set(PARTED):
        inside = [place[1] for place in wrong if place[0] == name and len(place) > 1]
        if inside and isinstance(given.get(name), Mapping):
            own = {str(place[1]): list(found.values()) for place, found in items.items() if place[0] == name}
            whole[name] = partly(SECTIONS[name], given[name], making.sound, _meant(inside, SECTIONS[name]), own)
    known = partly(recipe, given, making.sound, doubtful, whole)
    known._made = [component for component in making.names.values() if component is not None]
    known._sound = items
    return known


def _meant(named: Iterable[str | int], section: type[BaseModel]) -> set[str]:
    """The fields that are named, or may have been meant."""
    return {guess for name in named if (guess := closest(str(name), section.model_fields))}


def _fields_at(recipe: type[Recipe], place: Place) -> Iterable[str]:
    """The names of the fields at a place of the recipe."""
    section = str(place[0]) if place else ""
    if section == "data" and len(place) > 1:
        return Source.model_fields
    return SECTIONS.get(section, recipe).model_fields


def _description_of(recipe: type[Recipe], place: Place) -> str:
    info = recipe.model_fields.get(str(place[0])) if len(place) == 1 else None
    return (info.description or "") if info else ""


def _placed(problem: Problem) -> Problem:
    """A field at the top that belongs into a section; a section that is written as if it were one field of it."""
    name = str(problem.place[0]) if len(problem.place) == 1 else ""
    if problem.found.startswith("unknown field") and (argument := training.meant(name)):
        mend = f"write it under `training:`, as `training.{argument}`"
        return replace(problem, mend=mend if argument == name else f"did you mean `training.{argument}`?")
    if problem.found.startswith("unknown field") and name in get_args(Method):
        return replace(problem, mend=f"write `peft: {name}`")
    if problem.expected == "a mapping" and name in _FIRST and problem.found[-1] not in "]}":
        return replace(problem, mend=f"write {{{_FIRST[name]}: {problem.found}}}")
    return problem
