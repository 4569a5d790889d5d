"""`alignkit attack`: how a run or a model stands up to attacks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.cli.evaluate import mapped, with_rows
from alignkit.cli.files import refuse_unwritable, written_whole
from alignkit.cli.parts import component
from alignkit.data.source import Source
from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    from alignkit.aligned import Aligned
    from alignkit.components import Attack

EXAMPLES = 5
"""Broken inputs that are printed for each attack."""


def command(
    run: Annotated[str, typer.Argument(help="A run's folder, or a model.", metavar="RUN|MODEL")],
    method: Annotated[list[str], typer.Option(help="An attack: pgd, deepwordbug … May be said several times.")],
    data: Annotated[Path | None, typer.Option(help="A labelled file; by default the run's own test split.")] = None,
    task: Annotated[str | None, typer.Option(help="The task of a model that is no run.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="A field of each attack, or of one: pgd.radii=[0.1,0.2]."),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="A field of the task and the file's column.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to score and attack, at even distances.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write attempts here, as JSON lines.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the curve over an attack's radii here, as SVG.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 32,
    replicates: Annotated[int, typer.Option(min=100, help="Bootstrap samples behind an interval.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the attacks and of the bootstrap.")] = 42,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Attack a model: accuracy under attack, attack success among what was right, queries, broken inputs."""
    from rich.console import Console

    from alignkit.data.audit import write_lines
    from alignkit.evaluation.compare import compare, evaluate, table
    from alignkit.evaluation.robustness import spread
    from alignkit.report.plots import radius_plot

    attacks = _attacks(method, [*(set_ or ()), *([f"limit={limit}"] if limit else [])])
    refuse_unwritable(output, plot, reads=(data,))
    labelled = Source(path=str(data), columns=mapped(column or [])) if data is not None else None
    aligned, _, rows = with_rows(run, labelled, task)
    tests = {name: examples for name, examples in rows.items() if name.startswith("test")} or rows
    limits = [attack.limit for attack in attacks if attack.limit is not None]
    if len(limits) == len(attacks):  # so that what is said of the split is said of the rows that are attacked
        tests = {name: [rows[i] for i in spread(len(rows), max(limits))] for name, rows in tests.items()}
    if plot is not None:
        _refuse_without_curve(plot, attacks, aligned)
    measured = evaluate(
        aligned.task, aligned.model, aligned.tokenizer, tests, attacks=attacks, batch_size=batch_size, seed=seed
    )
    metrics = compare(None, measured, aligned.task, replicates, seed)
    if output is not None:
        write_lines(output, measured.attempts)
    if as_json:
        document = {**metrics, "task": aligned.task.name, "attempts": measured.attempts}
        print(json.dumps(document, indent=2, ensure_ascii=False, default=float))
    else:
        console = Console()
        console.print(table(metrics, aligned.task, queries=True))
        for split in dict.fromkeys(line["measured"] for line in measured.attempts):
            _print_broken(console, split, [line for line in measured.attempts if line["measured"] == split])
    if plot is not None:
        with written_whole(plot) as out:
            out.write(radius_plot(metrics, aligned.task.metric))


def _attacks(methods: list[str], overrides: list[str]) -> list[Attack]:
    """The attacks that the command line names, each with its fields.

    Raises:
        UsageError: everything that is wrong with them.
    """
    made, mistakes = [], []
    for number, name in enumerate(methods):
        if name in methods[:number]:
            mistakes.append(Mistake(f"--method {name}", "named twice", "each attack once"))
            continue
        own = [override.removeprefix(f"{name}.") for override in overrides if _for(override, methods) in (name, "")]
        try:
            made.append(component("attack", name, f"--method {name}", own))
        except UsageError as error:
            mistakes += [_of_attack(mistake, name, methods) for mistake in error.mistakes]
    if mistakes:
        raise UsageError(*mistakes)
    return made


def _refuse_without_curve(plot: Path, attacks: Sequence[Attack], aligned: Aligned) -> None:
    """A plot of attacks that have no curve, before hours are spent on them.

    Raises:
        UsageError: none of them has two radii or more; or the task cannot be put to them.
    """
    from alignkit.evaluation.robustness import refusals
    from alignkit.evaluation.victim import Victim
    from alignkit.report.plots import is_radius

    if mistakes := list(refusals(attacks, aligned.task, aligned.tokenizer)):
        raise UsageError(*mistakes)
    with Victim(aligned.task, aligned.model, aligned.tokenizer) as victim:
        settings = [list(filter(is_radius, attack.attempt(victim, []))) for attack in attacks]
    if max(map(len, settings)) < 2:
        found = "no attack is measured at two radii or more, so there is no curve"
        raise UsageError(Mistake(f"--plot {plot}", found, "an attack with several radii", "--method pgd"))


def _of_attack(mistake: Mistake, name: str, methods: list[str]) -> Mistake:
    """What is wrong with a field that is set for every attack, and of which of them."""
    if len(methods) == 1 or not mistake.where.startswith("--set"):
        return mistake
    mend = mistake.mend
    if "unknown field" in mistake.found:
        dotted = "." in mistake.where.partition("=")[0]
        mend = f"NAME is one of {', '.join(methods)}" if dotted else "set it of one alone: --set NAME.FIELD=VALUE"
    return replace(mistake, where=f"--method {name} {mistake.where}", mend=mend)


def _for(override: str, methods: list[str]) -> str:
    """The one attack whose field is set; empty: that of each."""
    name = override.partition("=")[0].partition(".")[0]
    return name if name in methods else ""


def _print_broken(console: Any, split: str, lines: list[dict[str, Any]]) -> None:
    """The first inputs that broke the model, as they were and as they broke it."""
    from rich.text import Text

    from alignkit.evaluation.robustness import brief, sides

    shown = [line for line in lines if line["broken"] and line["attacked"]][:EXAMPLES]
    if shown:
        console.print(Text(f"{split}: inputs that broke it", style="bold"))
    for line in shown:
        queries = f"{line['queries']} quer{'y' if line['queries'] == 1 else 'ies'}"
        predicted = f"{brief(line['predicted'])} → {brief(line['under_attack'])}"
        console.print(Text(f"  row {line['row']}, {queries}: {predicted}", style="dim"), soft_wrap=True)
        for name, text in line["input"].items():
            before, after = sides(text, line["attacked"][name])
            label = f"    {name}: " if len(line["input"]) > 1 else "    "
            console.print(Text.assemble(label, *_marked(before, "green")), soft_wrap=True)
            if line["attacked"][name] != text:
                console.print(Text.assemble(" " * len(label), *_marked(after, "red")), soft_wrap=True)


def _marked(parts: Sequence[tuple[str, bool]], colour: str) -> list[tuple[str, str]]:
    """Words for the terminal, those that differ in a colour."""
    return [(text if i == 0 else f" {text}", f"bold {colour}" if new else "") for i, (text, new) in enumerate(parts)]
