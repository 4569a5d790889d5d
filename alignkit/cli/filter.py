"""`alignkit filter`: filter a file as a recipe says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.cli.files import refuse_unwritable, written_whole
from alignkit.data.read import TOKEN_COLUMNS
from alignkit.errors import Mistake, UsageError


def command(
    input_: Annotated[Path, typer.Argument(help="A file of the recipe's task.", metavar="INPUT")],
    recipe: Annotated[Path, typer.Option(help="Names the task and the filters.")],
    output: Annotated[Path, typer.Option(help="What is kept: .jsonl, or .conll for token tasks.")],
    audit: Annotated[Path | None, typer.Option(help="One JSON line per example dropped, edited or flagged.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Override a field.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON, and nothing else.")] = False,
) -> None:
    """Keep, drop or edit each example of a file as the recipe's filters say, with an audit of every decision."""
    counts = filtered(input_, recipe, output, audit, set_ or [])
    if as_json:
        print(json.dumps(counts, indent=2, ensure_ascii=False))
        return
    print(f"{counts['kept']} of {counts['read']} examples kept, {counts['edited']} of them edited: {output}")
    for rule, count in counts["rules"].items():
        print(f"  {rule}: {count}")


def filtered(input_: Path, recipe: Path, output: Path, audit: Path | None, overrides: list[str]) -> dict[str, Any]:
    """Filter a file; gives how many were read, kept and edited, and how often each rule spoke."""
    from alignkit.compose import Composition
    from alignkit.data.audit import write_lines
    from alignkit.data.load import abridged, read
    from alignkit.data.prepare import filter_examples, written_over
    from alignkit.data.source import Source
    from alignkit.recipe import Recipe

    loaded = Recipe.load(recipe, overrides=overrides)
    composition = Composition(loaded.filters, loaded.task)
    if not composition.filters:
        raise UsageError(Mistake(f"{recipe} filters", "none", "at least one filter", "add `filters: [length]`"))
    refuse_unwritable(output, audit, reads=(input_, recipe))
    columns = output.suffix.lower() in TOKEN_COLUMNS
    if not columns and output.suffix.lower() != ".jsonl":
        found = f"a file {output.suffix}" if output.suffix else "no suffix"
        raise UsageError(Mistake(str(output), found, f".jsonl, or for words and tags {', '.join(TOKEN_COLUMNS)}"))
    examples, mistakes = read(Source(path=str(input_)), loaded.task, Path.cwd(), "train")
    if mistakes:
        raise UsageError(*abridged(mistakes, str(input_)))
    if columns and not {"tokens", "tags"} <= set(examples[0].fields):
        found = f"rows of {', '.join(examples[0].fields)}"
        raise UsageError(Mistake(str(output), found, "a .jsonl file", f"name it {output.with_suffix('.jsonl').name}"))
    writing = [component for component in loaded.filters if component.writes]
    if mistakes := list(written_over(writing, examples)):
        raise UsageError(*mistakes)
    if columns and writing:
        found = f"words and tags alone, without the column {writing[0].writes[0]!r} of filter {writing[0].name}"
        raise UsageError(Mistake(str(output), found, "a .jsonl file", f"name it {output.with_suffix('.jsonl').name}"))
    kept, lines = filter_examples(composition.filters, examples)
    with written_whole(output) as file:
        for example in kept:
            file.write(_as_written(example, columns))
    if audit is not None:
        write_lines(audit, lines)
    rules = Counter(f"{line['component']} {line['rule']} ({line['action']})" for line in lines)
    edited = len({line["row"] for line in lines if line["action"] == "edit"} & {e.row for e in kept})
    return {"read": len(examples), "kept": len(kept), "edited": edited, "rules": dict(rules.most_common())}


def _as_written(example: Mapping[str, Any], columns: bool) -> str:
    """A row as its file holds it: a word and its tag per line, or JSON."""
    if columns:
        pairs = zip(example["tokens"], example["tags"], strict=True)
        return "".join(f"{token}\t{tag}\n" for token, tag in pairs) + "\n"
    return json.dumps(dict(example), ensure_ascii=False) + "\n"
