"""`alignkit attack`: how a run or a model stands up to attacks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.cli.evaluate import mapped, with_rows
from alignkit.cli.files import refuse_unwritable, written_whole
from alignkit.cli.parts import component
from alignkit.data.read import missing
from alignkit.data.source import Source
from alignkit.errors import Mistake, UsageError
from alignkit.findings import UNSETTLED, Findings
from alignkit.run_folder import read_of

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
    from alignkit.report.plots import radius_plot

    findings = Findings()
    attacks = findings.ask(lambda: _attacks(method, [*(set_ or ()), *([f"limit={limit}"] if limit else [])]))
    columns = findings.ask(lambda: mapped(column or []))
    findings.hear(lambda: _said_twice(limit, set_ or []))
    read = findings.ask(lambda: read_of(Path(run).expanduser()))
    findings.ask(lambda: refuse_unwritable(output, plot, reads=(data, *([] if read is UNSETTLED else read))))
    findings.hear(lambda: _misnamed(plot, column or [], data))
    findings.hear(lambda: filter(None, [missing(Source(path=str(data)), Path.cwd()) if data is not None else None]))
    findings.refuse()
    labelled = Source(path=str(data), columns=columns) if data is not None else None
    aligned, _, rows = with_rows(run, labelled, task)
    tests = {name: examples for name, examples in rows.items() if name.startswith("test")} or rows
    if plot is not None:
        _refuse_without_curve(plot, attacks, aligned)
    measured = evaluate(
        aligned.task,
        aligned.model,
        aligned.tokenizer,
        tests,
        attacks=attacks,
        attacked_alone=True,  # so that what is said of the split is said of the rows that are attacked
        batch_size=batch_size,
        seed=seed,
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


def _misnamed(plot: Path | None, columns: list[str], data: Path | None) -> Iterator[Mistake]:
    """A plot whose name promises another format; columns of no file."""
    if plot is not None and plot.suffix.lower() != ".svg":
        yield Mistake(f"--plot {plot}", "a plot is drawn as SVG", "a file that ends in .svg")
    if columns and data is None:
        yield Mistake("--column", "no file whose column that is", "a file", "name one with --data")


def _said_twice(limit: int | None, overrides: list[str]) -> Iterator[Mistake]:
    """A limit for all attacks beside one for some of them."""
    paths = {override: override.partition("=")[0] for override in overrides}
    others = [override for override, path in paths.items() if path == "limit" or path.endswith(".limit")]
    if limit is not None and others:
        found = f"beside {' and '.join(f'--set {override}' for override in others)}"
        yield Mistake(f"--limit {limit}", found, "one of them", "take one out: --limit is that of every attack")


def _attacks(methods: list[str], overrides: list[str]) -> list[Attack]:
    """The attacks that the command line names, each with its fields.

    Raises:
        UsageError: everything that is wrong with them.
    """
    made: list[Attack] = []
    mistakes = list(_of_others(methods, overrides))
    nobodys = {mistake.where.removeprefix("--set ") for mistake in mistakes}
    overrides = [override for override in overrides if override not in nobodys]
    for number, name in enumerate(methods):
        if name in methods[:number]:
            mistakes.append(Mistake(f"--method {name}", "named twice", "each attack once"))
            continue
        own = {o.removeprefix(f"{name}."): o for o in overrides if _for(o, methods) in (name, "")}
        try:
            made.append(component("attack", name, f"--method {name}", list(own)))
        except UsageError as error:
            for mistake in error.mistakes:
                said = own.get(mistake.where.removeprefix("--set "), "")
                alone = _for(said, methods) == name
                mistakes.append(
                    replace(mistake, where=f"--set {said}") if alone else _of_attack(mistake, name, methods)
                )
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


def _of_others(methods: list[str], overrides: list[str]) -> Iterator[Mistake]:
    """Fields of attacks that are known, and not made."""
    from alignkit.catalogue import default_catalogue

    known = default_catalogue().entries()["attack"]
    for override in overrides:
        path, name = override.partition("=")[0], override.partition(".")[0]
        if "." in path and name in known and name not in methods:
            yield Mistake(f"--set {override}", f"no --method {name} whose field that is", "", f"add --method {name}")


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
