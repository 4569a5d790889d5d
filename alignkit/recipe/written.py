"""A recipe written back: every default, every version."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from alignkit.catalogue import Catalogue
from alignkit.components import Component
from alignkit.data.source import Data
from alignkit.recipe import training
from alignkit.recipe.parts import described

if TYPE_CHECKING:
    from alignkit.recipe.model import Recipe

logger = logging.getLogger(__name__)


def resolved(recipe: Recipe, catalogue: Catalogue) -> dict[str, Any]:
    """A recipe's fields as a file writes them, with the versions of what it runs on."""

    def written(value: Any) -> Any:
        if isinstance(value, Component):
            return described(value, catalogue, recipe.base)
        if isinstance(value, list):
            return [written(item) for item in value]
        if isinstance(value, Data):
            values = value.model_dump(mode="json")
            return {**values, "test": values["test"].get("", values["test"])}
        return _options(value) if isinstance(value, BaseModel) else value

    own = recipe.components()
    gaps = [component.name if component in own else written(component) for component in recipe.evaluation.gaps]
    others = {name: written(getattr(recipe.evaluation, name)) for name in ("under", "attacks", "evaluators")}
    sections = {
        "training": training.merged(recipe.training, bool(recipe.data.validation)),
        "evaluation": {**others, "gaps": gaps, "replicates": recipe.evaluation.replicates},
    }
    names = [name for name in type(recipe).model_fields if name != "plugins"]
    values = {n: sections[n] if n in sections else written(getattr(recipe, n)) for n in (*names, "plugins")}
    if recipe.tune is None:
        del values["tune"]  # a recipe that is not searched says nothing of it
    return values | {"versions": versions(recipe, catalogue)}


def plain(value: Any, catalogue: Catalogue, base: Path) -> Any:
    """A recipe's fields as they were given, with new containers that can be written to, down to single values."""
    if isinstance(value, Component):
        return described(value, catalogue, base) if catalogue.entry_of(type(value)) else copy.copy(value)
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name), catalogue, base) for name in value.model_fields_set}
    if isinstance(value, Mapping):
        return {name: plain(item, catalogue, base) for name, item in value.items()}
    return [plain(item, catalogue, base) for item in value] if isinstance(value, list | tuple) else value


def versions(recipe: Recipe, catalogue: Catalogue) -> dict[str, Any]:
    """Versions of alignkit, python, torch, transformers and of the distributions whose components are used."""
    from alignkit import __version__

    measuring = recipe.evaluation
    asked = [*measuring.under, *measuring.gaps, *measuring.attacks, *measuring.evaluators]
    made = [recipe.task, recipe.objective, *recipe.components(), *recipe.controls, *asked]
    entries = [catalogue.entry_of(type(component)) for component in made]
    plugins = {e.distribution: e.version for e in entries if e is not None and e.version}
    plugins.pop("alignkit", None)
    return {
        "alignkit": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "plugins": dict(sorted(plugins.items())),
    }


def note_versions(written_by: Any, recipe: Recipe, catalogue: Catalogue) -> None:
    """Say so where a resolved recipe was written by other versions than those that are installed."""
    if not isinstance(written_by, Mapping):
        return
    now = versions(recipe, catalogue)
    current = {**now, **now["plugins"]}
    then = {**written_by, **(written_by.get("plugins") or {})}
    differ = [f"{n} {v} -> {current[n]}" for n, v in then.items() if n != "plugins" and current.get(n, v) != v]
    if differ:
        logger.warning("the recipe was written by other versions: %s", ", ".join(differ))


def _options(section: BaseModel) -> dict[str, Any]:
    """A section's fields with their values, without defaults that it would refuse (options of another method)."""
    values = section.model_dump(mode="json")
    given = {name: values[name] for name in values if name in section.model_fields_set}
    written = {}
    for name, value in values.items():
        with contextlib.suppress(ValidationError):
            type(section).model_validate({**given, name: value})
            written[name] = value
    return written
