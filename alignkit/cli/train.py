"""`alignkit train`: carry out a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from alignkit.recipe import Recipe
    from alignkit.run import Run


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe: .yaml, .toml or .json.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Override a field: adversary.epsilon=0.3")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder; overrides the recipe's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A plugin that cannot be loaded is an error.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON, and nothing else.")] = False,
) -> None:
    """Carry out a recipe: filter, augment, train, fuse, evaluate before and after, report."""
    from alignkit import checking, run_folder

    overrides = [*(set_ or []), *([f"output={json.dumps(str(output.absolute()))}"] if output else [])]
    options = {"resume": resume, "overwrite": overwrite}
    loaded = checking.load(recipe, overrides, strict, beside=lambda known: run_folder.checked(known, **options))
    run = carried_out(loaded, **options, quiet=as_json)
    if as_json:
        print(json.dumps(run.metrics, indent=2, ensure_ascii=False))


def carried_out(recipe: Recipe, *, resume: bool = False, overwrite: bool = False, quiet: bool = False) -> Run:
    """Train, and print the plan before and the table after."""
    from rich.console import Console

    from alignkit.evaluation.compare import table
    from alignkit.run import train

    def say(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    run = train(recipe, resume=resume, overwrite=overwrite, say=say)
    if not quiet and run.is_main:
        Console(soft_wrap=False).print(table(run.metrics, recipe.task))
        print(f"\n{shown(run.path / 'report.html')}  the report\n{shown(run.path / 'model')}  the model")
    return run


def shown(path: Path) -> Any:
    """A path as short as it can be said from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
