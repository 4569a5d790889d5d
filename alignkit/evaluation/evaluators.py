"""What evaluators measure of a finished model: their rows, read and validated, and the statistics of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.components import Measurement
from alignkit.compose import name_apart
from alignkit.errors import Mistake, PluginError, UsageError
from alignkit.evaluation.robustness import spread
from alignkit.evaluation.score import evaluating, predictions
from alignkit.generation import Controlled

if TYPE_CHECKING:
    from torch import nn

    from alignkit.components import Control, Evaluator, Task
    from alignkit.data import Example
    from alignkit.data.source import Source
    from alignkit.evaluation.bootstrap import Floats

BY = " by "
"""Between a split's name and the evaluator's that looked at it: `test by calibration`."""
SPLITS = ("train", "validation", "test")
"""Names that an evaluator with rows of its own cannot have."""

Rows = dict[str, list["Example"]]
"""By evaluator its own rows."""


@dataclass
class Subject:
    """A finished model as evaluators see it: in evaluation mode, without gradients."""

    task: Task
    model: nn.Module
    tokenizer: Any
    batch_size: int = 32
    """Rows that the model is asked about at once."""
    known: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)
    """Predictions that are there already, by the example's identity."""
    controls: Sequence[Control] = ()
    """What controls its answers; they change no prediction."""
    controlled: bool = False
    """It has been asked for answers under them."""

    def predict(self, examples: list[Example]) -> list[dict[str, Any]]:
        """A prediction per example, as the task gives it; an empty one where there is nothing to predict."""
        asked = [example for example in examples if id(example) not in self.known]
        said = predictions(self.task, self.model, self.tokenizer, asked, self.batch_size, progress=False)
        found = iter(said)
        return [self.known[id(e)] if id(e) in self.known else next(found) for e in examples]

    def answers(self, examples: list[Example], **options: Any) -> Iterator[dict[str, Any]]:
        """What it answers to each example, as `alignkit predict` does, under its controls.

        Args:
            options: of the task's `predict`.
        """
        if self.controls:
            self.controlled = True
            controlled = Controlled(self.controls, self.task, self.model, self.tokenizer)
            return controlled.answers(examples, self.batch_size, **options)
        return self.task.predict(self.model, self.tokenizer, examples, self.batch_size, **options)


@dataclass
class Evaluated:
    """What an evaluator found of some rows."""

    names: list[str]
    """Of the K statistics."""
    matrix: Floats
    """[N, K]."""
    lines: list[dict[str, Any]]
    """What is worth reading, as `evaluations.jsonl` holds it."""


def evaluated(evaluator: Evaluator, subject: Subject, examples: list[Example]) -> Evaluated:
    """Ask an evaluator about a model.

    Raises:
        PluginError: it does not give one measurement per example, or statistics that are no numbers.
    """
    with evaluating(subject.model):
        subject.task.take_weights(subject.model, subject.tokenizer)
        found = evaluator.measure(subject, examples)
    if len(found) != len(examples) or not all(isinstance(one, Measurement) for one in found):
        raise PluginError(f"{_described(evaluator)}: {len(found)} measurements of {len(examples)} rows")
    names = list(dict.fromkeys(name for one in found for name in one.statistics))
    rows = [[float(one.statistics.get(name, 0.0)) for name in names] for one in found]
    matrix = np.array(rows, dtype=np.float64).reshape(len(found), len(names))
    if not np.isfinite(matrix).all():
        row, column = (int(places[0]) for places in np.nonzero(~np.isfinite(matrix)))
        raise PluginError(f"{_described(evaluator)}: the statistic {names[column]!r} of row {row} is not finite")
    places = [{"split": e.split, "source": e.source, "row": e.row, "line": e.line} for e in examples]
    lines = [{**place, **one.line} for place, one in zip(places, found, strict=True) if one.line]
    return Evaluated(names, matrix, lines)


def _described(evaluator: Evaluator) -> str:
    return f"evaluator {evaluator.name!r} ({type(evaluator).__module__}.{type(evaluator).__qualname__})"


# -- before anything is measured -----------------------------------------------------------------------------------


def unfit(evaluators: Sequence[Evaluator], task: Task, splits: bool = True) -> Iterator[Mistake]:
    """Evaluators that the task, or the data, cannot be measured by, each with the reason.

    Args:
        splits: there is a test or a validation split.
    """
    name_apart(evaluators)
    for evaluator in evaluators:
        where = f"evaluator {evaluator.name}"
        own = bool(evaluator.sources())
        if own and evaluator.name in SPLITS:
            yield Mistake(where, "its results would be called as a split is", "another name", "give it a `name:`")
        if not own and not splits:
            found = "the data has neither a test nor a validation split, so that it has no row to look at"
            yield Mistake(where, found, "a split to look at", "add `test:` to `data:`")
        yield from evaluator.check_task(task)


def read(evaluators: Sequence[Evaluator], base: Path) -> Rows:
    """The rows of those evaluators that bring their own, at most `limit` of each field.

    Args:
        base: the folder that relative paths start from.

    Raises:
        UsageError: with the mistakes of all files.
    """
    from alignkit.data.load import abridged

    name_apart(evaluators)
    found: Rows = {}
    mistakes: list[Mistake] = []
    for evaluator in evaluators:
        rows: dict[str, list[Example]] = {}
        wrong: list[Mistake] = []
        for name, sources in evaluator.sources().items():
            rows[name] = []
            for source in sources:
                examples, of_source = _of_source(evaluator, name, source, base, len(rows[name]))
                rows[name] += examples
                wrong += abridged(of_source, source.path)
            rows[name] = [rows[name][row] for row in spread(len(rows[name]), evaluator.limit)]
        if rows and not wrong:
            try:
                found[evaluator.name] = evaluator.arrange(rows)
            except UsageError as error:
                wrong += abridged(error.mistakes, f"evaluator {evaluator.name}")
        mistakes += wrong
    if mistakes:
        raise UsageError(*dict.fromkeys(mistakes))
    return found


def _of_source(
    evaluator: Evaluator, name: str, source: Source, base: Path, first: int
) -> tuple[list[Example], list[Mistake]]:
    """One source's rows, numbered from `first`, and every mistake found on the way."""
    from alignkit.data.read import rows

    examples: list[Example] = []
    mistakes: list[Mistake] = []
    try:
        numbered = rows(source, evaluator.suffixes, base, readers=evaluator.readers())
        for row, (fields, where, line) in enumerate(numbered, first):
            try:
                example = evaluator.parse(name, fields, where)
            except UsageError as error:
                mistakes += error.mistakes
            else:
                examples.append(replace(example, split=evaluator.name, source=source.path, row=row, line=line))
    except UsageError as error:  # of the file as a whole: what the rows lack may only follow from it
        mistakes = [*error.mistakes, *mistakes]
    return examples, mistakes
