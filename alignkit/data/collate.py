"""Rows of an encoded data set as the batch of one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alignkit.components import Batch

BESIDE = ("index", "length", "views")
"""What `alignkit.data.prepare.encode` puts beside the task's own columns."""


class StepCollator:
    """Collates what the model takes, and keeps what it does not take apart.

    Args:
        collate: makes the model's batch of a list of rows: `task.collate`, or any transformers data collator.
        columns: fields that components read and the model does not take.

    Returns:
        The model's batch first, then `index` [B]; `views`: by name a batch of those rows' views and `rows` [k], the
        batch rows that they belong to; `columns`: by name a tensor [B] where all values are numbers, else a list.
        Each is there only where the rows have it.

    Example:
        >>> StepCollator(DataCollatorWithPadding(tokenizer), columns=["group"])([dataset[0], dataset[1]])
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Batch], columns: Sequence[str] = ()):
        self.collate = collate
        self.columns = tuple(columns)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        beside = {*BESIDE, *self.columns}
        batch = dict(self.collate([{k: v for k, v in row.items() if k not in beside} for row in rows]))
        if all("index" in row for row in rows):
            batch["index"] = torch.tensor([int(row["index"]) for row in rows])
        if views := self._views(rows):
            batch["views"] = views
        if columns := {name: _column([row[name] for row in rows]) for name in self.columns if name in rows[0]}:
            batch["columns"] = columns
        return batch

    def _views(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Batch]:
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for position, row in enumerate(rows):
            for name, view in (row.get("views") or {}).items():
                if view is not None:  # a key that only other views have is None in a data set's struct
                    kept = {k: v for k, v in view.items() if v is not None and k not in self.columns}
                    found.setdefault(name, {})[position] = kept
        return {
            name: {**self.collate(list(views.values())), "rows": torch.tensor(list(views))}
            for name, views in found.items()
        }


def batch_rows(batch: Batch) -> int:
    """How many rows a collated batch has."""
    return len(next(value for value in batch.values() if isinstance(value, Tensor)))


def first_rows(batch: Batch, number: int) -> Batch:
    """A collated batch's first rows, with what belongs to them beside it; views of other rows are left out."""
    found = {k: v[:number] if isinstance(v, Tensor) else v for k, v in batch.items()}
    if "columns" in batch:
        found["columns"] = {name: values[:number] for name, values in batch["columns"].items()}
    if "views" in batch:
        views = {name: first_rows(view, int((view["rows"] < number).sum())) for name, view in batch["views"].items()}
        found["views"] = {name: view for name, view in views.items() if len(view["rows"])}
    return found


def _column(values: list[Any]) -> Tensor | list[Any]:
    return torch.tensor(values) if all(isinstance(v, bool | int | float) for v in values) else values
