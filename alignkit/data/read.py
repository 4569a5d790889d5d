"""Rows out of files (CoNLL columns, JSON lines, CSV) and hub data sets, with the line each of them stands on.

Every mistake of a file is found in one reading: `rows` yields the rows that are good, and when they are through
raises one `UsageError` with all that were not.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from alignkit.data.columns import Columns
from alignkit.errors import Mistake, UsageError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

    from alignkit.data.source import Source

Row = dict[str, Any]
Lines = Iterator[tuple[int, str]]
"""(line from 1, its text with neither `\\n` nor `\\r\\n`)."""
NumberedRows = Iterator[tuple[int, Row]]
"""(line from 1 or 0 where there is none, fields)."""
Reader = Callable[[Lines, str, list[Mistake]], NumberedRows]
"""Rows out of the lines of a file of that name; what is wrong with it is added to the list."""
Unfold = Callable[[Row], Iterable[tuple[str, Row]]]
"""The rows in one object of a file, each with its place in it, as `Task.unfold` gives them."""

TOKEN_COLUMNS = (".conll", ".txt", ".bio", ".iob")
"""Suffixes of files with one word per line: word first, tag last."""

_FILE_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,7}$")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def rows(
    source: Source,
    suffixes: Iterable[str],
    base: Path,
    unfold: Unfold = lambda row: [("", row)],
    readers: Mapping[str, Reader] = MappingProxyType({}),
) -> Iterator[tuple[Row, str, int]]:
    """The rows of one source, columns mapped, in order.

    Args:
        source: a file or the id of a hub data set, with `columns` and `rows`.
        suffixes: what the task reads.
        base: the folder that relative paths start from.
        unfold: the rows in one object of a file; by default it is one row.
        readers: by suffix, those of the task's own.

    Yields:
        (fields, where, line): `where` is `train.conll:31` or `train.json question 56be`, `line` is 0 where rows have
        no line of their own.

    Raises:
        UsageError: at the end, with every mistake of the file.
    """
    mistakes: list[Mistake] = []
    mapping = Columns(source)
    found = 0
    start, _, stop = (source.rows or ":").partition(":")
    known = {suffix: {**_READERS, **readers}[suffix] for suffix in suffixes if suffix in {**_READERS, **readers}}
    whole = _numbered(source, known, base, mistakes)
    numbered = enumerate((0 if place else line, place, row) for line, o in whole for place, row in unfold(o))
    for position, (line, place, row) in islice(numbered, int(start or 0), int(stop) if stop.strip() else None):
        found += 1
        where = f"{source.path}:{line}" if line else f"{source.path} {place or f'row {position}'}"
        fields = mapping.apply(row, where)
        if fields is not None:
            yield fields, where, line
    mistakes += mapping.mistakes()
    if not found and not mistakes:
        mistakes.append(Mistake(source.path, "no rows" + (f" in the slice {source.rows!r}" if source.rows else "")))
    if mistakes:
        raise UsageError(*mistakes)


# -- which reader ------------------------------------------------------------------------------------------------


def _numbered(source: Source, readers: Mapping[str, Reader], base: Path, mistakes: list[Mistake]) -> NumberedRows:
    path = base / Path(source.path).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in readers)
        mend = f"name one of its files: {', '.join(inside[:8])}" if inside else ""
        mistakes.append(Mistake(source.path, "a directory", "a file", mend))
    elif path.is_file():
        if suffix in readers:
            yield from _file(path, source.path, readers[suffix], mistakes)
        else:
            found = f"a file of an unknown kind ({suffix or 'no suffix'})"
            mistakes.append(Mistake(source.path, found, f"one of {', '.join(readers)}"))
    elif absent := missing(source, base):
        mistakes.append(absent)
    else:
        yield from _hub(source, path, mistakes)


def missing(source: Source, base: Path) -> Mistake | None:
    """A file that is not there, and is no id of a data set on the hub."""
    path = base / Path(source.path).expanduser()
    if path.exists() or _may_be_on_the_hub(source.path, path):
        return None
    return Mistake(source.path, "no such file", mend=_neighbour(path))


def _file(path: Path, name: str, reader: Reader, mistakes: list[Mistake]) -> NumberedRows:
    try:
        yield from reader(_lines(path, name, mistakes), name, mistakes)
    except OSError as error:
        mistakes.append(Mistake(name, f"cannot be read: {error.strerror or error}"))


def _may_be_on_the_hub(name: str, path: Path) -> bool:
    """An id, and no path: what begins with a folder that is there, or ends like a file, is a misspelt path."""
    is_path = "/" in name and path.parent.is_dir()
    return bool(_HUB_ID.fullmatch(name)) and not _FILE_SUFFIX.search(name) and not is_path


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r}"
    return nearest(path.name, (p.name for p in path.parent.iterdir() if p.is_file()))


def _lines(path: Path, name: str, mistakes: list[Mistake]) -> Lines:
    r"""Lines end at \n alone: a token may hold what `str.splitlines` takes for a line's end."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                mistakes.append(Mistake(f"{name}:1", "UTF-16 text", "UTF-8", "save the file as UTF-8"))
                return
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{raw[error.start]:02x} at position {error.start + 1} is not UTF-8"
                mistakes.append(Mistake(f"{name}:{number}", found, "UTF-8 text", "save the file as UTF-8"))
                text = raw.decode("utf-8", errors="replace")
            yield number, text.removesuffix("\n").removesuffix("\r")


# -- word columns ------------------------------------------------------------------------------------------------


def _token_columns(lines: Lines, name: str, mistakes: list[Mistake]) -> NumberedRows:
    """Sentences of one word per line: the word first, its tag last; tabs between them, or else spaces."""
    tokens: list[str] = []
    tags: list[str] = []
    first, shape, whole = 0, (0, 0), True
    for number, text in lines:
        if not text.strip(" \t") or text.startswith("-DOCSTART-"):
            if tokens and whole:
                yield first, {"tokens": tokens, "tags": tags}
            tokens, tags, whole = [], [], True
            continue
        if "\t" in text:
            cells = [cell.strip(" ") for cell in text.rstrip(" \t").split("\t")]
        else:
            cells = re.split(" +", text.strip(" "))
        first = first if tokens else number
        tokens.append(cells[0])
        tags.append(cells[-1])
        columns, at = shape
        if len(cells) < 2 or not cells[0]:
            whole = False
            found = "1 column" if len(cells) < 2 else "an empty first column"
            mistakes.append(Mistake(f"{name}:{number}", found, "a word and its tag, two columns or more"))
        elif columns and len(cells) != columns:
            whole = False
            mistakes.append(Mistake(f"{name}:{number}", f"{len(cells)} columns", f"{columns}, as in line {at}"))
        elif not columns:
            shape = (len(cells), number)
    if tokens and whole:
        yield first, {"tokens": tokens, "tags": tags}


# -- JSON --------------------------------------------------------------------------------------------------------


def _json_lines(lines: Lines, name: str, mistakes: list[Mistake]) -> NumberedRows:
    for number, text in lines:
        if text.strip():
            for row in _json(text, f"{name}:{number}", mistakes):
                if isinstance(row, dict):
                    yield number, row
                else:
                    mistakes.append(Mistake(f"{name}:{number}", f"a JSON {_kind(row)}", "a JSON object"))


def _json_file(lines: Lines, name: str, mistakes: list[Mistake]) -> NumberedRows:
    """A list of objects, or one object; a file of that suffix which holds JSON lines is read as such."""
    numbered = list(lines)
    first = next((text for _, text in numbered if text.strip()), "")
    if not first.lstrip().startswith("[") and _is_json(first):
        yield from _json_lines(iter(numbered), name, mistakes)
        return
    values = _json("\n".join(text for _, text in numbered), name, mistakes) if first else []
    for position, row in enumerate(chain(*(value if isinstance(value, list) else [value] for value in values))):
        if isinstance(row, dict):
            yield 0, row
        else:
            mistakes.append(Mistake(f"{name} row {position}", f"a JSON {_kind(row)}", "a JSON object"))


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _json(text: str, where: str, mistakes: list[Mistake]) -> list[Any]:
    """The one value that the text says, or none and a mistake."""
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        twice.extend(k for k in row if sum(k == other for other, _ in pairs) > 1) if len(row) < len(pairs) else None
        return row

    try:
        value = json.loads(text, object_pairs_hook=unique)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, but no text
    except json.JSONDecodeError as error:
        at = f"{where}:{error.lineno}" if error.lineno > 1 else where
        mistakes.append(Mistake(at, f"not JSON: {error.msg} at column {error.colno}"))
        return []
    except UnicodeEncodeError:
        mistakes.append(Mistake(where, "half of a surrogate pair in a \\u escape", "Unicode text"))
        return []
    except RecursionError:
        mistakes.append(Mistake(where, "not JSON that can be read: nested too deeply"))
        return []
    mistakes += [Mistake(where, f"the key {key!r} twice", "each key once") for key in dict.fromkeys(twice)]
    return [] if twice else [value]


def _kind(value: Any) -> str:
    return {list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


# -- CSV ---------------------------------------------------------------------------------------------------------


def _csv(lines: Lines, name: str, mistakes: list[Mistake]) -> NumberedRows:
    return _delimited(lines, name, mistakes, ",")


def _tsv(lines: Lines, name: str, mistakes: list[Mistake]) -> NumberedRows:
    return _delimited(lines, name, mistakes, "\t")


def _delimited(lines: Lines, name: str, mistakes: list[Mistake], delimiter: str) -> NumberedRows:
    """Cells as Python's csv module writes them, after a header line. A row's line is the one it begins on."""
    # strict: otherwise a stray quotation mark silently swallows what follows it
    reader = csv.reader((f"{text}\n" for _, text in lines), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            mend = "put cells with quotation marks into quotation marks, and double those inside"
            mistakes.append(Mistake(f"{name}:{line}", f"not {name.rpartition('.')[2].upper()}: {error}", mend=mend))
            continue
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            repeated = sorted({c for c in header if header.count(c) > 1})
            mistakes += [Mistake(f"{name}:{line}", f"the column {c!r} twice", "each column once") for c in repeated]
        elif len(cells) != len(header):
            mistakes.append(Mistake(f"{name}:{line}", _cells(len(cells)), f"{len(header)}, as in the header"))
        else:
            yield line, dict(zip(header, cells, strict=True))


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"


_READERS: dict[str, Reader] = {
    **dict.fromkeys(TOKEN_COLUMNS, _token_columns),
    ".jsonl": _json_lines,
    ".json": _json_file,
    ".csv": _csv,
    ".tsv": _tsv,
}


# -- hub data sets -----------------------------------------------------------------------------------------------


def _hub(source: Source, path: Path, mistakes: list[Mistake]) -> NumberedRows:
    import datasets

    split = source.split or "train"
    try:
        dataset = datasets.load_dataset(source.path, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        found = f"neither a file nor a data set whose split {split!r} can be loaded ({reason})"
        mistakes.append(Mistake(source.path, found, mend=_neighbour(path)))
    else:
        for row in named_rows(dataset):
            yield 0, row


def named_rows(dataset: Dataset) -> Iterator[Row]:
    """Rows in which the integers of `ClassLabel` features, alone or in lists, are the names they stand for."""
    names = {name: labels for name, f in dataset.features.items() if (labels := _class_names(f))}
    for row in dataset:
        yield {name: _named(value, names[name]) if name in names else value for name, value in row.items()}


def _class_names(feature: Any) -> list[str] | None:
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "names", None)


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(v, names) for v in value]
    return names[value] if isinstance(value, int) and value >= 0 else None
