"""`alignkit predict`: answers of a run or a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.cli.controls import controls_for
from alignkit.cli.files import refuse_unwritable, written_whole
from alignkit.cli.parts import chosen_task, loaded
from alignkit.data.audit import write_lines
from alignkit.data.source import Source
from alignkit.errors import Mistake, UsageError

TEXTS, ROWS = (".txt", ""), (".jsonl",)
"""Suffixes of files with a text per line, and of files with a JSON value per line."""


def command(
    run: Annotated[str, typer.Argument(help="A run's folder, or a model.", metavar="RUN|MODEL")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to answer.", metavar="TEXT")] = None,
    input_: Annotated[
        Path | None, typer.Option("--input", help="A file of texts, one per line (.txt), or of rows (.jsonl).")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write here instead of to stdout.")] = None,
    task: Annotated[str | None, typer.Option(help="The task of a model that is no run.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="A field of the task, or of a control: NAME.K=V.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="A labelled file to take demonstrations from.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 16,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Length of a generated answer, in tokens.")] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="A control beside those of the run's recipe. May be said several times.")
    ] = None,
    no_controls: Annotated[bool, typer.Option("--no-controls", help="Leave those of the run's recipe out.")] = False,
    audit: Annotated[
        Path | None, typer.Option(help="Write what controls did and looked at here, as JSON lines.")
    ] = None,
) -> None:
    """One JSON line per text, in order: the answer, complete in itself, with what controls did to it."""
    if not texts and input_ is None:
        raise UsageError(Mistake("alignkit predict", "no text", "texts, or --input FILE"))
    refuse_unwritable(output, audit, reads=(input_,))
    rows: list[Any] = [*(texts or []), *(read_rows(input_) if input_ else [])]
    options: dict[str, Any] = {"batch_size": batch_size}
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    demonstrated = Source(path=str(train)) if train is not None else None
    own = task is None and not no_controls
    controls, of_task = controls_for(
        run, control or (), own, set_ or (), beside=lambda rest: chosen_task(run, task, rest)
    )
    aligned, _ = loaded(run, task, of_task, None, demonstrated)
    aligned.controls = controls
    records: list[dict[str, Any]] = []
    with written_whole(output) as out:
        for answer in aligned.answers(rows, audit=records, **options):
            print(json.dumps(answer, ensure_ascii=False, default=float), file=out, flush=output is None)
    if audit is not None:
        write_lines(audit, records)


def read_rows(path: Path) -> list[Any]:
    """The lines of a .txt file as texts, those of a .jsonl file as rows (or texts, where they are strings).

    Raises:
        UsageError: no such file, of another kind, not UTF-8, not JSON, with the line; nothing in it.
    """
    expected = "a file of texts (.txt) or of rows (.jsonl)"
    if not path.is_file():
        raise UsageError(Mistake(str(path), "a folder" if path.is_dir() else "no such file", expected))
    if path.suffix.lower() not in (*TEXTS, *ROWS):
        raise UsageError(Mistake(str(path), f"a {path.suffix} file", expected))
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise UsageError(Mistake(f"{path}:{number}", found, "UTF-8 text")) from error
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    if not content.strip():
        raise UsageError(Mistake(str(path), "nothing in it", "at least one text"))
    if path.suffix.lower() in TEXTS:
        return [line for line in lines if line.strip()]
    rows, mistakes = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                mistakes.append(Mistake(f"{path}:{number}", f"no JSON ({error})", "one JSON value a line"))
            else:
                if not isinstance(rows[-1], str | dict):
                    mistakes.append(Mistake(f"{path}:{number}", type(rows[-1]).__name__, "an object or a string"))
    if mistakes:
        raise UsageError(*mistakes)
    return rows
