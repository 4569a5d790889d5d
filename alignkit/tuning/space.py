"""What is searched: the recipes that a `tune:` section spans, all checked before the first trial."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alignkit.data.load import load
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.evaluation.score import measure
from alignkit.evaluation.table import better_direction
from alignkit.preflight import plan_of
from alignkit.recipe.errors import shown
from alignkit.recipe.tuning import Choices, Range, Tune, label

if TYPE_CHECKING:
    import optuna

    from alignkit.data import Example
    from alignkit.recipe import Recipe

Values = dict[str, Any]
"""Dotted path of a field -> value."""


class Space:
    """The fields that are searched, those that others stand in first.

    A field of something that a trial takes as null (`adversary.epsilon` where `adversary` is null) has no value there.
    """

    def __init__(self, tune: Tune):
        self.domains: dict[str, Range | Choices] = dict(
            sorted(tune.search.items(), key=lambda item: len(_parents(item[0])))
        )

    def suggest(self, trial: optuna.Trial) -> Values:
        """The values of a trial, by optuna's sampler; choices are known to it by their labels."""
        values: Values = {}
        for path, domain in self.domains.items():
            if not self._applies(path, values):
                continue
            if isinstance(domain, list):
                chosen = trial.suggest_categorical(path, [label(choice) for choice in domain])
                values |= self.values({path: chosen})
            elif domain.integers:
                step = int(domain.step or 1)
                values[path] = trial.suggest_int(path, int(domain.low), int(domain.high), step=step, log=domain.log)
            else:
                low, high = float(domain.low), float(domain.high)
                values[path] = trial.suggest_float(path, low, high, step=domain.step, log=domain.log)
        return values

    def suggested(self, values: Values) -> Values:
        """Values as `suggest` asks optuna for them."""
        return {path: label(value) if isinstance(self.domains[path], list) else value for path, value in values.items()}

    def values(self, suggested: Values) -> Values:
        """What `suggested` was made of."""
        found: Values = {}
        for path, domain in self.domains.items():
            if path in suggested:
                by_label = {label(choice): choice for choice in domain} if isinstance(domain, list) else {}
                found[path] = by_label.get(suggested[path], suggested[path])
        return found

    def combinations(self, limit: int, seed: int) -> list[Values] | None:
        """All there are, shuffled; None where there are more than `limit`."""
        sizes = [_size(domain) for domain in self.domains.values()]
        if math.prod(sizes) > 100 * limit:  # those with a null in them may be fewer than the product
            return None
        found: dict[tuple[tuple[str, str], ...], Values] = {}
        for chosen in itertools.product(*map(_members, self.domains.values())):
            values: Values = {}
            for path, value in zip(self.domains, chosen, strict=True):
                if self._applies(path, values):
                    values[path] = value
            found.setdefault(tuple((path, label(value)) for path, value in values.items()), values)
        if len(found) > limit:
            return None
        shuffled = list(found.values())
        random.Random(seed).shuffle(shuffled)
        return shuffled

    def first(self) -> Values:
        """Of each field the first choice, or the lower end of its range."""
        values: Values = {}
        for path, domain in self.domains.items():
            if self._applies(path, values):
                values[path] = _ends(domain)[0]
        return values

    def edges(self) -> Iterator[tuple[str, Values]]:
        """Each field with both ends of its range, or every choice, under every value of what it stands in."""
        for path, domain in self.domains.items():
            above = [parent for parent in _parents(path) if parent in self.domains]
            for held in itertools.product(*(_ends(self.domains[parent]) for parent in above)):
                values = dict(zip(above, held, strict=True))
                if self._applies(path, values):
                    yield from ((path, {**values, path: value}) for value in _ends(domain))

    def _applies(self, path: str, values: Values) -> bool:
        return all(values.get(parent) is not None for parent in _parents(path) if parent in self.domains)


@dataclass(frozen=True)
class Search:
    """A recipe's `tune:` section, found valid."""

    space: Space
    metric: str
    greater_is_better: bool


def checked(recipe: Recipe, splits: Mapping[str, list[Example]]) -> Search:
    """The search of a recipe with a `tune:` section, every end and choice of it tried out on the recipe.

    Args:
        splits: the recipe's data, as its task has prepared it.

    Raises:
        UsageError: no validation split or no such metric, and every value that the recipe cannot take, with the field
            that it is for.
    """
    assert recipe.tune is not None
    mistakes: dict[Mistake, None] = {}
    metric, direction = recipe.tune.metric or recipe.task.metric, 1
    if "validation" not in splits:
        found = "there is no validation split that trials could be compared on"
        mistakes[Mistake(recipe.where("tune"), found, mend="name one as `data.validation`")] = None
    else:
        directions = _directions(recipe, splits["validation"])
        direction = directions.get(metric, 0)
        if not direction:
            found = f"{metric!r} is no metric of task {recipe.task.name} that says which way is better"
            mistakes[Mistake(recipe.where("tune", "metric"), found, "a metric", nearest(metric, directions))] = None
    space = Space(recipe.tune)
    refused: set[tuple[str, str]] = set()
    for path, values in space.edges():
        if any((parent, label(value)) in refused for parent, value in values.items()):
            continue
        try:
            _refuse(recipe.varied(values), path, splits)
        except UsageError as error:
            refused.add((path, label(values[path])))
            mistakes |= dict.fromkeys(_told(recipe, path, values, mistake) for mistake in error.mistakes)
    if mistakes:
        raise UsageError(*mistakes)
    return Search(space, metric, greater_is_better=direction > 0)


def _directions(recipe: Recipe, validation: list[Example]) -> dict[str, int]:
    """Metric -> 1 where more is better, -1 where less is."""
    task = recipe.task
    known = measure(task, validation[:1], [{}])
    found = {name: better_direction(name, task.metric, task.greater_is_better) for name in known}
    return {name: direction for name, direction in found.items() if direction}


def _refuse(recipe: Recipe, path: str, splits: Mapping[str, list[Example]]) -> None:
    """What can be found out about a recipe without training it."""
    if path.startswith(("data.", "task.")):
        splits = load(recipe.data, recipe.task, recipe.base)
    else:
        recipe.task.prepare(splits)  # the plan depends on the labels
    plan_of(recipe, splits["train"])


def _told(recipe: Recipe, path: str, values: Mapping[str, Any], mistake: Mistake) -> Mistake:
    """A mistake of a varied recipe, at the field of the search that brought it about."""
    given = [f"{parent} {shown(value)}" for parent, value in values.items() if parent != path]
    under = f"with {', '.join(given)}: " if given else ""
    at_path = mistake.where in (path, "") or path.startswith(f"{mistake.where}.")
    found = mistake.found if at_path else f"{shown(values[path])} gives {mistake.where}: {mistake.found}"
    return replace(mistake, where=recipe.where("tune", "search", path), found=under + found)


def _parents(path: str) -> list[str]:
    """`a`, `a.b` of `a.b.c`."""
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _ends(domain: Range | Choices) -> list[Any]:
    return domain if isinstance(domain, list) else [domain.low, domain.high]


def _size(domain: Range | Choices) -> float:
    """How many values there are."""
    if isinstance(domain, list):
        return len(domain)
    step = domain.step or (1 if domain.integers else None)
    return math.inf if step is None else math.floor((domain.high - domain.low) / step + 1e-9) + 1


def _members(domain: Range | Choices) -> list[Any]:
    """All values of a domain that has a size."""
    if isinstance(domain, list):
        return domain
    step = domain.step or 1
    return [domain.low + n * step for n in range(int(_size(domain)))]
