"""The recipe's `columns:`: a file's columns as the task's fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from alignkit.errors import Mistake, nearest

if TYPE_CHECKING:
    from alignkit.data.source import Source

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class Columns:
    """Maps a file's columns to the task's fields; a column that is missing is one mistake for all rows."""

    def __init__(self, source: Source):
        self.source = source
        self.known: set[str] = set()
        self.lacking: dict[str, tuple[str, int]] = {}
        """Column -> where it was first missed, and in how many rows."""

    def apply(self, row: dict[str, Any], where: str) -> dict[str, Any] | None:
        """The row with the task's fields; None where a column is missing."""
        self.known.update(row)
        lacking = [c for c in self.source.columns.values() if c not in row and "{" not in c]
        for column in lacking:
            first, count = self.lacking.get(column, (where, 0))
            self.lacking[column] = (first, count + 1)
        return None if lacking else row | {name: self._value(c, row) for name, c in self.source.columns.items()}

    def _value(self, column: str, row: dict[str, Any]) -> Any:
        if column in row:
            return row[column]
        # not str.format: a placeholder is a column's name, with no attributes or items to reach
        return _PLACEHOLDER.sub(lambda match: self._part(match, row), column).strip()

    @staticmethod
    def _part(match: re.Match[str], row: dict[str, Any]) -> str:
        if match[1] is None:
            return match[0][0]
        value = row.get(match[1])
        return "" if value is None else str(value)

    def mistakes(self) -> Iterator[Mistake]:
        templates = [c for c in self.source.columns.values() if "{" in c and c not in self.known]
        parts = dict.fromkeys(m[1] for c in templates for m in _PLACEHOLDER.finditer(c) if m[1] is not None)
        lacking = {part: (self.source.path, 0) for part in parts if self.known and part not in self.known}
        for column, (where, count) in {**self.lacking, **lacking}.items():
            rows = f" in {count} rows" if count > 1 else ""
            free = [name for name in self.known if name not in self.source.columns.values()]
            yield Mistake(where, f"no column {column!r}{rows}", mend=nearest(column, free or self.known))


def unmapped(name: str, fields: Mapping[str, Any]) -> str:
    """How to mend that a row lacks one of the task's fields: the nearest column, and where to name it."""
    return "; ".join(filter(None, (nearest(name, fields), f"map it with `columns: {{{name}: …}}`")))
