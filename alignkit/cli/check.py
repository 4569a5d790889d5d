"""`alignkit check`: validate a recipe without training, and print its plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    from alignkit.data import Example
    from alignkit.recipe import Recipe


def command(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="The recipe: .yaml, .toml or .json.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Override a field: adversary.epsilon=0.3")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A plugin that cannot be loaded is an error.")] = False,
) -> None:
    """Validate a recipe and its data without training, and print the plan. Exit code 2 with every mistake."""
    from alignkit.recipe import Recipe

    if schema:
        print(json.dumps(Recipe.json_schema(), indent=2, ensure_ascii=False))
        return
    if recipe is None:
        raise UsageError(Mistake("alignkit check", "no recipe", "the path of a recipe", "or --schema"))
    print(checked(recipe, set_ or [], strict))


def checked(path: Path, overrides: list[str], strict: bool = False) -> str:
    """The recipe's plan as text.

    Raises:
        UsageError: all mistakes of the recipe, its data and its model, and all that cannot go together.
    """
    from alignkit import checking

    recipe = checking.load(path, overrides, strict)
    found = checking.checked(recipe)
    return found.plan.render() + _search(recipe, found.splits)


def _search(recipe: Recipe, splits: dict[str, list[Example]]) -> str:
    """What `alignkit tune` would do with the recipe; nothing where it has no `tune:` section."""
    if recipe.tune is None:
        return ""
    from alignkit.tuning.space import checked as searched

    search = searched(recipe, splits)
    fields = ", ".join(search.space.domains)
    return f"\n\nSearch\n  {recipe.tune.trials} trials of {fields}\n  best by validation {search.metric}"
