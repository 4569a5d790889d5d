"""Which controls a command puts a model under: the run's own, and those that the command line names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.cli.parts import component, varied
from alignkit.errors import Mistake, UsageError
from alignkit.kept import controls_of, missing

if TYPE_CHECKING:
    from alignkit.components import Control
    from alignkit.recipe import Recipe

_NAMING = ("name", "use")
"""What of a control's entry in a recipe is no field of it."""


def controls_for(
    run: str,
    named: Sequence[str],
    own: bool,
    overrides: Sequence[str],
    beside: Callable[[list[str]], object] = lambda rest: None,
) -> tuple[list[Control], list[str]]:
    """The controls with their fields, and the overrides that are not theirs.

    Args:
        run: a run's folder, or a model.
        named: what the command line adds.
        own: a run's own are on, too.
        overrides: as `--set` takes them; those of a control begin with its name.
        beside: raises what is wrong with the overrides that are not theirs; asked where something else is wrong.

    Raises:
        UsageError: everything that is wrong with them.
    """
    recipe = _recipe(run) if own else None
    controls = controls_of(recipe, Path(run).expanduser()) if recipe is not None else []
    known = [control.name for control in controls]
    mistakes = [Mistake(f"--control {name}", *_taken(name in known)) for name in _twice([*known, *map(short, named)])]
    ours, rest = _apart(overrides, [*known, *named])
    off = _not_on(rest)
    mistakes += [*_renaming(ours), *off.values()]
    ours = {name: [text for text in texts if _field(text) not in _NAMING] for name, texts in ours.items()}
    for place, control in enumerate(controls):
        if recipe is not None and ours[control.name]:
            try:
                controls[place] = _varied(control, ours[control.name], recipe)
            except UsageError as error:
                mistakes += _renamed(error, control.name)
    mistakes += missing(controls)
    for name in dict.fromkeys(named):
        try:
            controls.append(component("control", name, f"--control {name}", ours[name]))
        except UsageError as error:
            mistakes += _renamed(error, name)
    if mistakes:
        try:
            beside([text for text in rest if text not in off])
        except UsageError as error:
            mistakes += error.mistakes
        raise UsageError(*mistakes)
    return controls, rest


def _recipe(run: str) -> Recipe | None:
    from alignkit.recipe import Recipe
    from alignkit.run_folder import RECIPE

    file = Path(run).expanduser() / RECIPE
    return Recipe.load(file) if file.is_file() else None


def _varied(control: Control, overrides: Sequence[str], recipe: Recipe) -> Control:
    """One of a run's own, some of its fields set anew; what its other fields name is where the run keeps it."""
    from alignkit.recipe.parts import described

    entry = described(control, recipe.catalogue, Path())
    made: Control = varied("control", entry, f"control {control.name}", overrides, recipe.catalogue)
    return made


def _apart(overrides: Sequence[str], names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """By control the overrides of its fields, without its name; and the others."""
    ours: dict[str, list[str]] = {name: [] for name in names}
    rest: list[str] = []
    for text in overrides:
        given, dot, field = text.partition(".")
        name = next((name for name in ours if given in (name, short(name))), None) if dot else None
        (rest if name is None else ours[name]).append(text if name is None else field)
    return ours, rest


def _field(override: str) -> str:
    return override.partition("=")[0].strip()


def _renaming(ours: dict[str, list[str]]) -> Iterator[Mistake]:
    """What a run keeps of a control, files and what it learnt, goes by the name that it was trained with."""
    for name, texts in ours.items():
        for text in (text for text in texts if _field(text) in _NAMING):
            found = "a control keeps its name, by which a run finds the files that it keeps for it"
            mend = "take it out; another control is put beside it by --control NAME"
            yield Mistake(f"--set {name}.{text}", found, f"a field of {name}", mend)


def short(name: str) -> str:
    """Of a name that says whose it is the last part: `refusals` of `constraints/refusals`."""
    return name.rpartition("/")[2]


def _not_on(overrides: Sequence[str]) -> dict[str, Mistake]:
    """Fields that are set of controls which are not on."""
    from alignkit.catalogue import default_catalogue

    controls = default_catalogue().entries()["control"]
    found = {}
    for text in overrides:
        name, dot, _ = text.partition("=")[0].partition(".")
        if dot and short(name) in controls:
            mend = f"name it: --control {name}"
            found[text] = Mistake(f"--set {text}", f"control {name} is not on", "a control that is", mend)
    return found


def _twice(names: Sequence[str]) -> list[str]:
    return [name for number, name in enumerate(names) if name in names[:number]]


def _taken(by_run: bool) -> tuple[str, str, str]:
    if by_run:
        mend = "set its fields by --set NAME.FIELD=VALUE, or leave the run's own out by --no-controls"
        return "the run has a control of that name, which is on", "each control once", mend
    return "named twice", "each control once", ""


def _renamed(error: UsageError, name: str) -> list[Mistake]:
    """Mistakes in a control's fields, as the command line calls them."""
    return [replace(m, where=m.where.replace("--set ", f"--set {name}.", 1)) for m in error.mistakes]
