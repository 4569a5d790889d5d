"""What a run's controls read, kept in its folder: they control the saved model as they did, wherever it is moved."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.checkpoints import write_json
from alignkit.errors import Mistake
from alignkit.run_folder import CONTROLS

if TYPE_CHECKING:
    from alignkit.components import Control
    from alignkit.recipe import Recipe

FILES = "files.kept.json"  # no control can be called `files.kept`, whose state this would be
"""By control, field and number in a list: the path as the recipe writes it, and where what it names is."""
MODELS = (".gguf", ".safetensors", ".bin", ".onnx", ".pt")
"""Suffixes of files that are models: those, like folders, are not copied, but found where they were."""


def keep(recipe: Recipe, folder: Path) -> None:
    """Copy the files that a recipe's controls name into a run's folder, and note where their models are.

    What the folder has kept before, of a run that goes on, stays as it is.
    """
    before, noted = _noted(folder), dict[str, dict[str, str]]()
    for control in recipe.controls:
        for place, path in _paths(control):
            known = before.get(f"{control.name}.{place}", {})
            lost = "copy" in known and not _copy(known, folder).is_file()
            if lost or not _is_of(known, path, recipe):
                inside = Path(control.name, *place.split("."))
                known = {"path": _as_written(path, recipe), **_kept(path, inside, folder)}
            noted[f"{control.name}.{place}"] = known
    if noted:
        (folder / CONTROLS).mkdir(parents=True, exist_ok=True)
        write_json(folder / CONTROLS / FILES, noted)


def controls_of(recipe: Recipe, folder: Path) -> list[Control]:
    """The controls of a run's recipe; fields that say what they said when it was trained name what the run kept."""
    noted, found = _noted(folder), []
    for control in recipe.controls:
        own = copy.copy(control)
        for place, path in _paths(control):
            known = noted.get(f"{control.name}.{place}", {})
            if _is_of(known, path, recipe):
                _put(own, place, _found(path, known, folder))
        found.append(own)
    return found


def missing(controls: Iterable[Control]) -> Iterator[Mistake]:
    """What a run's controls name and is nowhere any more."""
    for control in controls:
        for place, path in _paths(control):
            if path.is_absolute() and not path.exists():  # others are names: `package:NAME`, hub ids
                mend = f"name another by --set {control.name}.{place}=PATH, or leave the run's controls out"
                where, found = f"control {control.name} {place}", f"{path} does not exist"
                yield Mistake(where, found, "what the run was made with", mend)


def _noted(folder: Path) -> dict[str, dict[str, str]]:
    file = folder / CONTROLS / FILES
    found: dict[str, dict[str, str]] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def _kept(path: Path, inside: Path, folder: Path) -> dict[str, str]:
    """Of a file its copy in the folder, written whole; of a model where it is, or the name that is no path."""
    if not path.is_file() or path.suffix.lower() in MODELS:
        return {"absolute": str(path.absolute() if path.exists() else path)}
    copied = folder / CONTROLS / inside / path.name
    copied.parent.mkdir(parents=True, exist_ok=True)
    unfinished = copied.with_name(f"{path.name}.tmp")
    shutil.copyfile(path, unfinished)
    os.replace(unfinished, copied)
    return {"copy": (inside / path.name).as_posix()}


def _copy(known: dict[str, str], folder: Path) -> Path:
    return (folder / CONTROLS / known["copy"]).absolute()


def _found(path: Path, known: dict[str, str], folder: Path) -> Path:
    if "copy" in known:
        return _copy(known, folder)
    there = Path(known["absolute"])  # first: something else may stand where the path leads since the run was moved
    return path if there.is_absolute() and not there.exists() and path.exists() else there


def _is_of(known: dict[str, str], path: Path, recipe: Recipe) -> bool:
    """A note is of this path, wherever the recipe's base has been moved."""
    return "path" in known and recipe.resolve_path(known["path"]) == recipe.resolve_path(path)


def _paths(control: Control) -> Iterator[tuple[str, Path]]:
    """Fields that are paths, and items of fields that are lists of them: `phrases`, `lists.0`."""
    for name, value in control.fields().items():
        items = enumerate(value) if isinstance(value, list | tuple) else ()
        yield from ((f"{name}.{number}", item) for number, item in items if isinstance(item, Path))
        if isinstance(value, Path):
            yield name, value


def _put(control: Control, place: str, path: Path) -> None:
    name, _, number = place.partition(".")
    value: Any = path
    if number:
        held = getattr(control, name)
        value = type(held)([*held[: int(number)], path, *held[int(number) + 1 :]])
    setattr(control, name, value)


def _as_written(path: Path, recipe: Recipe) -> str:
    """A path as a recipe that is saved writes it."""
    return path.relative_to(recipe.base).as_posix() if path.is_relative_to(recipe.base) else str(path)
