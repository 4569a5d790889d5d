"""A whole search: checked, tried out, and its best recipe carried out in full."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignkit import checking, run_folder
from alignkit.errors import Mistake, UsageError
from alignkit.recipe import Recipe
from alignkit.recipe.file import dump, parse, read
from alignkit.recipe.tuning import Tune, label
from alignkit.run import train
from alignkit.tuning.lines import Lines
from alignkit.tuning.plot import save_plot
from alignkit.tuning.space import Search, Space, checked
from alignkit.tuning.study import Study, installed, quiet
from alignkit.tuning.trial import Trial, free

TUNE, BEST, BEST_RECIPE, TABLE, PLOT = "tune.yaml", "best", "best.yaml", "trials.csv", "tune.png"
_MAY_CHANGE = ("trials", "timeout")
"""What a search that goes on may have otherwise: how long it lasts."""


@dataclass(frozen=True)
class Tuned:
    """A finished search."""

    path: Path
    """Its folder; `best/` in it is the run of the best recipe."""
    metric: str
    trials: list[Trial]
    best: Trial
    best_recipe: Recipe
    """The recipe with the best trial's values, and without `tune:`; also in `best.yaml`."""
    metrics: dict[str, Any]
    """Of the best recipe's run, as in `best/metrics.json`."""

    @property
    def best_value(self) -> float:
        """The best trial's score on the validation split. The best of many tries flatters: quote the test split."""
        assert self.best.score is not None
        return self.best.score


def tune(
    recipe: Recipe | str | Path,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Search the fields that a recipe's `tune:` section names, then carry out the best recipe in full.

    Args:
        recipe: a `Recipe`, or the path of its file.
        output: the search's folder; by default the recipe's `output` with `-tune` behind it.
        resume: go on with the search in the folder (from the start where there is none).
        say: is told what happens, a line per trial.

    Raises:
        UsageError: anything that the user can mend. What is wrong with the recipe, its data or the values to be tried
            is found before anything is written.

    Example:
        tuned = alignkit.tune("recipe.yaml")
        tuned.best.values, tuned.best_value, tuned.metrics["after"]["test"]
    """
    started = time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else checking.load(recipe)
    if recipe.tune is None:
        mend = "write `tune: {search: {training.learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}}}`"
        raise UsageError(Mistake(recipe.where("tune"), "missing", "the fields to search", f"{mend}, or pass --search"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(Mistake("alignkit tune", "several processes", "one", "start it without `accelerate launch`"))
    folder = _folder(recipe, output)
    placed = recipe.varied({"output": str(folder)})
    with run_folder.reserved(placed), quiet(installed()):
        _refuse_taken(placed, folder, resume)
        search = _checked(recipe, recipe.tune)
        folder.mkdir(parents=True, exist_ok=True)
        placed.save(folder / TUNE)
        study = Study(recipe, recipe.tune, search, folder)
        _try_out(study, folder, started, say)
        return _finished(recipe, study, folder, say)


def _checked(recipe: Recipe, tune: Tune) -> Search:
    """The search of a recipe that is sound as it stands, or with the first values of its fields."""
    try:
        splits = checking.checked(recipe).splits
    except UsageError:
        try:
            first = recipe.varied(Space(tune).first())
        except UsageError as error:
            told = (replace(mistake, where=recipe.where("tune", "search", mistake.where)) for mistake in error.mistakes)
            raise UsageError(*told) from error
        try:
            return checked(first, checking.checked(first).splits)
        except UsageError as error:
            raise UsageError(*map(recipe.placed, error.mistakes)) from error
    return checked(recipe, splits)


def _folder(recipe: Recipe, output: str | Path | None) -> Path:
    if output is not None:
        return Path(output).expanduser().absolute()
    if recipe.output is None:
        found, mend = "missing", "add `output: runs/NAME` or pass --output"
        raise UsageError(Mistake("output", found, "a folder for the search", mend))
    run = recipe.resolve_path(recipe.output)
    return run.with_name(f"{run.name}-tune")


def _refuse_taken(recipe: Recipe, folder: Path, resume: bool) -> None:
    """Refuse a folder in which something would be lost, or that holds a search of another kind."""
    where = run_folder.refuse_unwritable(folder)
    if not folder.exists() or not [path for path in folder.iterdir() if path.name != f"{TUNE}.tmp"]:
        return
    if not (folder / TUNE).is_file():
        found = "it is not empty and holds no search"
        raise UsageError(Mistake(where, found, "a new or empty folder, or a search's", "name another with --output"))
    if not resume:
        mend = "name another with --output, or go on with --resume"
        raise UsageError(Mistake(where, "there is a search in it already", "a new or empty folder", mend))
    differing = run_folder.differing_fields(recipe, folder / TUNE)
    mine, theirs = (_compared(values) for values in (parse(dump(recipe.resolved())), read(folder / TUNE)[0]))
    differing += [f"tune.{name}" for name in mine if mine[name] != theirs.get(name)]
    if differing:
        mend = f"give the recipe that it was started with ({folder / TUNE}), or name another folder with --output"
        raise UsageError(
            Mistake(where, f"the search in it has another {', '.join(differing)}", "the same recipe", mend)
        )


def _compared(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recipe["tune"].items() if name not in _MAY_CHANGE}


# -- trials --------------------------------------------------------------------------------------------------------


def _try_out(study: Study, folder: Path, started: float, say: Callable[[str], None]) -> None:
    """Make trials until there are enough or the time is up; the table and the plot are there also when it is ended."""
    tune, lines = study.tune, Lines(study)
    say(lines.head())
    for trial in study.trials():
        say(lines.of(trial))
    try:
        while not study.over and (tune.timeout is None or time.monotonic() - started < tune.timeout):
            say(lines.of(study.next()))
            _save_table(folder / TABLE, study.search, study.trials())
    except KeyboardInterrupt:
        say("\n--resume goes on after these trials")
        raise
    finally:
        if done := study.trials():
            _save_table(folder / TABLE, study.search, done)
            save_plot(folder / PLOT, study.search, done)


def _save_table(path: Path, search: Search, trials: list[Trial]) -> None:
    """`trials.csv`, written whole: a line per trial, a column per field that was searched."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", "state", search.metric, *search.space.domains, "evaluations", "seconds", "reason"])
        for trial in trials:
            values = [label(trial.values[p]) if p in trial.values else "" for p in search.space.domains]
            score = "" if trial.score is None else trial.score
            evaluations = " ".join(map(str, trial.evaluations))
            row = [trial.number, trial.state, score, *values, evaluations, round(trial.seconds, 1), trial.reason]
            table.writerow(row)
    os.replace(unfinished, path)


def best_of(trials: list[Trial], greater_is_better: bool) -> Trial | None:
    """The completed trial with the best score, the first of equals; None where there is none."""
    sign = 1 if greater_is_better else -1
    scored = [(sign * trial.score, -trial.number, trial) for trial in trials if trial.score is not None]
    return max(scored)[2] if scored else None


# -- the best ------------------------------------------------------------------------------------------------------


def _finished(recipe: Recipe, study: Study, folder: Path, say: Callable[[str], None]) -> Tuned:
    trials = study.trials()
    best = best_of(trials, study.search.greater_is_better)
    if best is None:
        reasons = dict.fromkeys(trial.reason for trial in trials if trial.reason)
        found, mend = f"none of {len(trials)} trials was completed", "go on with --resume" if not reasons else ""
        raise UsageError(Mistake(f"output {folder}", found, "at least one", mend), *reasons)
    chosen = recipe.varied({**best.values, "tune": None})
    chosen.save(folder / BEST_RECIPE)
    say(f"\nbest: trial {best.number}")
    metrics = _best_run(chosen.varied({"output": str(folder / BEST)}), folder / BEST, say)
    return Tuned(folder, study.search.metric, trials, best, chosen, metrics)


def _best_run(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Carry out the best recipe, unless that was done: the only one that is measured on the test split."""
    there = (folder / run_folder.RECIPE).is_file()
    same = there and not run_folder.differing_fields(recipe, folder / run_folder.RECIPE)
    if not (same and (folder / run_folder.METRICS).is_file()):
        say("carrying out its recipe in full, test split included")
        train(recipe, resume=same, overwrite=there and not same)
        free()
    metrics: dict[str, Any] = json.loads((folder / run_folder.METRICS).read_text(encoding="utf-8"))
    return metrics
