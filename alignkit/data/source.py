"""Where a split's rows come from: the `data:` section of a recipe."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from alignkit.sections import note


class Source(BaseModel):
    """One file or hub data set; in a recipe a bare string is its path."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    path: str
    """A file, or the id of a data set on the hub."""
    columns: dict[str, str] = {}
    """The task's field -> the file's column, or a template over columns: `"{instruction}\\n{context}"`."""
    rows: str | None = None
    """A slice of the rows, `100:`, `:2000`, `50:80`; the whole file where it is missing."""
    split: str | None = None
    """The split of a hub data set."""

    @field_validator("rows")
    @classmethod
    def _slice(cls, rows: str | None) -> str | None:
        if rows is not None and not re.fullmatch(r"\s*\d*\s*:\s*\d*\s*", rows):
            raise ValueError("expected a slice such as '100:', ':2000' or '50:80'")
        return rows


def _sources(value: Any) -> Any:
    """A path, a source or a list of either, as a list of sources."""
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


def _named(value: Any) -> Any:
    """Sources, or sources by name; the nameless ones are called as the split is."""
    if isinstance(value, dict) and "path" not in value:
        return value
    return {"": value}


Sources = Annotated[list[Source], BeforeValidator(_sources)]


class Data(BaseModel):
    """The splits. `test` may be several sets by name: `test: {benign: a.jsonl, harmful: b.csv}`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    train: Sources = Field(min_length=1)
    """Files or data sets to train on, in order."""
    validation: Sources | None = None
    """What checkpoints are chosen by and early stopping looks at."""
    test: Annotated[dict[str, Sources], BeforeValidator(_named)] = {}
    """What is reported on: one set, or several by name."""

    _note = field_validator("*")(note)

    def splits(self) -> dict[str, list[Source]]:
        """`train`, `validation`, `test` or `test/NAME` -> sources, those that are there."""
        found = {"train": list(self.train)}
        if self.validation:
            found["validation"] = list(self.validation)
        for name, sources in self.test.items():
            found[f"test/{name}" if name else "test"] = list(sources)
        return found
