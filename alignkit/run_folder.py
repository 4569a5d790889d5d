"""A run's folder: the names of what is in it, and what must be true before anything is written there."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    from alignkit.recipe import Recipe

RECIPE, METRICS, AUDIT = "recipe.yaml", "metrics.json", "audit.jsonl"
ATTACKS, EVALUATIONS = "attacks.jsonl", "evaluations.jsonl"
MODEL, CHECKPOINTS, MEMORY, CONTROLS = "model", "checkpoints", "memory", "controls"

_NOT_COMPARED = ("base", "output", "tune", "versions")
"""Fields of two recipes that may differ although both train the same."""


def checked(recipe: Recipe, *, resume: bool, overwrite: bool) -> Path:
    """The folder that a recipe's run may write to; nothing is changed yet.

    Raises:
        UsageError: there is none, it cannot be written to, or something in it would be lost.
    """
    if resume and overwrite:
        raise UsageError(Mistake("--resume --overwrite", "both", "one of them", "--overwrite starts from scratch"))
    if recipe.output is None:
        raise UsageError(
            Mistake("output", "missing", "a folder for the run", "add `output: runs/NAME` or pass --output")
        )
    folder = recipe.resolve_path(recipe.output)
    where = refuse_unwritable(folder)
    if mistake := _in_the_way(recipe, folder, where, resume, overwrite):
        raise UsageError(mistake)
    return folder


def refuse_unwritable(folder: Path) -> str:
    """What an output folder is called in messages, where it can be written to or made."""
    where = f"output {folder}"
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(Mistake(where, f"{existing} is a file", "a folder", "name another with --output"))
    if not can_write(existing):
        raise UsageError(Mistake(where, f"{existing} is not writable", "a folder that can be written to"))
    return where


@contextlib.contextmanager
def reserved(recipe: Recipe) -> Iterator[None]:
    """No other process of this machine carries out a run into the recipe's output folder meanwhile.

    The lock is the operating system's: it goes with the process that holds it, killed or not.

    Raises:
        UsageError: one does already.
    """
    if recipe.output is None:
        yield
        return
    folder = recipe.resolve_path(recipe.output)
    name = hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:16]
    lock = filelock.FileLock(Path(tempfile.gettempdir()) / f"alignkit-{getpass.getuser()}-{name}.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        found = "another process is writing a run into it"
        mend = "wait until it has ended, or name another with --output"
        raise UsageError(Mistake(f"output {folder}", found, "a folder of its own for each run", mend)) from None
    try:
        yield
    finally:
        lock.release()


def can_write(folder: Path) -> bool:
    """By trying: permission bits say little to root, and nothing of read-only file systems."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def begin(folder: Path, recipe: Recipe, *, overwrite: bool) -> None:
    """Make room for a run and write its recipe: from here on the folder is a run's."""
    if overwrite and folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)  # at once, so that an interruption leaves no half of a run under its name
        shutil.rmtree(old)
    folder.mkdir(parents=True, exist_ok=True)
    for rest in folder.glob(f".{MODEL}*"):  # of a process that was killed while it saved the model
        shutil.rmtree(rest)
    recipe.save(folder / RECIPE)


def _in_the_way(recipe: Recipe, folder: Path, where: str, resume: bool, overwrite: bool) -> Mistake | None:
    if not folder.exists() or not [path for path in folder.iterdir() if path.name != f"{RECIPE}.tmp"]:
        return None
    if not (folder / RECIPE).is_file():
        found = "it is not empty and holds no run"
        return Mistake(where, found, "a new or empty folder, or a run's", "name another with --output")
    if resume:
        if differing := differing_fields(recipe, folder / RECIPE):
            mend = f"give the recipe that it was started with ({folder / RECIPE}), or start over with --overwrite"
            return Mistake(where, f"the run in it has another {', '.join(differing)}", "the same recipe", mend)
        return None
    if not overwrite:
        mend = "name another with --output, go on with --resume, or replace it with --overwrite"
        return Mistake(where, "there is a run in it already", "a new or empty folder", mend)
    for name, path in _read_by(recipe):
        if path.exists() and path.resolve().is_relative_to(folder.resolve()):
            found = f"{name} {path} is in it, and would be deleted"
            return Mistake(where, found, "a folder that the recipe does not read", "name another with --output")
    return None


def differing_fields(recipe: Recipe, file: Path) -> list[str]:
    """The fields that a recipe and a run's recipe do not agree on."""
    from alignkit.recipe.file import dump, parse, read

    mine, theirs = parse(dump(recipe.resolved())), read(file)[0]
    unset = {name for name, value in mine["task"].items() if value is None}  # a run writes what its task found
    theirs["task"] = {**theirs["task"], **dict.fromkeys(unset)}
    names = dict.fromkeys([*mine, *theirs])
    return [name for name in names if name not in _NOT_COMPARED and mine.get(name) != theirs.get(name)]


def read_of(run: Path) -> list[Path]:
    """Files and folders that are read of a run, or of a model's folder: what its recipe names by path among them."""
    if not (run / RECIPE).is_file():
        return [run]
    from alignkit.recipe import Recipe

    named = [path for _, path in _read_by(Recipe.load(run / RECIPE))]
    return [*(run / name for name in (RECIPE, MODEL, CONTROLS)), *named]


def _read_by(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """(what it is, where it is) of everything that a recipe names by path."""
    from alignkit.components import Component

    name = recipe.model if isinstance(recipe.model, str) else recipe.model.tokenizer
    yield "model", recipe.resolve_path(name)
    if recipe.reference is not None:
        yield "reference", recipe.resolve_path(recipe.reference)
    members: list[Any] = getattr(recipe.fusion, "members", [])
    yield from (("fusion member", recipe.resolve_path(member)) for member in members)
    sources = (source for split in recipe.data.splits().values() for source in split)
    yield from (("data", recipe.resolve_path(source.path)) for source in sources)
    yield from (("plugin", recipe.resolve_path(file)) for file in recipe.plugins)
    for value in (*vars(recipe).values(), *vars(recipe.evaluation).values()):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Component):
                yield from _named_in(item, f"{item.kind} {item.name}", recipe)


def _named_in(value: Any, where: str, recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """The same of a component's fields, or of what one of them holds."""
    from alignkit.components import Component
    from alignkit.data.source import Source

    if isinstance(value, Path):
        yield where, value
    elif isinstance(value, Source):
        yield where, recipe.resolve_path(value.path)
    elif isinstance(value, Component):
        for name, held in value.fields().items():
            yield from _named_in(held, f"{where} {name}", recipe)
    elif isinstance(value, Mapping | list | tuple):
        for held in value.values() if isinstance(value, Mapping) else value:
            yield from _named_in(held, where, recipe)


def is_main() -> bool:
    """This process is the only one, or the first of those that were launched together."""
    return int(os.environ.get("RANK", "0")) == 0
