"""From the recipe's `data:` section to validated examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.data.example import Example
from alignkit.data.read import rows
from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.data.source import Data, Source

SHOWN_PER_FILE = 20
SHOWN_ALIKE = 3

_PLACE_IN_SOURCE = re.compile(r"(:\d+| row \d+)( .*)?$")


def load(data: Data | Mapping[str, list[Source]], task: Task, base: Path) -> dict[str, list[Example]]:
    """Read, validate and show every split to the task.

    Args:
        data: the splits and their sources: a recipe's, or some of them by name.
        task: parses the rows, then sees all splits at once (`task.prepare`).
        base: the folder that relative paths start from.

    Returns:
        `train`, `validation`, `test` or `test/NAME` -> examples, each knowing its split, source, row and line.

    Raises:
        UsageError: with the mistakes of all files, at most twenty of each file, three of a kind.
    """
    splits: dict[str, list[Example]] = {}
    mistakes: list[Mistake] = []
    for split, sources in (data if isinstance(data, Mapping) else data.splits()).items():
        splits[split] = []
        for source in sources:
            examples, wrong = read(source, task, base, split, first_row=len(splits[split]))
            splits[split] += examples
            mistakes += abridged(wrong, source.path)
    if not mistakes:
        try:
            task.prepare(splits)
        except UsageError as error:
            by_source: dict[str, list[Mistake]] = {}
            for mistake in error.mistakes:
                by_source.setdefault(_PLACE_IN_SOURCE.sub("", mistake.where), []).append(mistake)
            mistakes = [m for where, found in by_source.items() for m in abridged(found, where)]
    if mistakes:
        raise UsageError(*dict.fromkeys(mistakes))
    return splits


def read(
    source: Source, task: Task, base: Path, split: str = "test", first_row: int = 0
) -> tuple[list[Example], list[Mistake]]:
    """One source's examples, and every mistake found on the way.

    Args:
        first_row: the split's row that the source's first row is, where a split has several sources.
    """
    if source.split is None:
        source = source.model_copy(update={"split": split.partition("/")[0]})
    examples: list[Example] = []
    mistakes: list[Mistake] = []
    try:
        for row, (fields, where, line) in enumerate(
            rows(source, task.suffixes, base, task.unfold, task.readers()), first_row
        ):
            try:
                example = task.parse(fields, where)
            except UsageError as error:
                mistakes += error.mistakes
            else:
                examples.append(replace(example, split=split, source=source.path, row=row, line=line))
    except UsageError as error:  # of the file as a whole: what the rows lack may only follow from it
        mistakes = [*error.mistakes, *mistakes]
    return examples, mistakes


def abridged(mistakes: Iterable[Mistake], path: str) -> list[Mistake]:
    """A file's mistakes as they are shown: three that say the same, twenty in all, and how many more there are."""
    alike: dict[tuple[str, str, str], list[Mistake]] = {}
    for mistake in mistakes:
        alike.setdefault((mistake.found, mistake.expected, mistake.mend), []).append(mistake)
    shown: list[Mistake] = []
    for (found, _, _), group in alike.items():
        shown += group[:SHOWN_ALIKE]
        if len(group) > SHOWN_ALIKE:
            shown.append(Mistake(path, f"… and {len(group) - SHOWN_ALIKE} more of: {found}"))
    more = len(shown) - SHOWN_PER_FILE
    return shown if more <= 0 else [*shown[:SHOWN_PER_FILE], Mistake(path, f"… and {more} more")]
