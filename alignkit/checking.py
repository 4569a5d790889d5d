"""Everything that can be known of a recipe before weights are loaded: its data, its model, what goes together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.compose import Composition
from alignkit.data.load import abridged, read
from alignkit.data.load import load as load_data
from alignkit.data.read import missing
from alignkit.errors import Mistake, PluginError, UsageError, nearest
from alignkit.evaluation import evaluators
from alignkit.findings import UNSETTLED, Findings, Unsettled
from alignkit.plan import Plan
from alignkit.preflight import planned
from alignkit.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from alignkit.data import Example
    from alignkit.data.source import Source


@dataclass(frozen=True)
class Checked:
    """A recipe in which no mistake was found."""

    splits: dict[str, list[Example]]
    """Its data, as its task has prepared it."""
    rows: evaluators.Rows
    """By evaluator its own rows."""
    composition: Composition
    plan: Plan


def checked(recipe: Recipe, findings: Findings | None = None) -> Checked:
    """Read a recipe's data, compose it and plan it.

    Args:
        recipe: what is known of it: a part in which there are mistakes hides those of no other part.
        findings: mistakes that were found before.

    Raises:
        UsageError: with everything that was found, now and before.
    """
    findings = Findings() if findings is None else findings
    splits = findings.once(lambda: load_data(recipe.data, recipe.task, recipe.base))
    rows = findings.once(lambda: evaluators.read(recipe.evaluation.evaluators, recipe.base))
    before = len(findings.mistakes)
    if findings.ask(splits) is UNSETTLED and len(findings.mistakes) == before:
        findings.hear(lambda: _in_files(recipe))
    findings.ask(rows)
    findings.hear(lambda: _unmeasured(recipe, splits()))
    try:
        composition, plan = planned(recipe, lambda: splits()["train"], findings)
    except UsageError as error:
        raise UsageError(*map(recipe.placed, error.mistakes)) from error
    return Checked(splits(), rows(), composition, plan)


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    strict: bool = False,
    beside: Callable[[Recipe], object] = lambda recipe: None,
) -> Recipe:
    """As `Recipe.load`; where the recipe has mistakes, those that `checked` finds beside them are told with them.

    Args:
        beside: raises what else is wrong.
    """
    try:
        return Recipe.load(path, overrides, strict)
    except RecipeError as error:
        known, findings = error.known, Findings(error.mistakes)
        findings.ask(lambda: beside(known))
        with contextlib.suppress(PluginError):  # the user's own mistakes come first
            checked(known, findings)
        raise


def _in_files(recipe: Recipe) -> Iterator[Mistake]:
    """What is wrong with files by themselves, where the splits, or the task that reads them, are not all known."""
    for split, value in vars(recipe.data).items():
        for source in (source for sources in _listed(value) for source in sources):
            try:
                yield from abridged(read(source, recipe.task, recipe.base, split)[1], source.path)
            except Unsettled:
                yield from filter(None, [missing(source, recipe.base)])


def _listed(split: Any) -> Iterable[list[Source]]:
    return split.values() if isinstance(split, dict) else [split or []]


def _unmeasured(recipe: Recipe, splits: dict[str, list[Example]]) -> Iterator[Mistake]:
    """A metric to stop by that the validation split does not give."""
    from alignkit.evaluation.score import measure

    metric = recipe.early_stopping.metric if recipe.early_stopping else None
    if metric is not None and "validation" in splits:
        known = {"loss", *measure(recipe.task, splits["validation"][:1], [{}])}
        known |= {f"penalty/{constraint.name}" for constraint in recipe.constraints}
        if metric not in known:
            found = f"{metric!r} is not measured on the validation split"
            yield Mistake("early_stopping.metric", found, "a metric", nearest(metric, known))
