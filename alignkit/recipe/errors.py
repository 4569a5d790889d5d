"""From pydantic's errors to mistakes that name file, line, dotted path, what was found and what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import ArgsKwargs

from alignkit.errors import Mistake, PluginError, UsageError, closest, nearest

if TYPE_CHECKING:
    from alignkit.recipe.model import Recipe

Place = tuple[str | int, ...]
"""Keys and list positions from the recipe's root."""

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_LISTS = ("list_type", "tuple_type", "set_type", "frozen_set_type")
"""A recipe has one way to write them all."""


@dataclass(frozen=True)
class Problem:
    """A mistake at a place of the recipe, which only its reader can turn into a file and a line."""

    place: Place
    found: str
    expected: str = ""
    mend: str = ""
    plugins: bool = False
    """A plugin's fault, not the user's."""

    def under(self, prefix: Place) -> Problem:
        return Problem((*prefix, *self.place), self.found, self.expected, self.mend, self.plugins)


class Problems(ValueError):
    """Raised inside validators, so that pydantic goes on and collects the others.

    Args:
        sound: of a list, the items that have no problem, by number.
    """

    def __init__(self, problems: Iterable[Problem], sound: dict[int, Any] | None = None):
        self.problems, self.sound = list(problems), sound
        super().__init__("; ".join(problem.found for problem in self.problems))


class RecipeError(UsageError):
    """A recipe's mistakes, with what is known of it, so that the rest can be checked, too.

    Args:
        known: the recipe without what is wrong: asked for that, it raises `Unsettled`.
    """

    def __init__(self, *mistakes: Mistake | str, known: Recipe):
        super().__init__(*mistakes)
        self.known = known


def locate(place: Place, lines: Mapping[Place, str], root: str = "") -> str:
    """`recipe.yaml:12 adversary.epsilon`; the override itself where the value came from one."""
    known = line_of(place, lines, root)
    return known if known.startswith("--set") else f"{known} {'.'.join(map(str, place))}".strip()


def line_of(place: Place, lines: Mapping[Place, str], root: str = "") -> str:
    """`recipe.yaml:12`, or the override, of a place or of the nearest one that it is in."""
    return next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), root)


def raised(
    problems: Sequence[Problem], mistakes: Sequence[Mistake], lines: Mapping[Place, str], root: str, known: Recipe
) -> UsageError | PluginError:
    """The error that reports everything: the user's to mend, unless plugins alone are at fault."""
    located = [Mistake(locate(p.place, lines, root), p.found, p.expected, p.mend) for p in problems]
    if not mistakes and problems and all(p.plugins for p in problems):
        return PluginError("\n".join(map(str, located)))
    return RecipeError(*mistakes, *located, known=known)


def problems_of(
    error: ValidationError, data: Any, known: Callable[[Place], Iterable[str]], describe: Callable[[Place], str]
) -> list[Problem]:
    """Every problem that pydantic found, one per place.

    Args:
        data: what was validated.
        known: the names of the fields at a place.
        describe: the description of the field at a place.
    """
    found: dict[Place, Problem] = {}
    details = error.errors(include_url=False)
    wrong_inside = {detail["loc"][:n] for detail in details for n in range(len(detail["loc"]))}
    for detail in details:
        if detail["type"] == "too_short" and detail["loc"] in wrong_inside:
            continue  # without its wrong items, which are reported themselves
        nested = detail.get("ctx", {}).get("error")
        where = _address(detail["loc"], data, keep_last=detail["type"] in ("missing", *_UNKNOWN))
        if isinstance(nested, Problems):
            found |= {p.place: p for p in (inner.under(where) for inner in nested.problems)}
            continue
        problem = _problem(dict(detail), where, known, describe)
        if earlier := found.get(where):  # the members of a union, each with its own complaint
            expected = " or ".join(dict.fromkeys(filter(None, (earlier.expected, problem.expected))))
            problem = Problem(where, earlier.found, expected, earlier.mend)
        found[where] = problem
    for place in [detail["loc"] for detail in details if detail["type"] in _UNKNOWN]:
        where = _address(place, data, keep_last=True)
        meant = (*where[:-1], closest(str(where[-1]), known(where[:-1])) or "")
        if meant in found and found[meant].found == "missing":  # it is there, misspelt
            del found[meant]
    return list(found.values())


def first_clause(description: str) -> str:
    """What a field's description begins with, up to the first full stop or semicolon."""
    return re.split(r"[.;](?:\s|$)", " ".join(description.split()), maxsplit=1)[0]


def sound_items(error: ValidationError) -> dict[Place, dict[int, Any]]:
    """Of every list that has items with problems those that have none, by number."""
    nested = ((detail["loc"], detail.get("ctx", {}).get("error")) for detail in error.errors(include_url=False))
    return {place: e.sound for place, e in nested if isinstance(e, Problems) and e.sound is not None}


def shown(value: Any) -> str:
    """A value as a message shows it."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping | list | tuple):
        text = repr(value)
        return text if len(text) <= 60 else f"a {'mapping' if isinstance(value, Mapping) else 'list'}"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(str(value)) if isinstance(value, str | Path) else repr(value)[:80]


def _problem(
    detail: dict[str, Any], where: Place, known: Callable[[Place], Iterable[str]], describe: Callable[[Place], str]
) -> Problem:
    kind, message = detail["type"], detail["msg"]
    if kind in _LISTS:
        given = detail["input"]
        single = isinstance(given, int | float | str) and not isinstance(given, bool)
        return Problem(where, shown(given), "a list", f"write [{given}]" if single else "")
    if kind in _UNKNOWN:
        return Problem(where, f"unknown field {where[-1]!r}", mend=nearest(str(where[-1]), known(where[:-1])))
    if kind == "missing":
        meaning = first_clause(describe(where))
        abbreviated = meaning[1:2].isupper() or meaning[1:2].isdigit()
        return Problem(where, "missing", meaning if abbreviated else meaning[:1].lower() + meaning[1:])
    if kind in ("value_error", "assertion_error"):
        message = message.partition(", ")[2]
        if not message.startswith("expected "):
            whole = isinstance(detail["input"], Mapping | ArgsKwargs)  # the complaint is about several fields together
            return Problem(where, message if whole else f"{shown(detail['input'])}: {message}")
        message = message.removeprefix("expected ")
    elif kind == "is_instance_of":
        message = f"a component of kind {detail['ctx']['class'].lower()}"
    elif kind == "too_short":
        least = detail["ctx"]["min_length"]
        message = f"at least {'one' if least == 1 else least}"
    elif kind == "literal_error":
        message = detail["ctx"]["expected"]
    elif kind.startswith(("greater_than", "less_than")):
        message = message.replace("Input should be", "a number", 1)
    else:
        message = message.removeprefix("Input should be ").partition(", ")[0]
        message = message.partition(" or instance of ")[0].replace("a valid dictionary", "a mapping")
        message = message.replace("a valid ", "a ").replace("a integer", "an integer")
    return Problem(where, shown(detail["input"]), message)


def _address(location: tuple[int | str, ...], data: Any, keep_last: bool) -> Place:
    """A pydantic location without what is not in the data: union members, lists made of single values."""
    place: list[str | int] = []
    for part in location:
        held = isinstance(data, Mapping) and part in data
        if held or (isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)):
            place.append(part)
            data = data[part]
        elif keep_last and part == location[-1]:
            place.append(part)
    return tuple(place)
