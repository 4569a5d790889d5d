"""One trial: an ordinary run on its own folder that says how it is doing, and can be ended for it."""

from __future__ import annotations

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import TrainerCallback

from alignkit.errors import UsageError
from alignkit.run import train
from alignkit.run_folder import CHECKPOINTS, MEMORY, MODEL
from alignkit.tuning.space import Search, Values

if TYPE_CHECKING:
    import optuna

    from alignkit.recipe import Recipe

State = Literal["complete", "pruned", "failed"]
DROPPED = (MODEL, CHECKPOINTS, MEMORY, "README.md")
"""What a trial's folder does not keep: the model, and what speaks of one."""


@dataclass(frozen=True)
class Trial:
    """What became of one trial."""

    number: int
    """From 1; its folder is `trials/NUMBER`, with three digits."""
    values: Values
    """Dotted path -> value. A field of something that the trial took as null is not there."""
    state: State
    score: float | None
    """The metric on the validation split, at the end; None where the trial did not get there."""
    evaluations: list[float]
    """The metric at each evaluation while it trained."""
    seconds: float
    reason: str = ""
    """Why it failed, when it was pruned, or which trial it repeats."""


class Pruned(Exception):
    """The trial was given up; the message says when."""


class Pruning(TrainerCallback):
    """Tells optuna every evaluation, and ends a trial that optuna gives up.

    Evaluations are counted, so that the second of one trial is compared with the second of others, whatever their
    batch size. The last is only told: there is nothing left to save.
    """

    def __init__(self, trial: optuna.Trial, metric: str):
        self._trial, self._metric, self._count = trial, f"eval_{metric}", 0

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        self._count += 1
        self._trial.report(metrics[self._metric], step=self._count)
        if state.global_step < state.max_steps and self._trial.should_prune():
            raise Pruned(f"pruned after evaluation {self._count}")


def carry_out(
    recipe: Recipe, values: Values, search: Search, trial: optuna.Trial, folder: Path
) -> tuple[State, float | None, str]:
    """Run the recipe with these values.

    Returns:
        What became of it, the metric on the validation split, and why it got no further.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a trial that was interrupted
    try:
        return "complete", _score(_of_trial(recipe, values, folder), search, trial), ""
    except Pruned as error:
        return "pruned", None, str(error)
    except (UsageError, torch.OutOfMemoryError) as error:  # what lies in its values, and not in the program
        return "failed", None, " ".join(str(error).split())
    finally:
        for path in (folder / name for name in DROPPED):
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        free()


def _score(recipe: Recipe, search: Search, trial: optuna.Trial) -> float:
    run = train(recipe, callbacks=[Pruning(trial, search.metric)])
    score = run.metrics["after"]["validation"][search.metric]["value"]
    if score is None:
        raise UsageError(f"{search.metric} is 0/0 on the validation split")
    return float(score)


def _of_trial(recipe: Recipe, values: Values, folder: Path) -> Recipe:
    """The recipe of a trial: it never sees the test split, and measures no more than it is chosen by."""
    fixed = {"data.test": {}, "evaluation": {"replicates": 100}, "tune": None, "output": str(folder)}
    changed = recipe.varied({**values, **fixed})
    return changed if changed.early_stopping else changed.varied({"training.save_strategy": "no"})


def free() -> None:
    """Give back what a finished run held."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
