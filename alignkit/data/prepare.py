"""From validated examples to what a model is trained on: filtered, augmented, encoded."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.components import Verdict
from alignkit.data.audit import audit_line
from alignkit.data.example import Example
from alignkit.data.features import length, windows
from alignkit.errors import Mistake, PluginError, UsageError
from alignkit.tasks.stock import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

    from alignkit.components import Component, Filter, Task

logger = logging.getLogger(__name__)

CHUNK = 1000
"""Examples that a component is asked about at once."""

Judge = Callable[[list[Example]], list[Verdict]]
Rewriter = Callable[[list[Example], np.random.Generator], list[Example]]


# -- filtering ---------------------------------------------------------------------------------------------------


def filter_examples(
    filters: Sequence[tuple[str, Judge]], examples: Sequence[Example], chunk: int = CHUNK
) -> tuple[list[Example], list[dict[str, Any]]]:
    """Ask the filters one after another; each sees what those before it kept, as they edited it.

    Args:
        filters: (component's name, its `filter_examples`) in recipe order.
        examples: one split.
        chunk: how many examples a filter is asked about at once.

    Returns:
        The examples that are left, in order, and the lines of the audit.

    Raises:
        PluginError: a filter that answers with anything but one verdict per example.
    """
    kept: list[Example] = []
    audit: list[dict[str, Any]] = []
    for part in _chunks(examples, chunk, "filtering", show=bool(filters)):
        for name, judge in filters:
            asked = f"{name}.filter_examples ({judge.__module__})"
            verdicts = _checked_verdicts(asked, judge(list(part)), len(part))
            judged = list(zip(part, verdicts, strict=True))
            audit += [audit_line(e, name, v) for e, v in judged if v.action != "keep" or v.rule]
            part = [_edited(asked, e, v) for e, v in judged if v.action != "drop"]
            if not part:
                break
        kept += part
    return kept, audit


def _checked_verdicts(asked: str, verdicts: Any, expected: int) -> list[Verdict]:
    if not isinstance(verdicts, list) or not all(isinstance(v, Verdict) for v in verdicts):
        odd = next((v for v in verdicts if not isinstance(v, Verdict)), "") if isinstance(verdicts, list) else verdicts
        raise PluginError(
            f"{asked} answered with {'a list that holds ' * isinstance(verdicts, list)}"
            f"{type(odd).__name__}; expected a list of Verdict"
        )
    if len(verdicts) != expected:
        raise PluginError(f"{asked} gave {len(verdicts)} verdicts for {expected} examples")
    return verdicts


def _edited(asked: str, example: Example, verdict: Verdict) -> Example:
    """The example as it is to be; where it came from does not change."""
    if verdict.action == "keep":
        return example
    if not isinstance(verdict.example, Example):
        raise PluginError(f"{asked} said edit of {example.where} without an example")
    return replace(verdict.example, split=example.split, source=example.source, row=example.row, line=example.line)


def written_over(filters: Sequence[Filter], examples: Sequence[Example]) -> Iterator[Mistake]:
    """Columns that filters would write, and rows as they were read have already."""
    for judge in filters:
        for name in judge.writes:
            if there := [example for example in examples if name in example]:
                rows = f" in {len(there)} rows" if len(there) > 1 else ""
                found = f"it would write over the column {name!r}, which the data has{rows}"
                yield Mistake(f"filter {judge.name}", found, "a column of its own", "give it another name")


# -- augmenting --------------------------------------------------------------------------------------------------


def augment(
    augmenters: Sequence[tuple[str, Rewriter]], examples: Sequence[Example], seed: int, chunk: int = CHUNK
) -> list[Example]:
    """The examples, then what each augmenter makes of them; no augmenter sees what another made.

    Args:
        augmenters: (component's name, its `augment_examples`).
        examples: the training split.
        seed: with the component's name and the chunk's number it seeds the generator, so that neither the order of
            the augmenters nor their company changes what one of them makes.

    Raises:
        PluginError: an augmenter that answers with anything but a list of examples.
    """
    found = list(examples)
    for name, rewrite in augmenters:
        for number, part in enumerate(_chunks(examples, chunk, name)):
            made = rewrite(list(part), generator(seed, name, number))
            if not isinstance(made, list) or not all(isinstance(e, Example) for e in made):
                asked = f"{name}.augment_examples ({rewrite.__module__})"
                raise PluginError(f"{asked} answered with {type(made).__name__}, not a list of Example")
            found += [replace(example, origin=name) for example in made]
    return found


def generator(seed: int, name: str, chunk: int = 0) -> np.random.Generator:
    """A generator of a component's own, the same on every machine."""
    key = hashlib.blake2b(f"{seed}/{name}/{chunk}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key, "big"))


# -- encoding ----------------------------------------------------------------------------------------------------


def encode(
    task: Task,
    examples: Sequence[Example],
    tokenizer: Any,
    views: Callable[[Example], dict[str, Example]] | None = None,
    columns: Sequence[str] = (),
    first: int = 0,
    pack: bool = False,
    unaligned: Collection[str] = (),
) -> Dataset:
    """Examples as the task encodes them, with what the step needs beside it.

    Args:
        task: encodes; an example that it has nothing to learn from is left out.
        examples: one split.
        tokenizer: the model's.
        views: other versions of an example, by name.
        columns: fields of the examples that components read and the model does not take.
        first: the index of the first example.
        pack: let the task put short rows together, a thousand examples at a time.
        unaligned: names of views that have answers of their own.

    Returns:
        A data set in memory: the task's columns; `index`, the position in `examples` from `first` on; `length`, the
        number of input ids; each of `columns` that the examples have; and, where any example has a view, `views`: by
        name the encoded view, or None. A view whose scored labels are not as many as the example's (it was truncated
        elsewhere, or a completion was rewritten) is None: the two could not be compared word by word; `unaligned` ones
        stay. An example of several windows has as many rows.
    """
    import pyarrow
    from datasets import Dataset
    from datasets.table import InMemoryTable

    tables = []
    for start, part in zip(range(0, len(examples), CHUNK), _chunks(examples, CHUNK, "encoding"), strict=True):
        place = first + start
        found = [
            row
            for i, example in enumerate(part)
            for row in _rows(task, example, place + i, tokenizer, views, columns, unaligned)
        ]
        if found:
            found = task.pack(found) if pack else found
            try:
                tables.append(pyarrow.Table.from_pylist(_same_keys(found)))
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
                where = f"{part[0].where} and the {len(part) - 1} rows after it"
                raise UsageError(Mistake(where, f"columns of mixed types ({error})", "one type per column")) from error
    if not tables:
        return Dataset.from_dict({})
    table = pyarrow.concat_tables(tables, promote_options="permissive")
    if "views" in table.column_names and pyarrow.types.is_null(table.schema.field("views").type):
        table = table.drop_columns(["views"])
    return Dataset(InMemoryTable(table))


def warn_of_missing_views(components: Iterable[Component], rows: Any) -> None:
    """Rows that were encoded without views, in which components with views would have nothing to look at."""
    if _lack_views(rows):
        for component in components:
            if "views" in component.hook_points and component.makes_views:
                logger.warning(
                    "%s %s has no other version of any row to look at: the rows of train_dataset have no `views`. Make "
                    "them with alignkit.data.prepare.encode(task, examples, tokenizer, trainer.composition.views), or "
                    "train a recipe, which does",
                    component.kind,
                    component.name,
                )


def _lack_views(rows: Any) -> bool:
    """As far as it shows in a data set's columns, in a list's rows, or in the first row of another kind of set."""
    if (names := getattr(rows, "column_names", None)) is not None:
        return "views" not in names
    if not hasattr(rows, "__getitem__") or not hasattr(rows, "__len__"):
        return False
    shown = rows if isinstance(rows, list) else [rows[0]] if len(rows) else []
    return bool(shown) and all(isinstance(row, Mapping) and "views" not in row for row in shown)


def _rows(
    task: Task,
    example: Example,
    index: int,
    tokenizer: Any,
    views: Callable[[Example], dict[str, Example]] | None,
    columns: Sequence[str],
    unaligned: Collection[str],
) -> Iterator[dict[str, Any]]:
    found = windows(task.encode(example, tokenizer))
    if not found:
        return
    wanted = [name for name in columns if name not in task.columns]
    taken = sorted({*found[0], "index", "length", "views"}.intersection(wanted))
    if taken:
        raise PluginError(
            f"a component reads the data column {taken[0]!r}, a name that the encoded rows use themselves"
        )
    made = views(example) if views is not None else {}
    versions = {name: windows(task.encode(view, tokenizer)) for name, view in made.items()}
    for number, features in enumerate(found):
        row: dict[str, Any] = {**features, "index": index, "length": length(features)}
        row |= {name: example[name] for name in wanted if name in example}
        if views is not None:
            pairs = {name: view[number] if len(view) == len(found) else None for name, view in versions.items()}
            kept = {
                name: view
                for name, view in pairs.items()
                if view is not None and (name in unaligned or _scored(view) == _scored(features))
            }
            row["views"] = {name: kept.get(name) for name in pairs} if kept else None
        yield row


def _scored(features: dict[str, Any]) -> int:
    """How many label positions count; 1 where there is one label per example."""
    labels = features.get("labels", ())
    return sum(label != IGNORED for label in labels) if isinstance(labels, list | tuple) else 1


def _same_keys(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """pyarrow takes the columns from the first row."""
    names = dict.fromkeys(name for row in found for name in row)
    return [{name: row.get(name) for name in names} for row in found]


def _chunks(examples: Sequence[Example], size: int, what: str, show: bool = True) -> Iterator[list[Example]]:
    from tqdm.auto import tqdm

    with tqdm(total=len(examples), desc=what, unit="row", leave=False, disable=None if show else True) as bar:
        for start in range(0, len(examples), size):
            part = list(examples[start : start + size])
            yield part
            bar.update(len(part))
