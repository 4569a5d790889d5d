"""`alignkit tune`: search a recipe's fields."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.cli.train import shown
from alignkit.errors import UsageError

if TYPE_CHECKING:
    from alignkit.tuning import Tuned


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe: .yaml, .toml or .json.")],
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="K=SPEC", help="A field: training.learning_rate={low: 1e-5, high: 1e-3, log: true}"),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many; 20 where the recipe does not say.")] = None,
    metric: Annotated[str | None, typer.Option(help="What is best on the validation split.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which no further trial is begun.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the search; by default the recipe's.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Override a field: adversary.epsilon=0.3")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The search's folder; by default the recipe's with -tune behind it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in the folder.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A plugin that cannot be loaded is an error.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the trials as JSON, and nothing else.")] = False,
) -> None:
    """Search any fields of a recipe: try values out, end poor trials early, carry the best out in full."""
    from alignkit import checking
    from alignkit.tuning import tune

    options = {"trials": trials, "metric": metric, "timeout": timeout, "seed": seed}
    said = [f"tune.{name}={json.dumps(value)}" for name, value in options.items() if value is not None]
    overrides = [*(set_ or []), *(f"tune.search.{text}" for text in search or []), *said]

    def say(text: str) -> None:
        if not as_json:
            print(text, flush=True)

    try:
        loaded = checking.load(recipe, overrides, strict)
        tuned = tune(loaded, output=output, resume=resume, say=say)
    except UsageError as error:
        raise UsageError(*(replace(m, where=_as_option(m.where, options)) for m in error.mistakes)) from error
    if as_json:
        print(json.dumps(_document(tuned), indent=2, ensure_ascii=False))
    else:
        _show(tuned)


def _as_option(where: str, options: Iterable[str]) -> str:
    """What is wrong with an option is said of the option, and not of the override that it stands for."""
    for name in options:
        where = where.replace(f"--set tune.{name}=", f"--{name} ", 1)
    return where.replace("--set tune.search.", "--search ", 1)


def _document(tuned: Tuned) -> dict[str, object]:
    best = {"trial": tuned.best.number, "score": tuned.best_value, "values": tuned.best.values}
    trials = [asdict(trial) for trial in tuned.trials]
    return {"metric": tuned.metric, "best": best, "metrics": tuned.metrics, "trials": trials}


def _show(tuned: Tuned) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from alignkit.evaluation.compare import table
    from alignkit.tuning.lines import number
    from alignkit.tuning.lines import shown as value_shown

    values = Table("field", "best value", box=box.SIMPLE_HEAD, pad_edge=False)
    for path, value in tuned.best.values.items():
        values.add_row(path, value_shown(value))
    states = [trial.state for trial in tuned.trials]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("complete", "pruned", "failed") if s in states)
    print(f"\nvalidation {tuned.metric} {number(tuned.best_value)} in trial {tuned.best.number} ({counts})")
    Console(soft_wrap=False).print(values, table(tuned.metrics, tuned.best_recipe.task))
    files = {"tune.png": "the plot", "trials.csv": "every trial", "best.yaml": "the best recipe", "best": "its run"}
    print("\n" + "\n".join(f"{shown(tuned.path / name)}  {what}" for name, what in files.items()))
