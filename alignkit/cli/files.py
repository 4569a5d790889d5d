"""Files that commands write: refused before the work, there whole or not at all after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from alignkit.errors import Mistake, UsageError


def refuse_unwritable(*files: Path | None, reads: tuple[Path | None, ...] = ()) -> None:
    """Refuse outputs that cannot be written, that are one file, or that are among the inputs.

    Args:
        reads: files, and folders every file of which is an input.

    Raises:
        UsageError: all of them.
    """
    from alignkit.run_folder import can_write

    outputs = [file for file in files if file is not None]
    inputs = {file.resolve() for file in reads if file is not None}
    mistakes = []
    for number, file in enumerate(outputs):
        if file.is_dir():
            mistakes.append(Mistake(str(file), "a folder", "a file to write"))
        elif not file.absolute().parent.is_dir():
            mistakes.append(Mistake(str(file), f"there is no folder {file.parent}", "a file in a folder that exists"))
        elif not can_write(file.absolute().parent):
            mistakes.append(Mistake(str(file), f"{file.parent} is not writable", "a folder that can be written to"))
        elif file.exists() and any(file.resolve().is_relative_to(read) for read in inputs):
            mistakes.append(Mistake(str(file), "it is read, and would be overwritten", "another file"))
        elif file.resolve() in {other.resolve() for other in outputs[:number]}:
            mistakes.append(Mistake(str(file), "named for two outputs", "a file for each"))
    if mistakes:
        raise UsageError(*mistakes)


@contextmanager
def written_whole(file: Path | None) -> Iterator[IO[str]]:
    """A stream into a file that takes its place at the end, or vanishes if something fails; stdout without a file."""
    if file is None:
        yield sys.stdout
        return
    unfinished = file.with_name(f"{file.name}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as stream:
            yield stream
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
