"""Documents out of files of plain text."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Literal

from alignkit.data.read import Lines, NumberedRows, Reader
from alignkit.errors import Mistake

Documents = Literal["line", "paragraph", "file"]


def text_reader(documents: Documents) -> Reader:
    """Reads rows `text`: every line, every paragraph (blank lines end it), or the whole file; none is blank."""

    def paragraphs(lines: Lines, _name: str, _mistakes: list[Mistake]) -> NumberedRows:
        for written, block in groupby(lines, key=lambda line: bool(line[1].strip())):
            if written:
                yield _document(block)

    def file(lines: Lines, _name: str, _mistakes: list[Mistake]) -> NumberedRows:
        whole = list(lines)
        if any(text.strip() for _, text in whole):
            yield _document(whole)

    def each(lines: Lines, _name: str, _mistakes: list[Mistake]) -> NumberedRows:
        yield from (_document([line]) for line in lines if line[1].strip())

    return {"line": each, "paragraph": paragraphs, "file": file}[documents]


def _document(lines: Iterable[tuple[int, str]]) -> tuple[int, dict[str, str]]:
    """The line that it begins on, and its text without line breaks around it."""
    numbered = list(lines)
    first = next(number for number, text in numbered if text.strip())
    return first, {"text": "\n".join(text for _, text in numbered).strip("\n")}
