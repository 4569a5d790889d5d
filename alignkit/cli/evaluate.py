"""`alignkit evaluate`: score a run or a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.cli.parts import loaded
from alignkit.data.source import Source
from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    from alignkit.aligned import Aligned
    from alignkit.data import Example
    from alignkit.recipe import Recipe


def command(
    run: Annotated[str, typer.Argument(help="A run's folder, or a model.", metavar="RUN|MODEL")],
    data: Annotated[Path | None, typer.Option(help="A labelled file; by default the run's own splits.")] = None,
    task: Annotated[str | None, typer.Option(help="The task of a model that is no run.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="A field of the task.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Demonstrations per class, without training; 0: none.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="A labelled file to take demonstrations from.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="A field of the task and the files' column.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 32,
    replicates: Annotated[int, typer.Option(min=100, help="Bootstrap samples behind an interval.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap and of augmenters.")] = 42,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Metrics with 95 % intervals, on the run's own splits (clean, under augmenters, across views) or on a file."""
    from rich.console import Console

    from alignkit.evaluation.compare import table

    columns = mapped(column or [])
    demonstrated = Source(path=str(train), columns=columns) if train is not None else None
    labelled = Source(path=str(data), columns=columns) if data is not None else None
    if columns and labelled is None and demonstrated is None:
        raise UsageError(Mistake("--column", "no file whose column that is", "a file", "name one with --data"))
    metrics, chosen = evaluated(run, labelled, task, batch_size, replicates, seed, set_ or (), shots, demonstrated)
    if as_json:
        print(json.dumps(metrics, indent=2, ensure_ascii=False))
    else:
        Console().print(table(metrics, chosen))


def mapped(columns: Sequence[str]) -> dict[str, str]:
    """`text=sentence`, as often as it is said, as a source's `columns`."""
    pairs = [text.partition("=") for text in columns]
    if wrong := [text for text, (field, _, column) in zip(columns, pairs, strict=True) if not (field and column)]:
        raise UsageError(*(Mistake(f"--column {text}", "no field and column", "FIELD=COLUMN") for text in wrong))
    return {field.strip(): column.strip() for field, _, column in pairs}


def evaluated(
    run: str,
    data: Source | None,
    task: str | None,
    batch_size: int,
    replicates: int,
    seed: int,
    overrides: Sequence[str] = (),
    shots: int | None = None,
    train: Source | None = None,
) -> tuple[dict[str, Any], Any]:
    """The metrics in the shape of `metrics.json`, and the task.

    Args:
        data: labelled rows; None: the run's own splits.
        overrides, shots, train: as `alignkit.cli.parts.loaded` takes them.
    """
    from alignkit.compose import Composition
    from alignkit.evaluation.compare import compare, evaluate

    aligned, recipe, rows = with_rows(run, data, task, overrides, shots, train)
    own = recipe.evaluation if recipe is not None and data is None else None
    gaps = own.gaps if own else []
    measured = evaluate(
        aligned.task,
        aligned.model,
        aligned.tokenizer,
        rows,
        under=own.under if own else [],
        gaps=[view.name for view in gaps],
        views=Composition(gaps, aligned.task).views,
        attacks=own.attacks if own else [],
        batch_size=batch_size,
        seed=seed,
    )
    return {**compare(None, measured, aligned.task, replicates, seed), "task": aligned.task.name}, aligned.task


def with_rows(
    run: str,
    data: Source | None,
    task: str | None,
    overrides: Sequence[str] = (),
    shots: int | None = None,
    train: Source | None = None,
) -> tuple[Aligned, Recipe | None, dict[str, list[Example]]]:
    """A run or a model with its task, the run's recipe, and labelled rows: a file's (`test`), or the run's own splits.

    Raises:
        UsageError: there is no such model, or there are no rows.
    """
    from alignkit.data.load import load as load_data
    from alignkit.models import resolve
    from alignkit.run_folder import RECIPE

    if data is None and not (Path(run).expanduser() / RECIPE).is_file():
        resolve(run)  # where there is none, that is what to say
        raise UsageError(Mistake(run, "a model has no data of its own", "a labelled file", "name one with --data"))
    aligned, recipe = loaded(run, task, overrides, shots, train)
    if data is not None:
        sources, base = {"test": [data]}, Path.cwd()
    else:
        assert recipe is not None  # there is a file
        sources = {name: split for name, split in recipe.data.splits().items() if name != "train"}
        base = recipe.base
    if not sources:
        found = "its recipe has neither a validation nor a test split"
        raise UsageError(Mistake(run, found, "a labelled file", "name one with --data"))
    examples = load_data(sources, aligned.task, base)  # after the model, whose labels these are held against
    return aligned, recipe, examples
