"""`audit.jsonl`: what the filters did, one line per example that was dropped, edited or flagged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit.components import Verdict
    from alignkit.data.example import Example

TEXT_LENGTH = 200
"""Characters of the text that a line quotes."""


def audit_line(example: Example, component: str, verdict: Verdict) -> dict[str, Any]:
    """What one filter did to one example, which is quoted as it was before."""
    return {
        "split": example.split,
        "source": example.source,
        "line": example.line,
        "row": example.row,
        "component": component,
        "rule": verdict.rule,
        "action": verdict.action,
        "value": verdict.value,
        "threshold": verdict.threshold,
        "survivor": verdict.survivor,
        "text": example.text[:TEXT_LENGTH],
    }


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines whole: a reader finds the old file or the new one, never half of it."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False, default=_plain) + "\n")
    os.replace(unfinished, path)


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as JSON knows them; of anything else, its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
