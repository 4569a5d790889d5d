"""What several commands take alike: components by name with `--set`, a run or a model with its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    from alignkit.aligned import Aligned
    from alignkit.catalogue import Catalogue
    from alignkit.components import Component, Task
    from alignkit.data.source import Source
    from alignkit.recipe import Recipe


def component(kind: str, name: str, option: str, overrides: Sequence[str] = ()) -> Any:
    """The component that a command line names, with its fields.

    Args:
        option: what names it: `--method ties`.
        overrides: its fields as `--set` takes them: `density=0.5`.

    Raises:
        UsageError: there is none, or everything that is wrong with its fields.
    """
    from alignkit.catalogue import default_catalogue

    fields = _mappings(kind, name) if overrides else {}
    return varied(kind, {**fields, "use": name}, option, overrides, default_catalogue())


def varied(kind: str, entry: dict[str, Any], option: str, overrides: Sequence[str], catalogue: Catalogue) -> Any:
    """The component of a recipe's entry, some of its fields set anew: paths in those start where the user is.

    Args:
        entry: `use` and fields; is changed.
        option, overrides: as `component` takes them.

    Raises:
        UsageError: everything that is wrong with its fields.
    """
    from alignkit.recipe import file
    from alignkit.recipe.errors import Place, Problems
    from alignkit.recipe.parts import Making, make

    lines: dict[Place, str] = {}
    name = {"use": entry["use"]}
    mistakes = [mistake for _, mistake in file.override(entry, overrides, lines)]
    made: Component | None = None
    try:
        made = make(kind, entry | name, Making(Path.cwd(), catalogue))
    except Problems as error:
        for problem in error.problems:
            known = next((lines[p] for n in range(len(problem.place), 0, -1) if (p := problem.place[:n]) in lines), "")
            where = known or f"{option} {'.'.join(map(str, problem.place))}".removesuffix(" use").strip()
            mistakes.append(Mistake(where, problem.found, problem.expected, problem.mend))
    if mistakes:
        raise UsageError(*mistakes)
    return made


def _mappings(kind: str, name: str) -> dict[str, Any]:
    """The component's fields that are mappings, so that `--set verbalisers.1=good` names a key and no position."""
    from alignkit.catalogue import default_catalogue
    from alignkit.errors import AlignkitError

    catalogue = default_catalogue()
    try:
        fields: Any = getattr(catalogue.load_class(catalogue.find(kind, name)), "__pydantic_fields__", {})
    except AlignkitError:  # said where the component is made
        return {}
    defaults = {field: info.get_default(call_default_factory=True) for field, info in fields.items()}
    return {field: dict(value) for field, value in defaults.items() if isinstance(value, dict)}


def loaded(
    run: str, task: str | None, overrides: Sequence[str], shots: int | None, train: Source | None
) -> tuple[Aligned, Recipe | None]:
    """A run or a model with its task as the command line wants it, and the run's recipe.

    Args:
        task: its name; None: the recipe's, or what the model's head is for.
        overrides: fields of the task.
        shots: demonstrations per class.
        train: rows that the task looks at when it predicts; None: the recipe's, where it needs them.
    """
    from alignkit.aligned import load, show_training_split
    from alignkit.components import Task
    from alignkit.data.load import load as load_data

    recipe, chosen = chosen_task(run, task, overrides, shots)
    if chosen is not None and train is not None and type(chosen).needs_training_split is Task.needs_training_split:
        found = f"task {chosen.name} looks at no training rows when it predicts"
        raise UsageError(Mistake(f"--train {train.path}", found, "", "leave it out"))
    own = recipe is not None and chosen is recipe.task
    if chosen is not None and chosen.needs_training_split and train is None and not own:
        found = "it takes demonstrations from training rows, and there are none"
        raise UsageError(Mistake(f"--task {chosen.name}", found, "labelled rows", "name a file: --train FILE"))
    aligned = load(run, chosen, controls=())
    if train is not None:
        load_data({"train": [train]}, aligned.task, Path.cwd())
    elif recipe is not None and own:
        show_training_split(recipe)
    return aligned, recipe


def chosen_task(
    run: str, task: str | None, overrides: Sequence[str], shots: int | None = None
) -> tuple[Recipe | None, Task | None]:
    """A run's recipe, and the task with its fields; as `loaded` takes them, without loading anything.

    Raises:
        UsageError: everything that is wrong with the task's fields, or there is no task whose fields they are.
    """
    recipe = _recipe(run, overrides, shots, own_task=task is None)
    if task is not None:
        _refuse_shots(task, shots)
        return recipe, component("task", task, f"--task {task}", _with_shots(overrides, shots))
    if recipe is None and (overrides or shots is not None):
        given = "--set" if shots is None else f"--shots {shots}"
        raise UsageError(Mistake(given, "no task whose field that is", "a task", "name it: --task NAME"))
    return recipe, recipe.task if recipe is not None else None


def _recipe(run: str, overrides: Sequence[str], shots: int | None, own_task: bool) -> Recipe | None:
    """A run's recipe; its task has the fields that the command line sets."""
    from alignkit.recipe import Recipe
    from alignkit.run_folder import RECIPE

    file = Path(run).expanduser() / RECIPE
    if not file.is_file():
        return None
    if not own_task or not _with_shots(overrides, shots):
        return Recipe.load(file)
    _refuse_shots(Recipe.load(file).task.name, shots)
    try:
        return Recipe.load(file, [f"task.{override}" for override in _with_shots(overrides, shots)])
    except UsageError as error:
        prefix = "--set task."
        raise UsageError(
            *(replace(m, where=f"--set {m.where.removeprefix(prefix)}" if m.where.startswith(prefix) else m.where)
              for m in error.mistakes)
        ) from error  # fmt: skip


def _with_shots(overrides: Sequence[str], shots: int | None) -> list[str]:
    return [*overrides, *([f"shots={shots}"] if shots is not None else [])]


def _refuse_shots(task: str, shots: int | None) -> None:
    """A task that needs training first, asked to do without."""
    from alignkit.catalogue import default_catalogue

    if shots is None:
        return
    catalogue = default_catalogue()
    entry = catalogue.find("task", task)
    if not _has_shots(catalogue.load_class(entry)):
        able = [n for n, e in catalogue.entries()["task"].items() if _has_shots(catalogue.load_class(e))]
        found = f"task {task} takes no demonstrations: its model has to be trained"
        raise UsageError(Mistake(f"--shots {shots}", found, f"a task that does: {', '.join(able)}"))


def _has_shots(cls: Any) -> bool:
    return "shots" in getattr(cls, "__pydantic_fields__", {})
