"""`alignkit evaluate`: score a run or a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from alignkit.cli.controls import short
from alignkit.cli.files import refuse_unwritable
from alignkit.cli.parts import component, loaded
from alignkit.data.source import Source
from alignkit.errors import Mistake, UsageError, nearest

if TYPE_CHECKING:
    from alignkit.aligned import Aligned
    from alignkit.components import Control, Evaluator
    from alignkit.data import Example
    from alignkit.evaluation.compare import Measured
    from alignkit.recipe import Recipe

EXAMPLES = 4
"""Rows that are printed of what each evaluator saw."""
SHOWN = 300
"""Characters that are printed of what it noted."""


def command(
    run: Annotated[str, typer.Argument(help="A run's folder, or a model.", metavar="RUN|MODEL")],
    data: Annotated[Path | None, typer.Option(help="A labelled file; by default the run's own splits.")] = None,
    task: Annotated[str | None, typer.Option(help="The task of a model that is no run.")] = None,
    evaluator: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure by an evaluator alone, and --data by the task: refusals … May be said several times."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="K=V",
            help="A field of the task; with evaluators of theirs: limit=50, refusals.harmful=a.csv.",
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Demonstrations per class, without training; 0: none.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="A labelled file to take demonstrations from.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="A field of the task and the files' column.")
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Answers that evaluators ask for are under the run's controls.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write what evaluators saw here, as JSON lines.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 32,
    replicates: Annotated[int, typer.Option(min=100, help="Bootstrap samples behind an interval.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap and of augmenters.")] = 42,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Metrics with 95 % intervals, on the run's own splits (clean, under augmenters, across views) or on a file."""
    from rich.console import Console

    from alignkit.data.audit import write_lines
    from alignkit.evaluation.compare import compare, table

    columns = mapped(column or [])
    demonstrated = Source(path=str(train), columns=columns) if train is not None else None
    labelled = Source(path=str(data), columns=columns) if data is not None else None
    if columns and labelled is None and demonstrated is None:
        raise UsageError(Mistake("--column", "no file whose column that is", "a file", "name one with --data"))
    refuse_unwritable(output, reads=(data, train))
    evaluators, of_task = _evaluators(evaluator or [], set_ or [])
    on = _controls(run, bool(evaluators)) if controls else []
    measured, chosen = evaluated(run, labelled, task, batch_size, seed, of_task, shots, demonstrated, evaluators, on)
    if output is not None:
        write_lines(output, measured.seen)
    metrics = {**compare(None, measured, chosen, replicates, seed), "task": chosen.name}
    used = [control.name for control in on] if measured.controlled else []
    if on:
        metrics["controls"] = {"after": used}
    if as_json:
        print(json.dumps(metrics, indent=2, ensure_ascii=False))
    else:
        console = Console()
        console.print(table(metrics, chosen))
        if used:
            console.print(f"{', '.join(measured.controlled)}: under {', '.join(used)}", soft_wrap=True)
        elif on:
            console.print("no evaluator asked for answers: controls were not used", soft_wrap=True)
        if evaluators:
            _print_seen(console, measured.seen)


def mapped(columns: Sequence[str]) -> dict[str, str]:
    """`text=sentence`, as often as it is said, as a source's `columns`."""
    pairs = [text.partition("=") for text in columns]
    if wrong := [text for text, (field, _, column) in zip(columns, pairs, strict=True) if not (field and column)]:
        raise UsageError(*(Mistake(f"--column {text}", "no field and column", "FIELD=COLUMN") for text in wrong))
    return {field.strip(): column.strip() for field, _, column in pairs}


def _evaluators(names: list[str], overrides: list[str]) -> tuple[list[Evaluator], list[str]]:
    """The evaluators that the command line names, each with its fields, and what it sets of the task.

    A field without an evaluator's name before it is that of each evaluator that has it; of a name such as
    `constraints/refusals` the last part does. The task's are `task.FIELD`, or FIELD where no evaluator is named.

    Raises:
        UsageError: everything that is wrong with them.
    """
    if not names:
        return [], overrides
    fields = {name: _fields(name) for name in names}
    of_task = [override.removeprefix("task.") for override in overrides if override.startswith("task.")]
    made = []
    twice = [name for name in fields if [*map(short, names)].count(short(name)) > 1]
    mistakes = [Mistake(f"--evaluator {name}", "named twice", "each evaluator once") for name in twice]
    mistakes += _nobodys([o for o in overrides if not o.startswith("task.")], fields)
    for name, (sources, others) in fields.items():
        own: dict[str, str] = {}  # what is set, without the evaluator's name -> as the command line says it
        for override in overrides:
            of = next((of for of in (name, short(name)) if override.startswith(f"{of}.")), "")
            field, equals, value = (override.removeprefix(f"{of}.") if of else override).partition("=")
            if of or field.partition(".")[0] in (*sources, *others):
                path = f"{field}.path" if field in sources and value[:1] not in ("[", "{") else field
                own[f"{path}{equals}{value}"] = override
        try:
            made.append(component("evaluator", name, f"--evaluator {name}", list(own)))
        except UsageError as error:
            said = {f"--set {text}": f"--set {override}" for text, override in own.items()}
            mistakes += [replace(m, where=said.get(m.where, m.where)) for m in error.mistakes]
    if mistakes:
        raise UsageError(*mistakes)
    return made, of_task


def _controls(run: str, evaluators: bool) -> list[Control]:
    """The run's controls, for evaluators to ask for answers under.

    Raises:
        UsageError: it has none, or no evaluator is named, and all else is measured of the model itself.
    """
    from alignkit.cli.controls import controls_for

    found, _ = controls_for(run, (), True, ())
    if not found:
        raise UsageError(Mistake("--controls", f"{run} has no controls", "a run whose recipe has", "leave it out"))
    if not evaluators:
        said = "controls are on for answers that evaluators ask for, and none is named"
        raise UsageError(Mistake("--controls", said, "an evaluator", "name one: --evaluator refusals"))
    return found


def _nobodys(overrides: list[str], fields: Mapping[str, tuple[list[str], list[str]]]) -> Iterator[Mistake]:
    """What is set of no evaluator that is named."""
    known = {field for own in fields.values() for group in own for field in group}
    names = {*fields, *map(short, fields)}
    for override in overrides:
        field = override.partition("=")[0].partition(".")[0].strip()
        if known and field not in known and field not in names:
            mend = "; ".join(filter(None, (nearest(field, known), f"the task's own: --set task.{override}")))
            yield Mistake(f"--set {override}", f"no field of {' or '.join(fields)}", "", mend)


def _fields(name: str) -> tuple[list[str], list[str]]:
    """An evaluator's fields: those that say where its rows come from, and the others."""
    from alignkit.catalogue import default_catalogue
    from alignkit.data.source import Source
    from alignkit.errors import AlignkitError

    catalogue = default_catalogue()
    try:
        fields: Any = getattr(catalogue.load_class(catalogue.find("evaluator", name)), "__pydantic_fields__", {})
    except AlignkitError:  # said where the evaluator is made
        return [], []
    sources = [field for field, info in fields.items() if Source in get_args(info.annotation)]
    return sources, [field for field in fields if field not in sources]


def _print_seen(console: Any, lines: list[dict[str, Any]]) -> None:
    """Some rows that evaluators saw, at even distances, with what they noted."""
    from rich.text import Text

    from alignkit.evaluation.robustness import spread
    from alignkit.report.facts import noted

    for measured in dict.fromkeys(line["measured"] for line in lines):
        own = [line for line in lines if line["measured"] == measured]
        console.print(Text(f"{measured}: some rows", style="bold"))
        for line in (own[row] for row in spread(len(own), EXAMPLES)):
            place = f"{line['source']}:{line['line']}" if line["source"] and line["line"] else f"row {line['row']}"
            console.print(Text(f"  {place}", style="dim"), soft_wrap=True)
            for name, value in noted(line, SHOWN):
                console.print(Text.assemble(f"    {name}: ", value), soft_wrap=True)


def evaluated(
    run: str,
    data: Source | None,
    task: str | None,
    batch_size: int,
    seed: int,
    overrides: Sequence[str] = (),
    shots: int | None = None,
    train: Source | None = None,
    evaluators: Sequence[Evaluator] = (),
    controls: Sequence[Control] = (),
) -> tuple[Measured, Any]:
    """What was measured, and the task.

    Args:
        data: labelled rows; None: the run's own splits.
        overrides, shots, train: as `alignkit.cli.parts.loaded` takes them.
        evaluators: those to measure by, and by nothing else but the task's metrics on `data` where that is given;
            none: everything that the run's recipe names.
        controls: what the answers that they ask for are under.
    """
    from alignkit.compose import Composition
    from alignkit.evaluation.compare import evaluate
    from alignkit.evaluation.evaluators import read

    if evaluators:
        rows = read(evaluators, Path.cwd())
        splits: dict[str, list[Example]] = {}
        if len(rows) == len(evaluators) and data is None:
            aligned, _ = loaded(run, task, overrides, shots, train)
        else:
            aligned, _, splits = with_rows(run, data, task, overrides, shots, train)
        tests = {name: examples for name, examples in splits.items() if name.startswith("test")} or splits
        measured = evaluate(
            aligned.task,
            aligned.model,
            aligned.tokenizer,
            tests,
            evaluators=evaluators,
            rows=rows,
            controls=controls,
            batch_size=batch_size,
            seed=seed,
        )
        shown = [split for split in measured.splits if split not in splits or data is not None]
        return replace(measured, splits={split: measured.splits[split] for split in shown}), aligned.task
    aligned, recipe, splits = with_rows(run, data, task, overrides, shots, train, evaluators=True)
    asked = recipe.evaluation if recipe is not None and data is None else None
    gaps = asked.gaps if asked else []
    measured = evaluate(
        aligned.task,
        aligned.model,
        aligned.tokenizer,
        splits,
        under=asked.under if asked else [],
        gaps=[view.name for view in gaps],
        views=Composition(gaps, aligned.task).views,
        attacks=asked.attacks if asked else [],
        evaluators=asked.evaluators if asked else [],
        rows=read(asked.evaluators, recipe.base) if asked and recipe else {},
        batch_size=batch_size,
        seed=seed,
    )
    return measured, aligned.task


def with_rows(
    run: str,
    data: Source | None,
    task: str | None,
    overrides: Sequence[str] = (),
    shots: int | None = None,
    train: Source | None = None,
    evaluators: bool = False,
) -> tuple[Aligned, Recipe | None, dict[str, list[Example]]]:
    """A run or a model with its task, the run's recipe, and labelled rows: a file's (`test`), or the run's own splits.

    Args:
        evaluators: there may be none where the recipe has evaluators with rows of their own.

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
    if not sources and not (evaluators and recipe is not None and recipe.evaluation.evaluators):
        found = "its recipe has neither a validation nor a test split"
        raise UsageError(Mistake(run, found, "a labelled file", "name one with --data"))
    try:
        examples = load_data(sources, aligned.task, base)  # after the model, whose labels these are held against
    except UsageError as error:
        placed = _of_own_split if data is None else _of_option
        raise UsageError(*map(placed, error.mistakes)) from error
    return aligned, recipe, examples


def _of_option(mistake: Mistake) -> Mistake:
    """What is to be written into a recipe is an option here."""
    return replace(mistake, mend=re.sub(r"`columns: \{(\w+): …\}`", r"`--column \1=…`", mistake.mend))


def _of_own_split(mistake: Mistake) -> Mistake:
    """A file of a run's recipe may be gone, or the run may have been moved."""
    if mistake.found != "no such file":
        return mistake
    return replace(mistake, expected="the file of the run's recipe", mend="name a labelled file with --data")
