"""Self-supervised pre-training: what masked and causal language models have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from alignkit.components import Batch, Task
from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.data.read import Reader
from alignkit.data.text import Documents, text_reader
from alignkit.errors import Mistake, UsageError
from alignkit.tasks.likelihood import loss_gap, loss_metrics, loss_statistics, losses
from alignkit.tasks.packing import collated, first_position, packed


class PlainText(Task, abstract=True):
    """Learns from text alone, which needs no labels."""

    maximum_length: Annotated[int, Field(ge=8)] = 256
    """Tokens in a row. A longer document becomes several windows; shorter ones share rows in training."""
    documents: Documents = "line"
    """Of a `.txt` file: what one document is, a `line`, a `paragraph` (blank lines end it), or the whole `file`."""
    packed: bool = True
    """Put several short documents into one training row; none of them sees another. Done where the model's kind is
    known to keep them apart and no component looks at single rows."""

    has_head: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".jsonl", ".json", ".csv", ".tsv")
    metric: ClassVar[str] = "perplexity"
    greater_is_better: ClassVar[bool] = False
    windowed: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("window",)
    samples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"text": "ada lives in rome and works in paris"},
        {"text": "the film was very good"},
        {"text": "bob saw the film , and it was not bad"},
        {"text": "ada was a a , ada saw a"},
        {"text": "who was it ? it was ada !"},
        {"text": "she saw bob in rome . he was fine . they went to the film , and the film was very very good"},
    )

    def __post_init__(self) -> None:
        self._first_position: int | None = None
        """Of a text in the model that was looked at; None: its rows are not packed."""

    # -- data --------------------------------------------------------------------------------------------------

    def readers(self) -> Mapping[str, Reader]:
        return {".txt": text_reader(self.documents)}

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        text = fields.get("text")
        if "text" not in fields:
            raise UsageError(Mistake(where, "no 'text'", mend=unmapped("text", fields)))
        if not isinstance(text, str) or not text.strip():
            found = "is blank" if isinstance(text, str) else f"is {text!r}"
            raise UsageError(Mistake(where, f"'text' {found}", "text"))
        return Example(fields, inputs=("text",))

    # -- the model's side --------------------------------------------------------------------------------------

    def take_model(self, config: Mapping[str, Any]) -> None:
        self._first_position = first_position(config, self.maximum_length) if self.packed else None

    def limit(self, tokenizer: Any) -> int:
        """The longest row in tokens."""
        return int(min(self.maximum_length, tokenizer.model_max_length))

    def pack(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return rows if self._first_position is None else packed(rows, self.maximum_length, self._first_position)

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        kept = [{name: value for name, value in row.items() if name not in self.columns} for row in features]
        return collated(kept, tokenizer, causal=self.shifts_labels)

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """`nll`, the sum over the window's learnt tokens in nats, how many `tokens` they are, and which `window`."""
        found = losses(outputs, batch, self.shifts_labels)
        numbers = (batch.get("columns") or {}).get("window")
        return found if numbers is None else [{**p, "window": int(n)} for p, n in zip(found, numbers, strict=True)]

    def join(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The sums over a document's windows, each once."""
        each = {part.get("window", i): part for i, part in enumerate(parts)}.values()
        return {name: sum(part[name] for part in each) for name in parts[0] if name != "window"}

    # -- scores ------------------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        return loss_statistics(prediction)

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`loss`, nats per learnt token, and `perplexity`, its exponential."""
        return loss_metrics(totals)

    def gap(self, one: dict[str, Any], other: dict[str, Any]) -> float:
        """How far the mean losses of two versions of one example lie apart, in nats per token."""
        return loss_gap(one, other)

    # -- answers -----------------------------------------------------------------------------------------------

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """A text."""
        return self.parse({"text": given} if isinstance(given, str) else {**given}, "input")

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """The text and what the model makes of it."""
        return {"text": example["text"], **prediction}
