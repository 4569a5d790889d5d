"""Rows that a column marks: those that a constraint applies to, where it does not apply to all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from alignkit.components import Batch
from alignkit.data import Example
from alignkit.data.columns import unmapped
from alignkit.errors import Mistake
from alignkit.tasks.stock import scored_per_row

_NO = ("", "0", "false", "no", "none", "null")


def is_marked(value: Any) -> bool:
    """Whether a field's value says yes: not what Python takes for false, nor the texts `0`, `false`, `no`, `none`.

    NaN is what tables have where there is nothing.
    """
    return value.strip().casefold() not in _NO if isinstance(value, str) else value == value and bool(value)


def nothing_marked(column: str, rows: Sequence[Example], where: str) -> Iterator[Mistake]:
    """That none of the training rows is marked, where some are to be.

    Args:
        column: which marks them; empty: all rows count.
    """
    if column and rows and not any(is_marked(row.get(column)) for row in rows):
        known = {name: "" for row in rows for name in row if name != column}
        found = f"no training row says yes in the column {column!r}, so that it would apply to none"
        yield Mistake(where, found, "rows that do", unmapped(column, known))


def of_marked(batch: Batch, values: Tensor | Sequence[Any], number: int) -> Tensor:
    """[N] of booleans: which predictions are those of marked rows.

    Args:
        batch: what is predicted for, B rows.
        values: [B], the column.
        number: N, the predictions of all rows, which come row by row.
    """
    marks = [is_marked(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
    return torch.tensor(marks).repeat_interleave(torch.tensor(scored_per_row(batch, number)))
