"""Trainings of a benchmark: each in a process of its own, each leaving a file; those that are there are not made again.

Not a script: `bias.py`, `budgets.py` and `robustness.py` use it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

Job = TypeVar("Job")


def carry_out(
    script: str,
    jobs: Iterable[Job],
    *,
    file_of: Callable[[Job], Path],
    trained: Callable[[Job], dict[str, Any]],
    options: Callable[[Job], Sequence[object]],
    line: Callable[[dict[str, Any]], Sequence[object]],
    at_once: int = 1,
    deadline: float | None = None,
) -> bool:
    """Make what is missing, and print a line for each.

    A single missing job with `at_once` 1 is made in this process; that is how the script is called for each of several.

    Args:
        script: the benchmark's own file.
        file_of: where a job leaves what `trained` finds, as JSON; a file that is there is complete.
        options: the command line on which the script makes that job alone.
        line: what is printed of a result, after the job.
        at_once: processes at a time.
        deadline: begin none after so many seconds.

    Returns:
        Whether other processes did the work, or there was none: then it is for the caller to show all results.
    """
    missing = [job for job in jobs if not file_of(job).is_file()]
    if len(missing) == 1 and at_once == 1:
        found = trained(missing[0])
        _write(file_of(missing[0]), found)
        print(missing[0], *line(found), flush=True)
        return False
    begun = time.monotonic()

    def one(job: Job) -> None:
        if deadline and time.monotonic() - begun > deadline:
            print(job, "not begun: too late", flush=True)
            return
        done = subprocess.run([sys.executable, script, *map(str, options(job))], capture_output=True, text=True)
        said = done.stdout.strip().splitlines()
        print(said[-1] if said and not done.returncode else f"{job}: {done.stderr[-2000:]}", flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, missing))
    return True


def _write(file: Path, found: dict[str, Any]) -> None:
    """Under another name first: a process that is ended early leaves no half a file."""
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(found), encoding="utf-8")
    unfinished.rename(file)
