"""What a task's `encode` gives: the features of one row, of several windows, or nothing."""

from __future__ import annotations

from typing import Any

Features = dict[str, Any]


def windows(encoded: Features | list[Features] | None) -> list[Features]:
    """The rows that one example becomes."""
    if encoded is None:
        return []
    return encoded if isinstance(encoded, list) else [encoded]


def length(features: Features) -> int:
    """Tokens of the longest text in a row; of choices [C][T] the longest choice."""
    ids: Any = features.get("input_ids") or ()
    nested = bool(ids) and isinstance(ids[0], list | tuple)
    return max(map(len, ids)) if nested else len(ids)
