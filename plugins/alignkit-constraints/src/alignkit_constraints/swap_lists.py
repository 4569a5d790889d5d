"""Swap lists: which words stand for one another, as files hold them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from alignkit.errors import Mistake, nearest

By = Literal["columns", "lines", "both"]
_WAYS: tuple[By, ...] = get_args(By)

SHIPPED = ("gender", "names", "nationality")
"""Lists that come with this package, in English and Chinese."""
_DIRECTIVE = re.compile(r"#\s*swap\s*:\s*(.*)")


@dataclass(frozen=True)
class SwapList:
    """Words in lines and columns, and how one stands in for another.

    Example:
        >>> names = SwapList(((("James",), ("Mary",)), (("Juan",), ("Rosa",))), by="both")
        >>> [names.counterpart(0, 0, draw) for draw in range(3)]
        ['Mary', 'Rosa', 'Mary']
    """

    lines: tuple[tuple[tuple[str, ...], ...], ...]
    """Line -> column -> the word's spellings; the first is the one that is written."""
    by: By = "columns"
    """`columns`: the words of a line stand for one another; `lines`: those of a column, all words of one line for those
    of another; `both`: another column of any line."""

    def counterpart(self, line: int, column: int, draw: int) -> str:
        """The word that stands in for another one.

        Args:
            draw: a number from 0 on that chooses where there is a choice; with one draw no two words of a column (of
                a line, by columns) get the same counterpart.
        """
        if self.by == "lines":
            line = (line + 1 + draw % (len(self.lines) - 1)) % len(self.lines)
            return self.lines[line][column][0]
        if self.by == "both":
            draw, shift = divmod(draw, len(self.lines))
            line = (line + shift) % len(self.lines)
        width = len(self.lines[line])
        return self.lines[line][(column + 1 + draw % (width - 1)) % width][0]


def read_list(name: str, language: str) -> tuple[list[SwapList], list[Mistake]]:
    """A shipped list or a user's file, a `SwapList` for each of its parts, and what is wrong with it.

    Args:
        name: `gender`, `names`, `nationality`, or the path of a UTF-8 file: two words or more per line, separated by
            tabs; several spellings of a word by `|`. Empty lines and those that start with `#` are skipped, but for
            `#swap: lines`, `#swap: both` and `#swap: columns`, which begin a part and say how its words are swapped.
        language: `en` or `zh`; which of the shipped lists.
    """
    if name in SHIPPED:
        text = resources.files(__package__).joinpath("lists", language, f"{name}.tsv").read_text(encoding="utf-8")
        return _parse(text, name)
    path = Path(name)
    if not path.is_file():
        expected = f"{', '.join(SHIPPED[:-1])} or {SHIPPED[-1]}, or a file"
        return [], [Mistake(f"swap list {name}", "no such list or file", expected, nearest(path.name, SHIPPED))]
    try:
        return _parse(path.read_text(encoding="utf-8-sig"), name)
    except UnicodeDecodeError as error:
        return [], [Mistake(name, f"no UTF-8 at byte {error.start}", "UTF-8 text", "save the file as UTF-8")]


@dataclass
class _Part:
    by: By
    where: str
    lines: list[tuple[tuple[str, ...], ...]]


def _parse(text: str, name: str) -> tuple[list[SwapList], list[Mistake]]:
    parts, mistakes = [_Part("columns", name, [])], []
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{name}:{number}"
        if directive := _DIRECTIVE.fullmatch(line.strip()):
            said = directive.group(1)
            if by := next((by for by in _WAYS if by == said), None):
                parts.append(_Part(by, where, []))
            else:
                mistakes.append(Mistake(where, f"#swap: {said}", "columns, lines or both", nearest(said, _WAYS)))
        elif line.strip() and not line.startswith("#"):
            cells = tuple(tuple(s.strip() for s in cell.split("|")) for cell in line.split("\t"))
            if mistake := _wrong(cells, parts[-1], where):
                mistakes.append(mistake)
            else:
                parts[-1].lines.append(cells)
    mistakes += [Mistake(p.where, "one line", "two or more to choose from") for p in parts if _lonely(p)]
    if not mistakes and not any(part.lines for part in parts):
        mistakes.append(Mistake(name, "no words", "two words separated by a tab in each line"))
    return [SwapList(tuple(part.lines), part.by) for part in parts if part.lines], mistakes


def _lonely(part: _Part) -> bool:
    return part.by == "lines" and len(part.lines) == 1


def _wrong(cells: tuple[tuple[str, ...], ...], part: _Part, where: str) -> Mistake | None:
    found = f"{len(cells)} column{'s' * (len(cells) != 1)}"
    if not all(spelling for cell in cells for spelling in cell):
        return Mistake(where, "an empty column or spelling", "words separated by tabs")
    if len(cells) < 2 and part.by != "lines":
        return Mistake(where, found, "two words or more separated by tabs")
    if part.by != "columns" and part.lines and len(cells) != len(part.lines[0]):
        return Mistake(where, found, f"{len(part.lines[0])}, as in the lines above")
    return None
