"""The kind `evaluator`: what a task's own metrics do not measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from alignkit.components.answers import Measurement
from alignkit.components.component import Component
from alignkit.errors import Mistake

if TYPE_CHECKING:
    from alignkit.components.task import Task
    from alignkit.data import Example
    from alignkit.data.read import Reader
    from alignkit.data.source import Source
    from alignkit.evaluation.evaluators import Subject


class Evaluator(Component, abstract=True):
    """Measures what a task's own metrics do not: safety, bias, calibration. Implements `measure` and `metrics`.

    Takes no part in training; `evaluation: {evaluators: [...]}` and `alignkit evaluate --evaluator NAME` ask it. Its
    rows are those of its fields that are `alignkit.data.source.Sources`; where it has none, those of the test splits.
    """

    kind: ClassVar[str] = "evaluator"
    must_override: ClassVar[tuple[str, ...]] = ("measure", "metrics")
    directions: ClassVar[Mapping[str, int]] = {}
    """Of its metrics that are shown first, in order: 1 where more is better, -1 where less is, 0 where neither is. The
    others are in `metrics.json` and among the details of the report. Empty: all are shown, and their names decide."""
    counted: ClassVar[Mapping[str, str]] = {}
    """Of a metric that is about some rows only: the statistic that is not 0 in those. Where names end with `/`, of all
    metrics that begin so: `{"score/": "rows/"}` says of `score/young` that its rows are those of `rows/young`."""
    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".jsonl", ".json", ".csv", ".tsv")
    """File suffixes that it reads."""
    samples: ClassVar[Mapping[str, tuple[dict[str, Any], ...]]] = {}
    """By field the rows of a file as it might be, short, in lower-case English: what conformance cases try it on."""

    limit: PositiveInt | None = None
    """Rows of each of its fields, or of a split, that are looked at, at even distances; None: all."""

    def sources(self) -> dict[str, list[Source]]:
        """By field where its own rows come from."""
        from alignkit.data.source import Source

        return {
            name: value
            for name, value in self.fields().items()
            if isinstance(value, list) and value and all(isinstance(item, Source) for item in value)
        }

    def readers(self) -> Mapping[str, Reader]:
        """By suffix, what reads its files in another way than `alignkit.data.read`; of `.txt` each line is a `text`."""
        from alignkit.data.text import text_reader

        return {".txt": text_reader("line")}

    def parse(self, name: str, fields: dict[str, Any], where: str) -> Example:
        """Validate one row of the field `name`. Raises UsageError that says where, what was found, what was expected.

        The host says of the example where it comes from.
        """
        raise NotImplementedError

    def arrange(self, rows: Mapping[str, list[Example]]) -> list[Example]:
        """What is measured, of each field's rows; by default they follow one another. Raises UsageError."""
        return [example for own in rows.values() for example in own]

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """Before anything is measured: what the task, for the model that is to be measured, lacks for it."""
        return ()

    def measure(self, subject: Subject, examples: list[Example]) -> list[Measurement]:
        """One measurement per example, in order.

        Args:
            subject: the model in evaluation mode, with its task and tokenizer; what it predicts, `subject.predict`.
            examples: its own rows as `arrange` gave them, or a split's. What is found of a row does not depend on the
                others, unless `couples_rows`.
        """
        raise NotImplementedError

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics from summed statistics; elementwise, so that arrays [replicates] of sums give arrays of metrics."""
        raise NotImplementedError
